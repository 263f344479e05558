"""Do plans that mix op families want lower learning rates than each family alone?

    python benchmarks/mixed_rates.py run GLUE [--tasks sst2 stsb] [--plans 8]
    python benchmarks/mixed_rates.py table

GLUE: folder with sst2/, stsb/. The random plans of `search_quality` (space bipeft-s1: LoRA, low-rank adapters, biases,
norms; 0.1 %), and uniform LoRA, are trained as there with the default learning rates, and with those of some families
multiplied by a factor. The head keeps its rate. Every training appends a row to ``results/mixed_rates.csv``; rows that
are there are not computed again.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import csv_rows
from peftscout.outcome import Evaluate, Fidelity
from peftscout.preparation import make_evaluator
from search_quality import STEPS, UNIFORM, Cell, plan_of, problem_of, study

RESULTS = Path(__file__).parent / "results" / "mixed_rates.csv"
COLUMNS = ("task", "budget", "plan", "rates", "seed", "cost", "score", "loss", "steps")
SPACE = "bipeft-s1"
MATRICES, VECTORS = ("lora", "lowrank_adapter"), ("bias", "norm")
RATES: dict[str, Mapping[str, float]] = {
    "as they are": {},
    "all / 3": dict.fromkeys((*MATRICES, *VECTORS), 1 / 3),
    "all x 2": dict.fromkeys((*MATRICES, *VECTORS), 2.0),
    "vectors / 3": dict.fromkeys(VECTORS, 1 / 3),
    "vectors / 10": dict.fromkeys(VECTORS, 0.1),
    "matrices / 3": dict.fromkeys(MATRICES, 1 / 3),
}
"""Name -> factors on the learning rates of op families."""


def run(glue: Path, tasks: list[str], budgets: list[str], plans: int, rates: list[str]) -> None:
    done = {tuple(row[c] for c in COLUMNS[:5]) for row in csv_rows.read(RESULTS)}
    seed = 0
    for task in tasks:
        problem, prepared = study(glue, task, SPACE)
        total = prepared.backbone.model_map.total
        with TemporaryDirectory() as cache:
            evaluator = make_evaluator(prepared, Path(cache))
            for budget in budgets:
                for contender in (UNIFORM, *(f"random-{n}" for n in range(plans))):
                    cell = Cell(task, budget, seed, contender, SPACE)
                    plan, _ = plan_of(cell, problem_of(problem, cell, total), evaluator)
                    for name in rates:
                        key = (task, budget, contender, name, str(seed))
                        if key in done:
                            continue
                        outcome = evaluator(
                            Evaluate(plan, Fidelity(STEPS), seed, op_lr_scales=tuple(RATES[name].items()))
                        )
                        row = [*key, outcome.cost, outcome.score, outcome.metrics.get("loss", ""), STEPS]
                        csv_rows.append(RESULTS, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])
                        print(*row, flush=True)


def table() -> None:
    """Print score and loss by task, budget and rates: of uniform LoRA, and the mean of the mixed plans."""
    found: dict[tuple[str, str], dict[str, dict[str, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in csv_rows.read(RESULTS):
        found[row["task"], row["budget"]][row["rates"]][row["plan"]] = (float(row["score"]), float(row["loss"]))
    print(
        "| task | budget | rates | uniform, score (loss) | mixed plans, mean | less that with the default rates | n |"
    )
    print("|---|---|---|---|---|---|---|")
    for (task, budget), by_rates in found.items():
        default = by_rates["as they are"]
        for name, by_plan in by_rates.items():
            mixed = sorted(by_plan.keys() & default.keys() - {UNIFORM})
            uniform = "{:.3f} ({:.3f})".format(*by_plan[UNIFORM]) if UNIFORM in by_plan else ""
            score, loss = (statistics.mean(by_plan[p][k] for p in mixed) for k in (0, 1))
            gains = [by_plan[p][0] - default[p][0] for p in mixed]
            spread = f" ± {statistics.stdev(gains):.3f}" if len(gains) > 1 else ""
            gain = f"{statistics.mean(gains):+.3f}{spread}"
            print(f"| {task} | {budget} | {name} | {uniform} | {score:.3f} ({loss:.3f}) | {gain} | {len(mixed)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("glue", type=Path)
    runner.add_argument("--tasks", nargs="+", default=["sst2", "stsb"])
    runner.add_argument("--budgets", nargs="+", default=["0.1%"])
    runner.add_argument("--plans", type=int, default=8)
    runner.add_argument("--rates", nargs="+", default=list(RATES), choices=list(RATES))
    commands.add_parser("table")
    args = vars(parser.parse_args())
    run(**args) if args.pop("command") == "run" else table()


if __name__ == "__main__":
    main()
