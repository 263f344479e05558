"""CPU time of an epoch of training steps with rows that share sequences, relative to rows that are padded.

    OMP_NUM_THREADS=1 python benchmarks/packing.py

A small Llama (2 blocks x 256, 8 heads, 4 of them for keys and values, FFN 1024, vocabulary 2000) with random weights,
LoRA of rank 8 on queries and values of every block, fp32. Rows of random tokens, a third of each the prompt; their
lengths are log-normal with a median of 40 (sigma 1, 4 to 256). Batches are those of a study, of similar lengths. A step
is the forward pass, the backward pass and AdamW. The two take turns in one process, in an order that changes from round
to round, after two steps each to warm up; process CPU time at one thread. A ratio is that of one round: padded /
packed, above 1 is faster; the row has their median and range. Losses of both are compared in every step.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import csv_rows
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.tasks import Encoded
from peftscout.tasks.sequences import feature_of
from peftscout.training.batches import BatchMaker, training_order
from peftscout.training.device import Device
from peftscout.training.forward import Forward
from peftscout.training.objectives.causal import Completions
from peftscout.training.packing_check import why_not_packed

RESULTS = Path(__file__).parent / "results" / "packing.csv"
MEDIAN, LONGEST, VOCABULARY = 40, 256, 2000
COLUMNS = (
    "rows", "batch_size", "rounds", "padded_per_real_token", "packed_per_real_token", "padded_seconds", "ratio",
    "lowest", "highest",
)  # fmt: skip
OBJECTIVE = Completions(("neg_loss",))


def adapted(layers: int = 2, hidden: int = 256) -> Any:
    """Return the model with LoRA on queries and values; the shape counts, not the weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=4 * hidden,
    )
    model = LlamaForCausalLM(config)
    plan = Plan.of({(f"layers.{n}.attention.{role}", "lora"): 8 for n in range(layers) for role in ("q", "v")})
    return tuner.build(model, plan, ModelMap.from_model(model))


def texts(rows: int) -> Encoded:
    """Return rows of random tokens whose lengths vary widely."""
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(math.log(MEDIAN), 1, rows)), 4, LONGEST).astype(np.int64)
    ids = [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]
    return Encoded([feature_of(row[: len(row) // 3], row[len(row) // 3 :]) for row in ids], np.zeros(rows), lengths)


def epoch(model: Any, rows: Encoded, batches: list[np.ndarray], *, packs: bool) -> tuple[float, Forward, list[float]]:
    """Return the CPU seconds of a step on each of ``batches``, what counted their tokens, and the losses."""
    torch.manual_seed(0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    forward = Forward(model, BatchMaker(0, "right", regression=False), Device(), packs=packs)
    losses, started = [], time.process_time()
    for indices in batches:
        loss = OBJECTIVE.loss(*forward(rows, indices, OBJECTIVE.train, for_loss=True))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return time.process_time() - started, forward, losses


def measure(model: Any, rows: Encoded, batch_size: int, rounds: int) -> dict[str, Any]:
    """Return one row of results: an epoch over ``rows``, padded and packed in turn."""
    batches = list(islice(training_order(rows.lengths, batch_size, 0), -(-len(rows) // batch_size)))
    for packs in (False, True):
        epoch(model, rows, batches[:2], packs=packs)
    padded, ratios, per_token = [], [], {}
    for n in range(rounds):
        seconds, losses = {}, {}
        for packs in (n % 2 == 0, n % 2 == 1):
            seconds[packs], forward, losses[packs] = epoch(model, rows, batches, packs=packs)
            per_token[packs] = forward.tokens / forward.real_tokens
        torch.testing.assert_close(torch.tensor(losses[True]), torch.tensor(losses[False]), rtol=1e-5, atol=0)
        padded.append(seconds[False])
        ratios.append(seconds[False] / seconds[True])
    figures = (per_token[False], per_token[True], statistics.median(padded), statistics.median(ratios))
    written = [f"{x:.3f}" for x in (*figures, min(ratios), max(ratios))]
    return dict(zip(COLUMNS, (len(rows), batch_size, rounds, *written), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", type=int, default=[64, 128, 256, 1024])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = adapted()
    reason = why_not_packed(model, texts(8).features[0]["input_ids"])
    assert not reason, reason
    for count in args.rows:
        row = measure(model, texts(count), args.batch_size, args.repeats)
        csv_rows.append(RESULTS, COLUMNS, [row])
        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
