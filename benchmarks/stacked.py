"""Time of a stacked step of K plans, relative to K steps of the same plans one after the other.

    OMP_NUM_THREADS=1 python benchmarks/stacked.py
    python benchmarks/stacked.py --device cuda --layers 12 --hidden 768 --slots 1 4 16 64 --shapes 16x64

MiniLM's shape (6 blocks x 384, 12 heads, FFN 1536) with random weights and no dropout; bf16 by autocast and eager
attention on a CPU, SDPA on a GPU. `lora` plans have LoRA of rank 8 on queries and values of every block; `mixed` ones
each op at every third place at random, of sizes 1 to 32, so that no two are alike. A step is the forward pass, the
backward pass, and for every plan its own clipping and AdamW. The two take turns in one process, in an order that
changes from round to round, after a step each to warm up. CPU: process time at one thread; GPU: wall time,
synchronised. A ratio is that of one round: one after the other / stacked, above 1 is faster; the row has their median
and range.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.cost import SIZELESS, largest_size, ops_at
from peftscout.plan import Plan
from peftscout.stacked import Stack, stacked

RESULTS = Path(__file__).parent / "results" / "stacked.csv"
SHAPES = ("4x16", "8x16", "16x16", "32x16", "8x64", "32x64")
COLUMNS = (
    "device", "layers", "hidden", "plans", "precision", "slots", "rows", "tokens", "rounds", "alone_seconds",
    "stacked_seconds", "ratio", "lowest", "highest",
)  # fmt: skip

Batch = dict[str, Tensor]
Work = Callable[[], object]


def lora_plan(model_map: ModelMap, seed: int) -> Plan:
    """LoRA on queries and values."""
    return Plan.of({(s.id, "lora"): 8 for s in model_map.sites.values() if s.kind == "linear" and s.role in ("q", "v")})


def mixed_plan(model_map: ModelMap, seed: int) -> Plan:
    """Every op at every third place, at random."""
    rng, sizes = np.random.default_rng(seed), {}
    for site in model_map.sites.values():
        for op in ops_at(site):
            if rng.random() < 1 / 3:
                largest = 1 if op in SIZELESS else min(32, largest_size(site, op))
                sizes[site.id, op] = int(rng.integers(1, largest + 1))
    return Plan.of(sizes)


PLANS = {"lora": lora_plan, "mixed": mixed_plan}


def backbone(layers: int, hidden: int, device: torch.device) -> Any:
    """Return the bare model; the shape counts, not the weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager" if device.type == "cpu" else "sdpa",
    )
    return BertForSequenceClassification(config).to(device)


def texts(slots: int, rows: int, tokens: int, device: torch.device) -> Batch:
    """Return a batch of every slot."""
    ids = torch.randint(5, 5000, (slots * rows, tokens), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(slots * rows) % 2}
    return {name: tensor.to(device) for name, tensor in batch.items()}


class Trained:
    """The parameters of one plan with their optimiser."""

    def __init__(self, by_op: dict[str, list[Any]]) -> None:
        self.parameters = [p for group in by_op.values() for p in group]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)

    def step(self) -> None:
        """Clip, step, forget the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def backward(model: Any, batch: Batch, slots: int, autocast: Callable[[], Any]) -> None:
    """Compute the gradients of the sum over slots of the mean loss."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with autocast():
        logits = model(**inputs).logits
    losses = F.cross_entropy(logits.float(), batch["labels"], reduction="none").view(slots, -1).mean(1)
    losses.sum().backward()


def stacked_step(stack: Stack, batch: Batch, autocast: Callable[[], Any]) -> Work:
    """Return a step of all slots at once."""
    stack.train()
    trained = [Trained(stack.parameters_by_op(k)) for k in stack.live]

    def step() -> None:
        backward(stack.model, batch, len(stack), autocast)
        for each in trained:
            each.step()

    return step


def steps_alone(models: Sequence[Any], batch: Batch, autocast: Callable[[], Any]) -> Work:
    """Return a step of every model, one after the other."""
    shares = zip(*(tensor.chunk(len(models)) for tensor in batch.values()), strict=True)
    batches = [dict(zip(batch, share, strict=True)) for share in shares]
    for model in models:
        model.eval()
    trained = [Trained(tuner.parameters_by_op(model)) for model in models]

    def step() -> None:
        for model, own, each in zip(models, batches, trained, strict=True):
            backward(model, own, 1, autocast)
            each.step()

    return step


def timed(work: Work, device: torch.device, times: int) -> float:
    """Return the seconds of one time of ``work``."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronise = torch.cuda.synchronize if device.type == "cuda" else contextlib.nullcontext
    synchronise()
    started = clock()
    for _ in range(times):
        work()
    synchronise()
    return (clock() - started) / times


def measure(
    alone: Work, together: Work, device: torch.device, rounds: int, times: int
) -> tuple[float, float, list[float]]:
    """Return the median seconds of both, and the ratios of the rounds, ascending."""
    both = (alone, together)
    for work in both:
        timed(work, device, 1)
    found: tuple[list[float], list[float]] = ([], [])
    for n in range(rounds):
        for which in (n % 2, 1 - n % 2):
            found[which].append(timed(both[which], device, times))
    ratios = sorted(a / t for a, t in zip(*found, strict=True))
    return statistics.median(found[0]), statistics.median(found[1]), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--slots", nargs="*", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="rows x tokens of one plan")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    machine = "cpu" if device.type == "cpu" else torch.cuda.get_device_name()

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")

    model = backbone(args.layers, args.hidden, device)
    model_map = ModelMap.from_model(model)
    for kind in args.plans:
        plans = [PLANS[kind](model_map, seed) for seed in range(max(args.slots))]
        copies = max(args.slots) if len(set(plans)) > 1 else 1
        built = [tuner.build(copy.deepcopy(model), plan, model_map) for plan in plans[:copies]]
        for slots in args.slots:
            with stacked(model, plans[:slots], model_map, seeds=range(slots)) as stack:
                for shape in args.shapes:
                    rows, tokens = map(int, shape.split("x"))
                    batch = texts(slots, rows, tokens, device)
                    models = built[:slots] if copies > 1 else built * slots
                    pair = steps_alone(models, batch, autocast), stacked_step(stack, batch, autocast)
                    times = max(1, 512 // (slots * rows * tokens))
                    alone, together, ratios = measure(*pair, device, args.rounds, times)
                    figures = [f"{x:.4f}" for x in (alone, together)]
                    figures += [f"{x:.3f}" for x in (statistics.median(ratios), ratios[0], ratios[-1])]
                    run = (machine, args.layers, args.hidden, kind, args.precision, slots, rows, tokens, args.rounds)
                    write((*run, *figures))


def write(row: Sequence[object]) -> None:
    """Print a row and add it to the results."""
    RESULTS.parent.mkdir(exist_ok=True)
    is_new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow(row)
    print(*row, flush=True)


if __name__ == "__main__":
    main()
