"""The arithmetic of forward passes: which dtype, which attention. Chosen by a short probe, once per machine.

On CPUs with bf16 matrix units a bf16 step takes half the time of an fp32 step, but only with eager attention: the bf16
backward pass of `scaled_dot_product_attention` is three times slower there than in fp32. On CPUs without these units
bf16 is slower than fp32. Which of them this machine is, is measured and not guessed.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
from transformers import BertConfig, BertModel

from peftscout.backbone import quiet_loading
from peftscout.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]

WORTHWHILE = 0.85
"""bf16 is chosen when its step takes at most this share of an fp32 step: below that it would only cost digits."""

REPEATS = 5
ROWS, TOKENS = 8, 64
_BLOCK = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 1}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arithmetic:
    """How forward passes are computed; trained parameters and optimiser state are fp32 in any case.

    Attributes:
        dtype: of the products: ``fp32``, or ``bf16`` by autocast, with the residual stream and the heads in fp32.
        attention: attention implementation of transformers; ``None`` leaves the model's own.
    """

    dtype: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["eager", "sdpa"] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON form.

        Raises:
            ValueError: when it is not one.
        """
        if data.get("dtype") not in ("fp32", "bf16") or data.get("attention") not in (None, "eager", "sdpa"):
            raise ValueError(f"{dict(data)!r} is no arithmetic")
        return cls(data["dtype"], data["attention"])


FP32 = Arithmetic()
CANDIDATES = (FP32, Arithmetic("bf16", "eager"), Arithmetic("bf16", "sdpa"))


def choose(precision: Precision, device: torch.device, folder: Path | None = None) -> Arithmetic:
    """Return the arithmetic for ``device``.

    Args:
        precision: ``fp32`` is exact; ``bf16`` is obeyed; ``auto`` is the faster one, bf16 on accelerators that have it.
        device: where training runs.
        folder: where the probe of a CPU is remembered; by default `cache_folder`.
    """
    if precision == "fp32":
        return FP32
    if device.type != "cpu":
        supported = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return Arithmetic("bf16") if precision == "bf16" or supported else FP32
    seconds = _remembered((folder or cache_folder()) / "arithmetic.json")
    best_bf16 = min(CANDIDATES[1:], key=seconds.__getitem__)
    worthwhile = seconds[best_bf16] <= WORTHWHILE * seconds[FP32]
    return best_bf16 if precision == "bf16" or worthwhile else FP32


def use_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads.

    Raises:
        ConfigError: when that is more than there are cores.
    """
    if threads is None:
        return
    if threads > (cores := available_cores()):
        raise ConfigError(
            f"training.threads {threads}: this process may use {cores} cores; more threads than cores wait for each "
            f"other and run at about half the speed, so take {cores} or less"
        )
    torch.set_num_threads(threads)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Return the folder for what is remembered per machine: ``$XDG_CACHE_HOME/peftscout``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftscout"


def machine() -> str:
    """Return what the probe depends on, as text."""
    facts = (platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    return "/".join(map(str, (*facts, version("torch"), version("transformers"))))


def probe() -> dict[Arithmetic, float]:
    """Return the seconds of a forward and backward pass through one transformer block, for each candidate.

    Takes under three seconds: a candidate that is far slower than fp32 (bf16 without bf16 units) is tried once.
    """
    config = BertConfig(vocab_size=8, max_position_embeddings=TOKENS, **_BLOCK)
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
        hidden = torch.randn(ROWS, TOKENS, config.hidden_size, requires_grad=True)
    seconds: dict[Arithmetic, list[float]] = {candidate: [_pass(model, hidden, candidate)] for candidate in CANDIDATES}
    for _ in range(REPEATS):
        for candidate, times in seconds.items():
            if times[0] < 3 * seconds[FP32][0]:
                times.append(_pass(model, hidden, candidate))
    return {candidate: statistics.median(times[1:] or times) for candidate, times in seconds.items()}


def _pass(model: BertModel, hidden: torch.Tensor, candidate: Arithmetic) -> float:
    model.set_attn_implementation(candidate.attention or "sdpa")
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=candidate.dtype == "bf16"):
        out = model(inputs_embeds=hidden).last_hidden_state
    out.float().sum().backward()
    hidden.grad = None
    return time.perf_counter() - started


def _remembered(path: Path) -> dict[Arithmetic, float]:
    """Return the probe of this machine: from the file, else measured and written there when that is possible."""
    known: dict[str, Any] = {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {c: float(s) for c, s in zip(CANDIDATES, known[machine()], strict=True)}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, damaged, or of another machine: measured anew
    seconds = probe()
    known = known if isinstance(known, dict) else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps({**known, machine(): list(seconds.values())}, indent=1), encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        _log.info("%s: the probe of this machine is not remembered: %s", path, error)
    return seconds
