"""Does a fast setting rank plans as the slow one does? Spearman between settings, beside that between seeds.

    python benchmarks/plan_ranking.py run GLUE --task sst2 --setting fast --plans 20 --seeds 3
    python benchmarks/plan_ranking.py table

Random plans (budgets from 0.02 % to 2 % of MiniLM, so that there is something to rank) are trained for a few steps
under each setting with each seed. Every training appends a row to ``results/plan_ranking.csv``; rows that are there are
not computed again. ``exact`` is what the published systems do: fp32, dropout on in the frozen backbone.

Agreement between settings is the mean Spearman over pairs (setting A with seed i, setting B with seed j != i), so that
it contains the noise between seeds just as the agreement of a setting with itself does. The last column is what the
settings lose: the agreement between them less the mean of their agreements with themselves, with the 95 % interval of a
bootstrap over plans. Where every plan scores the same there is no ranking and no row.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations_with_replacement, permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.stats import spearmanr

import csv_rows
from peftscout.config import StudyConfig
from peftscout.demo import model_path
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Budget, Plan
from peftscout.preparation import Prepared, make_evaluator, prepare

RESULTS = Path(__file__).parent / "results" / "plan_ranking.csv"
COLUMNS = ("task", "setting", "plan", "seed", "cost", "score", "loss", "steps", "seconds")
SHARES = (0.0002, 0.0006, 0.002, 0.006, 0.02)

SETTINGS: dict[str, dict[str, object]] = {
    "fast": {"precision": "auto", "backbone_dropout": "off"},
    "bf16-dropout": {"precision": "auto", "backbone_dropout": "paper"},
    "exact": {"precision": "fp32", "backbone_dropout": "paper"},
}
STEPS = {"sst2": 60, "cola": 60, "stsb": 100}
BATCH = {"sst2": 32, "cola": 32, "stsb": 16}
LR_SCALE = 3.0
"""The default learning rates are low for runs as short as these (docs/results.md)."""


Scores = dict[int, dict[int, float]]
"""Seed -> plan -> score."""


def study(glue: Path, task: str, setting: str) -> Prepared:
    """Return the prepared study of a task under a setting."""
    data = {"source": str(glue / task), "max_train_rows": 4000, "max_search_rows": 500}
    training = {**SETTINGS[setting], "threads": 1, "evaluations": 1, "batch_size": BATCH[task]}
    return prepare(
        StudyConfig.from_mapping({"model": str(model_path()), "budget": "2%", "data": data, "training": training})
    )


def random_plans(prepared: Prepared, count: int) -> list[Plan]:
    """Return the first ``count`` of an endless list of random plans, over the budgets in turn; always the same."""
    rng = np.random.default_rng(0)
    total = prepared.backbone.model_map.total
    budgets = [Budget.parse(round(share * total), total, 4) for share in SHARES]
    return [prepared.space.sample_within(budgets[n % len(budgets)], rng) for n in range(count)]


def run(glue: Path, task: str, setting: str, plans: int, seeds: int) -> None:
    """Train what has no row yet."""
    torch.set_num_threads(1)
    prepared = study(glue, task, setting)
    have = {(r["task"], r["setting"], int(r["plan"]), int(r["seed"])) for r in read()}
    with TemporaryDirectory() as cache:
        evaluator = make_evaluator(prepared, Path(cache))
        for seed in range(seeds):
            for number, plan in enumerate(random_plans(prepared, plans)):
                if (task, setting, number, seed) in have:
                    continue
                outcome = evaluator(Evaluate(plan, Fidelity(STEPS[task]), seed, LR_SCALE))
                row = (task, setting, number, seed, outcome.cost, outcome.score, outcome.metrics.get("loss"))
                append((*row, outcome.steps, f"{outcome.seconds:.2f}"))
                print(*row, flush=True)


def append(row: tuple[object, ...]) -> None:
    """Add one row to the results."""
    csv_rows.append(RESULTS, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])


def read() -> list[dict[str, str]]:
    """Return all rows."""
    return csv_rows.read(RESULTS)


def scores(rows: list[dict[str, str]], task: str, setting: str, by: str) -> Scores:
    """Return seed -> plan -> score (or minus the loss)."""
    out: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if (row["task"], row["setting"]) == (task, setting) and row[by]:
            out[int(row["seed"])][int(row["plan"])] = float(row[by]) * (-1 if by == "loss" else 1)
    return out


def agreement(a: Scores, b: Scores, plans: Sequence[int]) -> list[float]:
    """Return Spearman's rho of ``plans`` for every pair of different seeds."""
    rhos = []
    for i, j in permutations(sorted(set(a) | set(b)), 2):
        if i in a and j in b:
            one, other = [a[i][p] for p in plans], [b[j][p] for p in plans]
            rhos.append(float(spearmanr(one, other).statistic) if min(len(set(one)), len(set(other))) > 1 else np.nan)
    return rhos


def loss_of_agreement(a: Scores, b: Scores, plans: Sequence[int]) -> float:
    """Return the mean agreement between settings less the mean of those of each with itself."""
    between, within = np.mean(agreement(a, b, plans)), (np.mean(agreement(s, s, plans)) for s in (a, b))
    return float(between - np.mean(list(within)))


def table() -> None:
    """Print agreement within and between settings, for every task."""
    rows, rng = read(), np.random.default_rng(0)
    print("| task | ranked by | settings | plans | mean Spearman between seeds | lowest to highest | difference |")
    print("|---|---|---|---|---|---|---|")
    for task in STEPS:
        for by in ("score", "loss"):
            found = {s: own for s in SETTINGS if (own := scores(rows, task, s, by))}
            plans = sorted(set.intersection(*(set(own) for side in found.values() for own in side.values())))
            for a, b in combinations_with_replacement(found, 2):
                rhos = agreement(found[a], found[b], plans)
                if np.isnan(rhos).any():
                    continue
                between = f"{a}, seed to seed" if a == b else f"{a} against {b}"
                cells = [task, by, between, len(plans), f"{np.mean(rhos):.3f}", f"{min(rhos):.2f} to {max(rhos):.2f}"]
                print(
                    "|",
                    *(f"{cell} |" for cell in cells),
                    "|" if a == b else f"{lost(found[a], found[b], plans, rng)} |",
                )


def lost(a: Scores, b: Scores, plans: Sequence[int], rng: np.random.Generator) -> str:
    """Return `loss_of_agreement` in words, with its interval."""
    drawn = [loss_of_agreement(a, b, rng.choice(plans, len(plans)).tolist()) for _ in range(500)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return f"{loss_of_agreement(a, b, plans):+.2f} [{low:+.2f}, {high:+.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("glue", type=Path)
    runner.add_argument("--task", choices=STEPS, required=True)
    runner.add_argument("--setting", choices=SETTINGS, required=True)
    runner.add_argument("--plans", type=int, default=12)
    runner.add_argument("--seeds", type=int, default=3)
    commands.add_parser("table")
    args = vars(parser.parse_args())
    command = args.pop("command")
    run(**args) if command == "run" else table()


if __name__ == "__main__":
    main()
