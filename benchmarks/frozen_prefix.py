"""How much faster a training step is when it enters above the frozen prefix, for every lowest tuned block j.

    OMP_NUM_THREADS=1 python benchmarks/frozen_prefix.py --precisions fp32 bf16

LoRA on query and value of the blocks from j on, in a BERT of MiniLM's shape (6 x 384) with random weights. Both steps
are those of the same plan; the fast one reads the activations that enter block j from a memory-mapped file. Theory
counts passes through blocks, forward and backward alike: 2 L - j of them against 2 (L - j). Embeddings, head and
optimiser are computed in both steps and are not in the theory, so the measured share of it is below 1 where few blocks
are left. Process CPU time, all variants in random turns in one process, the median of the ratios of every round.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.tasks import Encoded
from peftscout.training.activation_cache import ActivationCache
from peftscout.training.activation_file import Entry
from peftscout.training.activation_key import activation_key, backbone_digest, rows_digest, sequence_lengths
from peftscout.training.arithmetic import FP32, Arithmetic
from peftscout.training.batches import BatchMaker
from peftscout.training.device import Device
from peftscout.training.entrance_check import find_entrance
from peftscout.training.frozen_prefix import Entrance, entered_at, frozen_prefix, prefix_activations

RESULTS = Path(__file__).parent / "results" / "frozen_prefix.csv"
LAYERS, RANK, BATCH, TOKENS, BATCHES = 6, 8, 32, 64, 4
PRECISIONS = {"fp32": FP32, "bf16": Arithmetic("bf16", "eager")}
TARGET = 0.95
COLUMNS = (
    "precision", "attention", "lowest_block", "rounds", "plain_seconds", "cached_seconds", "speedup", "lowest",
    "highest", "theory", "share",
)  # fmt: skip

Step = Callable[[int], None]


def make_model() -> Any:
    config = BertConfig(
        hidden_size=384, num_hidden_layers=LAYERS, num_attention_heads=12, intermediate_size=1536, num_labels=2
    )
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)


def make_rows() -> Encoded:
    count = BATCH * BATCHES
    ids = np.random.default_rng(0).integers(5, 30000, (count, TOKENS))
    features = [{"input_ids": row.tolist(), "attention_mask": [1] * TOKENS} for row in ids]
    return Encoded(features, np.arange(count) % 2, np.full(count, TOKENS))


def from_block(depth: int, model_map: ModelMap) -> Plan:
    sites = model_map.sites.values()
    chosen = [s.id for s in sites if s.role in ("q", "v") and s.layer is not None and s.layer >= depth]
    return Plan.of({(site, "lora"): RANK for site in chosen})


def make_steps(depth: int, device: Device, cache: ActivationCache) -> dict[str, Step]:
    """Return the plain and the cached step of the plan from block ``depth`` on; each takes the number of a batch."""
    model, rows = make_model(), make_rows()
    make_batch = BatchMaker(0, "right", regression=False)
    model_map = ModelMap.from_model(model)
    if device.arithmetic.attention is not None:
        model.set_attn_implementation(device.arithmetic.attention)
    plan = from_block(depth, model_map)
    prefix = frozen_prefix(plan, model_map)
    assert prefix is not None
    assert prefix.depth == depth
    entrance = find_entrance(model, prefix, make_batch(rows.features[:4], rows.references[:4]))
    assert isinstance(entrance, Entrance), entrance
    key = activation_key(
        backbone_digest(model, model_map.head), prefix, rows_digest(rows), device.arithmetic,
        attention=model.config._attn_implementation, device=device.torch_device, batch_size=BATCH, stored=None,
    )  # fmt: skip
    entry = cache.build(key, sequence_lengths(rows), prefix_activations(model, prefix, rows, make_batch, device, BATCH))
    assert isinstance(entry, Entry), entry
    adapted = tuner.build(model, plan, model_map)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step(number: int, cached: bool) -> None:
        indices = range(number * BATCH, (number + 1) * BATCH)
        batch = device.put(make_batch([rows.features[i] for i in indices], rows.references[list(indices)]))
        entering = entered_at(adapted, entrance, entry.batch(indices, TOKENS)) if cached else nullcontext()
        with device.autocast(), entering:
            loss = adapted(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return {"plain": lambda n: step(n, cached=False), "cached": lambda n: step(n, cached=True)}


def cpu_seconds(step: Step, number: int) -> float:
    started = time.process_time()
    step(number)
    return time.process_time() - started


def measure(precision: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    device, cache = Device(PRECISIONS[precision]), ActivationCache(folder, 10**9)
    depths = range(1, LAYERS)
    steps = {(j, kind): step for j in depths for kind, step in make_steps(j, device, cache).items()}
    for step in steps.values():
        step(0)
    turns, taken = random.Random(0), []
    for n in range(rounds):
        order = turns.sample(sorted(steps), len(steps))
        taken.append({variant: cpu_seconds(steps[variant], n % BATCHES) for variant in order})
    return [row(precision, j, taken) for j in depths]


def row(precision: str, j: int, taken: list[dict[tuple[int, str], float]]) -> dict[str, Any]:
    ratios = [each[j, "plain"] / each[j, "cached"] for each in taken]
    speedup, theory = statistics.median(ratios), (2 * LAYERS - j) / (2 * (LAYERS - j))
    return {
        "precision": precision,
        "attention": PRECISIONS[precision].attention or "sdpa",
        "lowest_block": j,
        "rounds": len(taken),
        "plain_seconds": f"{statistics.median(each[j, 'plain'] for each in taken):.3f}",
        "cached_seconds": f"{statistics.median(each[j, 'cached'] for each in taken):.3f}",
        "speedup": f"{speedup:.3f}",
        "lowest": f"{min(ratios):.3f}",
        "highest": f"{max(ratios):.3f}",
        "theory": f"{theory:.3f}",
        "share": f"{speedup / theory:.3f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="*", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(",".join(COLUMNS))
    for precision in args.precisions:
        with tempfile.TemporaryDirectory() as folder:
            for found in measure(precision, args.rounds, Path(folder)):
                rows.append(found)
                print(",".join(str(found[name]) for name in COLUMNS), flush=True)
    args.results.parent.mkdir(exist_ok=True)
    with args.results.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    least = min(float(found["share"]) for found in rows)
    print(f"least share of the theory: {least:.3f}, target {TARGET}: {'met' if least >= TARGET else 'not met'}")


if __name__ == "__main__":
    main()
