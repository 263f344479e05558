"""``peftscout doctor``: what is installed, what it runs on, where things are kept, and whether it works here."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement
from transformers import BertConfig, BertForSequenceClassification

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan

LITTLE = 2 * 10**9
"""Free bytes below which the disk of the cache is called nearly full."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        text: how it is, and where something is wrong, the remedy.
        fine: whether nothing is wrong.
    """

    name: str
    text: str
    fine: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def diagnose() -> Iterator[Finding]:
    """Look at versions, devices and cache, then train a tiny adapter; findings come one by one. Takes seconds."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield from _devices()
    yield _cache()
    yield _self_check()


def _packages() -> Iterator[Finding]:
    """Every package that peftscout needs: which version is here, and whether it is one that it is made for."""
    for line in requires("peftscout") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Finding(requirement.name, f"is missing; pip install '{requirement}'", False)
            continue
        fine = requirement.specifier.contains(found, prereleases=True)
        remedy = "" if fine else f", but {requirement.specifier} is needed; pip install '{requirement}'"
        yield Finding(requirement.name, f"{found}{remedy}", fine)


def _devices() -> Iterator[Finding]:
    yield Finding("processor", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        yield Finding("accelerator", "Apple's (mps)" if mps else "none: everything runs on the processor")
        return
    for n in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(n)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        yield Finding(f"cuda:{n}", f"{p.name}, {p.total_memory / 10**9:.1f} GB, {bf16}")


def _cache() -> Finding:
    """The cache of models and data sets: where it is, whether it can be written, and what is free."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    place = home.expanduser()
    there = next(p for p in (place, *place.parents) if p.exists())
    offline = ", offline (HF_HUB_OFFLINE)" if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") else ""
    free = shutil.disk_usage(there).free
    text = f"{place}, {free / 10**9:.1f} GB free{offline}"
    if not os.access(there, os.W_OK):
        return Finding("cache", f"{text}; it cannot be written: set HF_HOME to a folder of yours", False)
    if free < LITTLE:
        return Finding("cache", f"{text}; that is little: make room, or set HF_HOME to another disk", False)
    return Finding("cache", text)


def _self_check() -> Finding:
    """Build, price, train and remove a tiny adapter, and see that the backbone is as it was."""
    began = time.monotonic()
    try:
        faults = list(_faults())
    except Exception as error:  # whatever it is, it is what the user wants to know
        faults = [f"{type(error).__name__}: {error}"]
    took = f"{time.monotonic() - began:.1f} s"
    if faults:
        return Finding("self-check", f"{'; '.join(faults)} ({took}); please report this with the lines above", False)
    return Finding("self-check", f"a tiny adapter was built, trained and removed as it should be ({took})")


def _faults() -> Iterator[str]:
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
        ids, labels = torch.randint(1, 64, (8, 6)), torch.arange(8) % 2
    model_map = ModelMap.from_model(model)
    plan = Plan.of(
        {("layers.0.attention.q", "lora"): 2, ("layers.1.ffn", "serial"): 3, ("layers.1.ffn_norm", "bias"): 1}
    )
    before = tuner.checksum(model)
    with torch.no_grad():
        plain = model.bert(ids).last_hidden_state
    adapted = tuner.build(model, plan, model_map)
    heads = {id(p) for head in model_map.head for p in adapted.get_submodule(f"base_model.model.{head}").parameters()}
    trained = [p for p in adapted.parameters() if p.requires_grad]
    counted = sum(p.numel() for p in trained if id(p) not in heads)
    if counted != plan.cost(model_map.sites):
        yield f"a plan of {plan.cost(model_map.sites)} parameters was built with {counted}"
    with torch.no_grad():
        if not torch.allclose(adapted.base_model.model.bert(ids).last_hidden_state, plain, atol=1e-6):
            yield "a fresh adapter changes the model's outputs"
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = adapted(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        yield f"20 steps of training did not lower the loss ({losses[0]:.4f} to {losses[-1]:.4f})"
    tuner.reset(adapted)
    if tuner.checksum(model) != before:
        yield "the backbone is not as it was before"
