"""Do plans that mix op families, or have many modules, want lower learning rates than each family alone?

    python benchmarks/mixed_rates.py run GLUE --budgets 0.5% --plans random-4 --rates "all x0.5" "norm x0.33"
    python benchmarks/mixed_rates.py table

GLUE: folder with sst2/, stsb/. Plans of the space bipeft-s1 (LoRA, low-rank adapters, biases, norms) are trained as in
`search_quality`, with the default learning rates and with those of some families multiplied by a factor: of ``all``,
``vectors`` (biases, norms), ``matrices``, or one op. The head keeps its rate. A plan is ``uniform``, ``random-N`` or
``all-linear-R`` (LoRA of rank R on every projection, whatever the budget). Every training appends a row to
``results/mixed_rates.csv``; rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory

import csv_rows
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.preparation import make_evaluator
from peftscout.strategies.base import Problem
from peftscout.training.evaluator import Evaluator
from search_quality import STEPS, UNIFORM, Cell, plan_of, problem_of, study

RESULTS = Path(__file__).parent / "results" / "mixed_rates.csv"
COLUMNS = ("task", "budget", "plan", "rates", "seed", "modules", "cost", "score", "loss", "steps")
SPACE, SEED = "bipeft-s1", 0
DEFAULT = "as they are"
MATRICES, VECTORS = ("lora", "lowrank_adapter"), ("bias", "norm")
GROUPS = {"all": (*MATRICES, *VECTORS), "matrices": MATRICES, "vectors": VECTORS}
LINEAR = "all-linear-"


def factors(rates: str) -> dict[str, float]:
    """Return op -> factor of ``vectors x0.33``."""
    if rates == DEFAULT:
        return {}
    group, _, factor = rates.rpartition(" x")
    return dict.fromkeys(GROUPS.get(group, (group,)), float(factor))


def plan_named(name: str, task: str, budget: str, problem: Problem, evaluator: Evaluator) -> Plan:
    """Return a plan by its name, see the module."""
    cell = Cell(task, budget, SEED, name, SPACE)
    if name == UNIFORM or name.startswith("random-"):
        return plan_of(cell, problem, evaluator)[0]
    if name.startswith(LINEAR):
        rank = int(name.removeprefix(LINEAR))
        return Plan.of({(site.id, "lora"): rank for site in problem.sites.values() if site.kind == "linear"})
    raise SystemExit(f"{name}: a plan is {UNIFORM}, random-N or {LINEAR}R")


def run(glue: Path, tasks: list[str], budgets: list[str], plans: list[str], rates: list[str]) -> None:
    done = {tuple(row[c] for c in COLUMNS[:5]) for row in csv_rows.read(RESULTS)}
    for task in tasks:
        whole, prepared = study(glue, task, SPACE)
        total = prepared.backbone.model_map.total
        with TemporaryDirectory() as cache:
            evaluator = make_evaluator(prepared, Path(cache))
            for budget, name, each in product(budgets, plans, (DEFAULT, *rates)):
                problem = problem_of(whole, Cell(task, budget, SEED, name, SPACE), total)
                plan = plan_named(name, task, budget, problem, evaluator)
                scales = {op: factor for op, factor in factors(each).items() if op in plan.ops}
                key = (task, budget, name, each, str(SEED))
                if key in done or (each != DEFAULT and not scales):
                    continue
                outcome = evaluator(Evaluate(plan, Fidelity(STEPS), SEED, op_lr_scales=tuple(scales.items())))
                loss = outcome.metrics.get("loss", "")
                row = [*key, len(plan), outcome.cost, outcome.score, loss, STEPS]
                csv_rows.append(RESULTS, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])
                print(*row, flush=True)


def table() -> None:
    """Print score and loss of every plan, by rates; plans with few modules first."""
    rows = sorted(csv_rows.read(RESULTS), key=lambda r: (r["task"], int(r["modules"]), r["budget"], r["plan"]))
    print("| task | plan | budget | modules | rates: score (loss) |")
    print("|---|---|---|---|---|")
    for (task, plan, budget, modules), of_plan in groupby(rows, itemgetter("task", "plan", "budget", "modules")):
        found = [f"{r['rates']}: {float(r['score']):.3f} ({float(r['loss']):.3f})" for r in of_plan]
        print(f"| {task} | {plan} | {'' if plan.startswith(LINEAR) else budget} | {modules} | {'; '.join(found)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("glue", type=Path)
    runner.add_argument("--tasks", nargs="+", default=["sst2", "stsb"])
    runner.add_argument("--budgets", nargs="+", default=["0.1%"])
    runner.add_argument("--plans", nargs="+", default=[UNIFORM, *(f"random-{n}" for n in range(8))])
    runner.add_argument("--rates", nargs="*", default=["all x0.5"])
    commands.add_parser("table")
    args = vars(parser.parse_args())
    run(**args) if args.pop("command") == "run" else table()


if __name__ == "__main__":
    main()
