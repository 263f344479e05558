"""Do plans that mix op families, or have many modules, want lower learning rates than each family alone?

    python benchmarks/mixed_rates.py run GLUE --budgets 0.5% --plans random-4 --rates "all x0.5" "by the rule"
    python benchmarks/mixed_rates.py table

GLUE: folder with sst2/, stsb/. Plans of the space bipeft-s1 (LoRA, low-rank adapters, biases, norms) are trained as in
`search_quality`: with the learning rates that were measured with each family alone; with these, those of some families
multiplied by a factor: of ``all``, ``vectors`` (biases, norms), ``matrices``, or one op; and with the rates that
peftscout gives them (`schedule.vectors_among_others`), ``by the rule``. The head keeps its rate. A plan is ``uniform``,
``random-N``, ``all-linear-R`` (LoRA of rank R on every projection, whatever the budget) or, by the name of its
contender, one that `search_quality` has a row of. Every training appends a row to ``results/mixed_rates.csv``; rows
that are there are not computed again. At its end the table has the paired differences of the rule to the rates alone,
over all plans for which they are not the same.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
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
from peftscout.training.schedule import vectors_among_others
from search_quality import STEPS, UNIFORM, Cell, found_plan, paired, plan_of, problem_of, study

RESULTS = Path(__file__).parent / "results" / "mixed_rates.csv"
OF_PLAN = ("task", "budget", "plan", "seed")
COLUMNS = ("task", "budget", "plan", "rates", "seed", "modules", "cost", "score", "loss", "steps")
SPACE = "bipeft-s1"
ALONE, RULE = "alone", "by the rule"
MATRICES, VECTORS = ("lora", "lowrank_adapter"), ("bias", "norm")
GROUPS = {"all": (*MATRICES, *VECTORS), "matrices": MATRICES, "vectors": VECTORS}
LINEAR = "all-linear-"


def factors(rates: str) -> dict[str, float]:
    """Return op -> factor of ``vectors x0.33``."""
    if rates == ALONE:
        return {}
    group, _, factor = rates.rpartition(" x")
    return dict.fromkeys(GROUPS.get(group, (group,)), float(factor))


def scales(rates: str, plan: Plan, problem: Problem) -> dict[str, float]:
    """Return op -> factor that makes ``rates`` of those that the plan gets; none where that is what it gets."""
    if rates == RULE:
        return {}
    alone = dict.fromkeys(VECTORS, 1 / vectors_among_others(plan, problem.sites))
    named = factors(rates)
    return {op: f for op in plan.ops if (f := alone.get(op, 1.0) * named.get(op, 1.0)) != 1.0}


def plan_named(cell: Cell, problem: Problem, evaluator: Evaluator) -> Plan:
    """Return a plan by its name, see the module."""
    name = cell.contender
    if (found := found_plan(cell)) is not None:
        return found
    if name == UNIFORM or name.startswith("random-"):
        return plan_of(cell, problem, evaluator)[0]
    if name.startswith(LINEAR):
        rank = int(name.removeprefix(LINEAR))
        return Plan.of({(site.id, "lora"): rank for site in problem.sites.values() if site.kind == "linear"})
    raise SystemExit(f"{name}: a plan is {UNIFORM}, random-N, {LINEAR}R or in the rows of search_quality")


def run(glue: Path, tasks: list[str], budgets: list[str], seeds: list[int], plans: list[str], rates: list[str]) -> None:
    done = {tuple(row[c] for c in COLUMNS[:5]) for row in csv_rows.read(RESULTS)}
    for task in tasks:
        whole, prepared = study(glue, task, SPACE)
        total = prepared.backbone.model_map.total
        with TemporaryDirectory() as cache:
            evaluator = make_evaluator(prepared, Path(cache))
            for budget, seed, name in product(budgets, seeds, plans):
                cell = Cell(task, budget, seed, name, SPACE)
                problem = problem_of(whole, cell, total)
                plan = plan_named(cell, problem, evaluator)
                already = set[tuple[tuple[str, float], ...]]()
                for each in (ALONE, *rates):
                    of_ops = tuple(scales(each, plan, problem).items())
                    key = (task, budget, name, each, str(seed))
                    if key not in done and of_ops not in already:
                        outcome = evaluator(Evaluate(plan, Fidelity(STEPS), seed, op_lr_scales=of_ops))
                        loss = outcome.metrics.get("loss", "")
                        row = [*key, len(plan), outcome.cost, outcome.score, loss, STEPS]
                        csv_rows.append(RESULTS, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])
                        print(*row, flush=True)
                    already.add(of_ops)


def table() -> None:
    """Print score and loss of every plan that was tried with factors, and what the rule changes over all plans."""
    rows = sorted(csv_rows.read(RESULTS), key=lambda r: (r["task"], int(r["modules"]), *(r[c] for c in OF_PLAN[1:])))
    print("| task | plan | budget | modules | rates: score (loss) |")
    print("|---|---|---|---|---|")
    pairs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (task, budget, plan, _, modules), of_plan in groupby(rows, itemgetter(*OF_PLAN, "modules")):
        by = {r["rates"]: (float(r["score"]), float(r["loss"])) for r in of_plan}
        if RULE in by and ALONE in by:
            pairs[task, budget].append(by[RULE][0] - by[ALONE][0])
        if set(by) - {RULE, ALONE} or plan == UNIFORM:
            found = "; ".join(f"{rates}: {score:.3f} ({loss:.3f})" for rates, (score, loss) in by.items())
            print(f"| {task} | {plan} | {'' if plan.startswith(LINEAR) else budget} | {modules} | {found} |")
    print(f"\n| task | budget | plans | score {RULE} less {ALONE} | better, worse |\n|---|---|---|---|---|")
    for (task, budget), differences in sorted(pairs.items()):
        better, worse = (sum(sign * d > 0 for d in differences) for sign in (1, -1))
        interval, n = paired(differences).rsplit(" | ", 1)
        print(f"| {task} | {budget} | {n} | {interval} | {better}, {worse} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("glue", type=Path)
    runner.add_argument("--tasks", nargs="+", default=["sst2", "stsb"])
    runner.add_argument("--budgets", nargs="+", default=["0.1%"])
    runner.add_argument("--seeds", nargs="+", type=int, default=[0])
    runner.add_argument("--plans", nargs="+", default=[UNIFORM, *(f"random-{n}" for n in range(8))])
    runner.add_argument("--rates", nargs="*", default=[RULE])
    commands.add_parser("table")
    args = vars(parser.parse_args())
    run(**args) if args.pop("command") == "run" else table()


if __name__ == "__main__":
    main()
