"""CPU time of a step with the last block cut down to the one row that the head reads, relative to the whole block.

    OMP_NUM_THREADS=1 python benchmarks/one_row.py --repeats 15

MiniLM's shape (6 blocks x 384, 12 heads, FFN 1536) with random weights and no dropout, LoRA of rank 8 on queries and
values of every block, 32 texts of 64 or 16 tokens, a fifth of them shorter. With and without take turns in one process,
in an order that changes from round to round, after two steps each to warm up; process CPU time at one thread. A ratio
is that of one round: plain / one row, above 1 is faster; the row has their median and range.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.training.one_row import one_row
from peftscout.training.one_row_check import find_one_row

RESULTS = Path(__file__).parent / "results" / "one_row.csv"
ROWS, RANK = 32, 8
ATTENTION = {"fp32": "sdpa", "bf16": "eager"}
COLUMNS = (
    "layers", "hidden", "rows", "tokens", "precision", "attention", "work", "rounds", "plain_seconds", "ratio",
    "lowest", "highest",
)  # fmt: skip

Work = Callable[[], object]


def adapted(layers: int, hidden: int, precision: str) -> tuple[Any, ModelMap]:
    """Return the model with LoRA on queries and values, and its map; the shape counts, not the weights."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=ATTENTION[precision],
    )
    model = BertForSequenceClassification(config)
    model_map = ModelMap.from_model(model)
    plan = Plan.of({(f"layers.{n}.attention.{role}", "lora"): RANK for n in range(layers) for role in ("q", "v")})
    return tuner.build(model, plan, model_map), model_map


def texts(tokens: int) -> dict[str, torch.Tensor]:
    """Return a batch whose fifths rows are one to four tokens shorter than the others, with labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30000, (ROWS, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(0, ROWS, 5):
        mask[row, tokens - 1 - row % 4 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(ROWS) % 2}


def works(model: Any, batch: dict[str, torch.Tensor], precision: str) -> dict[str, Work]:
    """Return what is timed: a training step, and a forward pass of an evaluation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def train() -> None:
        model.train()
        with autocast():
            loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate() -> None:
        model.eval()
        with torch.no_grad(), autocast():
            model(**inputs)

    return {"train": train, "eval": evaluate}


def timed(model: Any, model_map: ModelMap, work: Work, *, cut: bool, times: int = 1) -> float:
    """Return CPU seconds of ``work``, with or without the cut."""
    with one_row(model, model_map, "first") if cut else contextlib.nullcontext():
        started = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - started) / times


def measure(model: Any, model_map: ModelMap, work: Work, rounds: int, times: int) -> tuple[float, list[float]]:
    """Return the median seconds of the plain work, and the ratios of the rounds, ascending."""
    for cut in (False, True):
        timed(model, model_map, work, cut=cut, times=2)
    plain, ratios = [], []
    for n in range(rounds):
        seconds = {cut: timed(model, model_map, work, cut=cut, times=times) for cut in (n % 2 == 0, n % 2 == 1)}
        plain.append(seconds[False])
        ratios.append(seconds[False] / seconds[True])
    return statistics.median(plain), sorted(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--tokens", nargs="*", type=int, default=[64, 16])
    parser.add_argument("--precisions", nargs="*", default=list(ATTENTION), choices=list(ATTENTION))
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.parent.mkdir(exist_ok=True)
    for precision in args.precisions:
        model, model_map = adapted(args.layers, args.hidden, precision)
        for tokens in args.tokens:
            batch = texts(tokens)
            reading = find_one_row(model, model_map, {name: tensor[:4] for name, tensor in batch.items()})
            assert reading.position == "first", reading.reason
            for name, work in works(model, batch, precision).items():
                times = max(1, 64 // tokens)
                plain, ratios = measure(model, model_map, work, args.repeats, times)
                figures = [f"{x:.3f}" for x in (plain, statistics.median(ratios), ratios[0], ratios[-1])]
                shape = (args.layers, args.hidden, ROWS, tokens, precision, ATTENTION[precision])
                row = (*shape, name, args.repeats, *figures)
                is_new = not RESULTS.exists()
                with RESULTS.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if is_new:
                        writer.writerow(COLUMNS)
                    writer.writerow(row)
                print(*row, flush=True)


if __name__ == "__main__":
    main()
