"""Do scout's values rank plans as training them does? Spearman within a budget, and across budgets.

    python benchmarks/value_correlation.py run GLUE --tasks sst2 stsb [--sets 0.1% across] [--plans 30] [--seeds 3]
    python benchmarks/value_correlation.py table

GLUE: folder with a folder for each task; model, rows and steps are those of `search_quality`. For every task, set of
plans and seed, scout searches once (nothing is dropped, so that every module keeps its value), and what it predicts of
random plans is written beside what training them from fresh weights gives. A set is a budget, or ``across``: random
plans of five budgets from 0.02 % to 0.5 %. Predictors:

    difference, removal, opening, fisher, saliency   the sum over the plan of the value of each level, by each measure
    supernet_loss   held-out loss with the supernet's weights, with a minus
    cost            the parameters: what a larger plan is worth for being larger

Every training appends a row to ``results/value_correlation.csv``; rows that are there are not computed again.

The table compares the prediction of seed i with the trained score, and with the trained loss, of seed j != i (of the
same seed where there is only one), so that nothing is shared but the task. ``retrained`` is the agreement of two
trainings: what no predictor can be expected to exceed by much. Intervals are of a bootstrap over plans.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import csv_rows
from peftscout.gates import Gates, Modules
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Budget, Plan
from peftscout.preparation import make_evaluator
from peftscout.strategies.base import Problem
from peftscout.strategies.one_shot import run as run_search
from peftscout.strategies.scout import ScoutSearch
from peftscout.strategies.scout_options import MEASURES, ScoutOptions
from peftscout.training.evaluator import Evaluator
from peftscout.training.one_shot import one_shot_factory
from search_quality import STEPS, TASKS, study

RESULTS = Path(__file__).parent / "results" / "value_correlation.csv"
KEY = ("task", "space", "set", "steps", "seed", "plan")
PREDICTORS = (*MEASURES, "supernet_loss", "cost")
COLUMNS = (*KEY, *PREDICTORS, "score", "loss", "modules")
ACROSS = (0.0002, 0.0005, 0.001, 0.002, 0.005)
OPTIONS = ScoutOptions(shrinks=0, alternatives=0, ladder=())


def plans_of(name: str, problem: Problem, total: int, count: int) -> list[Plan]:
    """Return the random plans of a set; the first of them are the same whatever their count."""
    rng = np.random.default_rng(0)
    shares = [Budget.parse(round(share * total), total, 4) for share in ACROSS]
    budgets = shares if name == "across" else [Budget.parse(name, total, 4)]
    return [problem.space.sample_within(budgets[n % len(budgets)], rng) for n in range(count)]


def predictions(problem: Problem, plans: Sequence[Plan], evaluator: Evaluator, steps: int) -> list[dict[str, float]]:
    """Search once with the problem's seed, and return what is predicted of each plan: the higher the better."""
    modules = Modules(problem.space)
    most = max(problem.budget.parameters, *(plan.cost(problem.sites) for plan in plans))
    search = ScoutSearch(modules, most, steps, problem.seed, OPTIONS, problem.baseline)
    o, training = OPTIONS, replace(OPTIONS.training(steps, problem.seed), saliency=True)
    with TemporaryDirectory() as folder, one_shot_factory(evaluator, problem.space, Path(folder))(training) as one_shot:
        run_search(search, one_shot, o.keep_every)
        losses = [one_shot.held_out_loss(Gates.of_plan(plan, modules), o.ranking_rows) for plan in plans]
    values = {measure: search.slopes.values(measure) for measure in MEASURES}
    return [
        {m: float(sum(values[m][level] for level in modules.levels_of(plan).items())) for m in MEASURES}
        | {"supernet_loss": -loss, "cost": float(plan.cost(problem.sites))}
        for plan, loss in zip(plans, losses, strict=True)
    ]


def trained(plan: Plan, seed: int, steps: int, evaluator: Evaluator) -> dict[str, Any]:
    """Return score and loss of a plan that is trained by itself."""
    outcome = evaluator(Evaluate(plan, Fidelity(steps), seed))
    if outcome.score is None:
        raise RuntimeError(f"{plan}: {outcome.state}: {outcome.message}")
    return {"score": f"{outcome.score:.5f}", "loss": f"{outcome.metrics['loss']:.5f}"}


def run(args: argparse.Namespace) -> None:
    """Compute the rows that are missing."""
    have = {tuple(row[c] for c in KEY) for row in read()}
    for task in args.tasks:
        problem, prepared = study(args.glue, task, args.space)
        total = prepared.backbone.model_map.total
        with TemporaryDirectory() as cache:
            evaluator = make_evaluator(prepared, Path(cache))
            for seed, name in product(range(args.seeds), args.sets):
                plans = plans_of(name, problem, total, args.plans)
                keys = [(task, args.space, name, str(args.steps), str(seed), str(n)) for n in range(len(plans))]
                if all(key in have for key in keys):
                    continue
                steps = OPTIONS.steps_of(args.steps)
                predicted = predictions(replace(problem, seed=seed), plans, evaluator, steps)
                for key, plan, of_plan in zip(keys, plans, predicted, strict=True):
                    if key not in have:
                        row = dict(zip(KEY, key, strict=True)) | of_plan | trained(plan, seed, args.steps, evaluator)
                        append({**row, "modules": str(plan)})
                        print(*key, f"{of_plan['difference']:.4g}", row["score"], flush=True)


def read() -> list[dict[str, str]]:
    """Return all rows."""
    return csv_rows.read(RESULTS)


def append(row: dict[str, Any]) -> None:
    """Add one row to the results."""
    csv_rows.append(RESULTS, COLUMNS, [row])


Columns = dict[str, np.ndarray]
"""Of one seed: predictor, score or loss (with a minus) -> plans."""


def by_seed(rows: Sequence[dict[str, str]]) -> list[Columns]:
    """Return the columns of every seed, over the plans that all seeds have."""
    seeds: dict[str, dict[int, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        seeds[row["seed"]][int(row["plan"])] = row
    common = sorted(set.intersection(*(set(of_seed) for of_seed in seeds.values())))
    signs = dict.fromkeys((*PREDICTORS, "score"), 1.0) | {"loss": -1.0}
    return [
        {name: np.array([sign * float(of_seed[n][name]) for n in common]) for name, sign in signs.items()}
        for _, of_seed in sorted(seeds.items())
    ]


def correlation(seeds: Sequence[Columns], predictor: str, target: str, plans: np.ndarray) -> float:
    """Return the mean Spearman of a predictor and a target over pairs of different seeds; NaN where one is constant."""
    pairs = [(a, b) for a, b in product(seeds, seeds) if a is not b] or [(seeds[0], seeds[0])]
    found = []
    for a, b in pairs:
        x, y = a[predictor][plans], b[target][plans]
        found.append(np.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else float(spearmanr(x, y).statistic))
    return float(np.mean(found))


def cell(seeds: Sequence[Columns], predictor: str, target: str) -> str:
    """Return a correlation with its 95 % interval over plans, in words."""
    count = len(seeds[0][target])
    rng = np.random.default_rng(0)
    if predictor == target and len(seeds) < 2:
        return ""
    drawn = [correlation(seeds, predictor, target, rng.integers(0, count, count)) for _ in range(300)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return f"{correlation(seeds, predictor, target, np.arange(count)):.2f} [{low:.2f}, {high:.2f}]"


def table() -> str:
    """Return a Markdown table: one line a task, set and target."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in read():
        groups[tuple(row[c] for c in KEY[:4])].append(row)
    lines = [
        f"| task | space | set | steps | target | plans | seeds | {' | '.join(PREDICTORS)} | retrained |",
        "|---" * (8 + len(PREDICTORS)) + "|",
    ]
    for group, rows in groups.items():
        seeds = by_seed(rows)
        for target in ("score", "loss"):
            count = len(seeds[0][target])
            cells = [cell(seeds, name, target) for name in (*PREDICTORS, target)] if count > 2 else []
            lines.append(f"| {' | '.join([*group, target, str(count), str(len(seeds)), *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    running = commands.add_parser("run")
    running.add_argument("glue", type=Path)
    running.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    running.add_argument("--sets", nargs="*", default=["0.1%", "across"], help="budgets, or across")
    running.add_argument("--plans", type=int, default=30)
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--steps", type=int, default=STEPS, help="of a training; the search has half of them")
    running.add_argument("--space", default="bipeft-s1")
    args = parser.parse_args()
    print(table()) if args.command == "table" else run(args)


if __name__ == "__main__":
    main()
