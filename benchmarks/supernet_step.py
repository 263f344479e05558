"""CPU time and peak memory of one iteration on a supernet, relative to one plain peft LoRA step on the same modules.

    OMP_NUM_THREADS=1 python benchmarks/supernet_step.py --models minilm t5-small --precisions fp32 bf16
    python benchmarks/supernet_step.py --report

The plain step is peft's LoRA of the space's largest rank on every linear layer that the space puts LoRA on, with
batches of as many rows. All variants of a case take turns in one process, after one step each to warm up; the ratio of
every round is that to the plain step of the same round, and the row has their median. Memory is measured in a process
for each variant: the most that was resident while it took three steps, above what was before the model was made.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification, T5Config, T5ForSequenceClassification

import csv_rows
from peftscout.architecture import ModelMap
from peftscout.backbone import Backbone
from peftscout.config import LearningRates
from peftscout.demo import model_path
from peftscout.gates import Gates, Modules, WeightTraining
from peftscout.reference import BaseReference
from peftscout.space import Space, load_space
from peftscout.strategies.bipeft import BipeftSearch
from peftscout.strategies.bipeft_options import BipeftOptions
from peftscout.strategies.s3delta import S3DeltaOptions, S3DeltaSearch
from peftscout.tasks import Encoded
from peftscout.training.arithmetic import FP32, Arithmetic
from peftscout.training.evaluator import EncodedTask, Evaluator
from peftscout.training.kept_search import KeptSearch
from peftscout.training.memory import PeakMemory
from peftscout.training.one_shot import SupernetInTraining
from peftscout.training.schedule import rates_at
from peftscout.training.settings import TrainingSettings

RESULTS = Path(__file__).parent / "results" / "supernet_step.csv"
ROWS, TOKENS = 32, 64
CLIP = 2.0
PRECISIONS = {"fp32": FP32, "bf16": Arithmetic("bf16", "eager")}
SPACES = ("lora", "bipeft-s1", "s3delta-m")
VARIANTS = ("plain", "gated", "bipeft", "bipeft-split", "s3delta", "s3delta-split")
COLUMNS = (
    "model", "space", "precision", "variant", "rounds", "plain_seconds", "ratio", "lowest", "highest", "memory_ratio",
)  # fmt: skip

Step = Callable[[], object]


def make_model(name: str) -> Any:
    """Return a frozen model with a head of two labels: the shape counts, not the weights."""
    torch.manual_seed(0)
    if name == "minilm":
        model: Any = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(model_path()))
    else:
        model = T5ForSequenceClassification(
            T5Config(d_model=512, d_ff=2048, d_kv=64, num_heads=8, num_layers=6, num_labels=2, decoder_start_token_id=0)
        )
    return model.requires_grad_(False)


def make_rows(count: int) -> Encoded:
    """Return rows of `TOKENS` random tokens that end with token 1, which is T5's end of a text."""
    ids = np.random.default_rng(0).integers(5, 1000, (count, TOKENS))
    ids[:, -1] = 1
    features = [{"input_ids": row.tolist(), "attention_mask": [1] * TOKENS} for row in ids]
    return Encoded(features, np.arange(count) % 2, np.full(count, TOKENS))


def make_evaluator(model: Any, precision: str) -> Evaluator:
    tokenizer = SimpleNamespace(pad_token_id=0, padding_side="right")
    reference = BaseReference("random", "AutoModelForSequenceClassification", {})
    backbone = Backbone(model, tokenizer, ModelMap.from_model(model), reference, 512)
    task: Any = SimpleNamespace(kind="classification", metrics=("accuracy",))
    rows = make_rows(8 * ROWS)
    rates = rates_at(384, LearningRates().model_dump())
    settings = TrainingSettings(rates, batch_size=ROWS, arithmetic=PRECISIONS[precision])
    return Evaluator(backbone, EncodedTask(task, rows, rows), settings)


def largest_rank(space: Space) -> int:
    return max(c.sizes[-1] for c in space.choices if c.op == "lora")


def plain(evaluator: Evaluator, space: Space) -> Step:
    """Return one step of peft's LoRA on the places of the space's LoRA, and on the head."""
    model, device = evaluator.backbone.model, evaluator.device
    rank = largest_rank(space)
    places = [space.sites[c.site].module for c in space.choices if c.op == "lora"]
    heads = list(evaluator.backbone.model_map.head)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=places, modules_to_save=heads))
    if device.arithmetic.attention is not None:
        model.set_attn_implementation(device.arithmetic.attention)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    rows = make_rows(ROWS)
    batch = device.put(evaluator.make_batch(rows.features, rows.references))
    adapted.eval()  # dropout of the backbone is off by default

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with device.autocast():
            loss = adapted(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        loss.item()

    return step


def on_supernet(evaluator: Evaluator, space: Space, variant: str, folder: Path) -> Step:
    """Return one iteration of a search that goes on for ever and prunes nothing."""
    modules, steps = Modules(space), 10**6
    budget = evaluator.backbone.model_map.total // 200
    training = WeightTraining(steps, None, 0.0, CLIP, seed=0, saliency=variant.startswith("bipeft"))
    one_shot = SupernetInTraining(evaluator, space, training, KeptSearch(folder))
    if variant == "gated":
        gates = Gates(np.full(len(modules), 0.5), modules.allowed / modules.levels[:, None])
        return lambda: one_shot.step(gates, "train", gate_gradients=True, update_weights=True)
    strategy, _, split = variant.partition("-")
    estimator: Any = split or {"bipeft": "bilevel", "s3delta": "unrolled"}[strategy]
    if strategy == "bipeft":
        search: Any = BipeftSearch(modules, budget, steps, 0, BipeftOptions(warmup=1.0, estimator=estimator))
    else:
        search = S3DeltaSearch(modules, budget, steps, 0, S3DeltaOptions(log_every=steps, estimator=estimator))
    return lambda: search.advance(one_shot)


def make_step(model: str, space: str, precision: str, variant: str, folder: Path) -> Step:
    evaluator = make_evaluator(make_model(model), precision)
    resolved = load_space(space, evaluator.backbone.model_map.sites)
    if variant == "plain":
        return plain(evaluator, resolved)
    return on_supernet(evaluator, resolved, variant, folder)


def cpu_seconds(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


def memory(case: tuple[str, str, str], variant: str) -> int:
    """Return the bytes of one variant, measured in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", *case, variant]
    return int(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def measure_memory(model: str, space: str, precision: str, variant: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        with PeakMemory(torch.device("cpu")) as before:
            gc.collect()
        step = make_step(model, space, precision, variant, Path(folder))
        with PeakMemory(torch.device("cpu")) as during:
            for _ in range(3):
                step()
    return during.peak - before.peak


def measure(case: tuple[str, str, str], variants: list[str], rounds: int, with_memory: bool) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        steps = {v: make_step(*case, v, Path(folder)) for v in ("plain", *variants)}
        for step in steps.values():
            step()
        seconds = [{v: cpu_seconds(step) for v, step in steps.items()} for _ in range(rounds)]
    plain_memory = memory(case, "plain") if with_memory else 0
    rows = []
    for variant in variants:
        ratios = [each[variant] / each["plain"] for each in seconds]
        row = dict(zip(("model", "space", "precision"), case, strict=True)) | {
            "variant": variant,
            "rounds": rounds,
            "plain_seconds": f"{statistics.median(each['plain'] for each in seconds):.3f}",
            "ratio": f"{statistics.median(ratios):.3f}",
            "lowest": f"{min(ratios):.3f}",
            "highest": f"{max(ratios):.3f}",
            "memory_ratio": f"{memory(case, variant) / plain_memory:.3f}" if with_memory else "",
        }
        rows.append(row)
        print(",".join(map(str, row.values())), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["minilm", "t5-small"], choices=["minilm", "t5-small"])
    parser.add_argument("--spaces", nargs="*", default=list(SPACES))
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS[1:]), choices=list(VARIANTS[1:]))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--report", action="store_true", help="print the rows as a table, and measure nothing")
    parser.add_argument("--dry", action="store_true", help="print, and write no rows")
    parser.add_argument("--memory-of", nargs=4, metavar=("MODEL", "SPACE", "PRECISION", "VARIANT"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.report:
        print(report())
        return
    if args.memory_of:
        print(json.dumps(measure_memory(*args.memory_of)))
        return
    for model in args.models:
        for space in args.spaces:
            for precision in args.precisions:
                rows = measure((model, space, precision), args.variants, args.rounds, not args.no_memory)
                if not args.dry:
                    csv_rows.append(RESULTS, COLUMNS, rows)


def report() -> str:
    """Return the rows as a Markdown table: a line for each case, time and, behind a slash, peak memory."""
    cases: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in csv_rows.read(RESULTS):
        cases.setdefault((row["model"], row["space"], row["precision"]), {})[row["variant"]] = row
    lines = [f"| model | space | precision | {' | '.join(VARIANTS[1:])} |", "|---" * (2 + len(VARIANTS)) + "|"]
    for case, by in cases.items():
        told = [_told(by[variant]) if variant in by else "" for variant in VARIANTS[1:]]
        lines.append(f"| {' | '.join((*case, *told))} |")
    return "\n".join(lines)


def _told(row: dict[str, str]) -> str:
    ratio, low, high, memory = (float(row[name]) for name in ("ratio", "lowest", "highest", "memory_ratio"))
    return f"{ratio:.2f} [{low:.2f}-{high:.2f}] / {memory:.2f}"


if __name__ == "__main__":
    main()
