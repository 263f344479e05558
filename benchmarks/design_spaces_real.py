"""What a refinement of a design space decides on real tasks, and whether its rule is better than uniform LoRA.

    python benchmarks/design_spaces_real.py refine GLUE [--study studies/design_spaces_real] [--workers 2]
    python benchmarks/design_spaces_real.py check GLUE [--seeds 0 1 2] [--tasks sst2 stsb]
    python benchmarks/design_spaces_real.py table
    python benchmarks/design_spaces_real.py figure docs/design_spaces_real.png

GLUE: folder with sst2/, cola/, stsb/. ``refine`` is one ordinary study on MiniLM with three tasks: all designs of
``design_spaces_real.yaml`` at a budget of 0.5 %, 60 steps of 32 rows out of 1,500, scored on 500 search rows. Killed,
it goes on where it was. When it has ended its evaluations and the stage report are written to ``results/``.

``check`` then trains every other canonical plan of the found rule, uniform LoRA, and the first 3 plans that random
search draws from the same space at that budget, with fresh seeds and with twice the steps, and scores them on the
report split, of which the refinement saw no row. Every training appends a row; none that is there is computed again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from scipy.stats import t as student

import csv_rows
from peftscout.config import StudyConfig
from peftscout.demo import model_path
from peftscout.engine import run_study
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.preparation import Prepared, encode_split, make_evaluator, prepare
from peftscout.report.progress import PlainLines
from peftscout.strategies import make_strategy
from peftscout.strategies.design_spaces import DesignSpacesOptions, design_spaces
from peftscout.study import read_records
from peftscout.tasks import compute_metrics

HERE = Path(__file__).parent
EVALUATIONS = HERE / "results" / "design_spaces_real.csv"
STAGES = HERE / "results" / "design_spaces_real.json"
CHECKS = HERE / "results" / "design_spaces_check.csv"
EVALUATION_COLUMNS = (
    "number",
    "label",
    "task",
    "state",
    "seed",
    "lr_scale",
    "steps",
    "cost",
    "score",
    "seconds",
    "plan",
)
CHECK_COLUMNS = ("task", "contender", "seed", "cost", "score", "steps", "plan")
TASKS = ("sst2", "cola", "stsb")
BUDGET, STEPS, TRIALS = "0.5%", 60, 760
OPTIONS: Mapping[str, Any] = {
    "design_space": str(HERE / "design_spaces_real.yaml"),
    "models": 8,
    "least_models": 8,
    "rungs": [1.0],
    "reference": 8,
    "finalists": 4,
}
RULE_EVERY, RANDOM_PLANS = 2, 3
RULE, UNIFORM, RANDOM = "found rule", "uniform lora", "random"
FRESH = 1000
"""Seeds of ``check`` begin here: none is one of the refinement's."""


def config_for(glue: Path, workers: int | None = None) -> StudyConfig:
    """Return the configuration of the refinement. How many processes work at it changes no score."""
    data = [{"source": str(glue / t), "max_train_rows": 1500, "max_search_rows": 500} for t in TASKS]
    return StudyConfig.from_mapping(
        {
            "model": str(model_path()),
            "budget": BUDGET,
            "space": "all",
            "data": data[0],
            "also": data[1:],
            "strategy": "design-spaces",
            "strategy_options": dict(OPTIONS),
            "trials": TRIALS,
            "steps": STEPS,
            "final": {"seeds": 0},
            "training": {"threads": 1, "evaluations": 1},
            "executor": {"workers": workers},
        }
    )


# -- the refinement ---------------------------------------------------------------------------------------------------


def refine(args: argparse.Namespace) -> None:
    """Run the study, or go on with it, and write what it has found."""
    prepared = prepare(config_for(args.glue, args.workers))
    run_study(prepared, args.study, PlainLines())
    records = [r for r in read_records(args.study) if r.stage == "search" and r.outcome is not None]
    search = design_spaces(prepared.problem, DesignSpacesOptions(**OPTIONS))
    for record in records:
        assert record.outcome is not None
        search.tell(record.request, record.outcome)
    STAGES.write_text(json.dumps(search.report().to_json(), indent=1) + "\n", encoding="utf-8")
    EVALUATIONS.unlink(missing_ok=True)
    csv_rows.append(
        EVALUATIONS,
        EVALUATION_COLUMNS,
        (
            {
                "number": r.number,
                "label": r.request.label,
                "task": r.request.task or TASKS[0],
                "state": r.outcome.state,
                "seed": r.request.seed,
                "lr_scale": r.request.lr_scale,
                "steps": r.outcome.steps,
                "cost": r.outcome.cost,
                "score": "" if r.outcome.score is None else f"{r.outcome.score:.5f}",
                "seconds": f"{r.outcome.seconds:.2f}",
                "plan": str(r.request.plan),
            }
            for r in records
            if r.outcome is not None
        ),
    )


# -- its rule, on rows and seeds that it did not see ------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A plan under the name by which it is judged."""

    name: str
    plan: Plan


def contenders(prepared: Prepared) -> Iterator[Contender]:
    """Yield the plan of the found rule, uniform LoRA and the random plans."""
    found = json.loads(STAGES.read_text(encoding="utf-8"))
    for design in found["plans"][::RULE_EVERY]:
        yield Contender(RULE, Plan.from_json(design["plan"]))
    yield Contender(UNIFORM, prepared.problem.baseline)
    for request in make_strategy("random", prepared.problem, {}).ask(RANDOM_PLANS):
        yield Contender(RANDOM, request.plan)


def check(args: argparse.Namespace) -> None:
    """Train and score every contender on every task that is asked for with every seed."""
    done = {(r["task"], r["seed"], r["plan"]) for r in csv_rows.read(CHECKS)}
    prepared = prepare(config_for(args.glue))
    plans = list(contenders(prepared))
    of_task = {TASKS[0]: prepared, **prepared.others}
    for task in args.tasks:
        of = of_task[task]
        with TemporaryDirectory() as cache:
            score = partial(_report_score, of, Path(cache))
            for seed in args.seeds:
                for contender in plans:
                    if (task, str(seed), str(contender.plan)) in done:
                        continue
                    row = {"task": task, "contender": contender.name, "seed": seed, "steps": 2 * STEPS}
                    row |= score(contender.plan, seed) | {"plan": str(contender.plan)}
                    csv_rows.append(CHECKS, CHECK_COLUMNS, [row])
                    print(*(row[c] for c in CHECK_COLUMNS[:-1]), sep=",", flush=True)


def _report_score(prepared: Prepared, cache: Path, plan: Plan, seed: int) -> dict[str, Any]:
    evaluator = make_evaluator(prepared, cache)
    rows = encode_split(prepared, prepared.task.report.unlock(), cache)
    predicted: list[np.ndarray] = []
    outcome = evaluator(
        Evaluate(plan, Fidelity(2 * STEPS), FRESH + seed),
        after=lambda model: predicted.append(evaluator.predict(model, rows)),
    )
    if not outcome.done:
        raise RuntimeError(f"{prepared.task.name}, seed {seed}: {outcome.state}: {outcome.message}")
    metric = prepared.task.metric
    score = compute_metrics((metric,), predicted[0], rows.references)[metric]
    return {"cost": outcome.cost, "score": f"{score:.5f}"}


# -- reporting --------------------------------------------------------------------------------------------------------


def table() -> str:
    """Return Markdown: the stages, the options that were compared, and the check."""
    found = json.loads(STAGES.read_text(encoding="utf-8"))
    lines = [f"Rule: {found['rule']}.", "", "| stage | axis | verdict | kept | models | why |", "|---" * 6 + "|"]
    lines += [
        f"| {s['name']} | {s['axis']} | {s['verdict']} | {', '.join(s['kept'])} | {s['models'] or ''} | {s['why']} |"
        for s in found["stages"]
    ]
    lines += ["", "| stage | option | n | mean | 95 % interval | P(best) | less the best, SD | p | decision |"]
    lines += [
        "|---" * 9 + "|",
        *(_option(s, row) for s in found["stages"] for row in s["rows"] if row["mean"] is not None),
    ]
    return "\n".join([*lines, "", *_check_table(csv_rows.read(CHECKS))])


def _option(stage: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    low, high = row["interval"] or (float("nan"), float("nan"))
    p_value = "" if row["p_value"] is None else f"{row['p_value']:.3f}"
    likely = "" if row["probability_best"] is None else f"{row['probability_best']:.2f}"
    less = "" if row["difference"] is None else f"{row['difference']:.2f}"
    what = f"{stage['name']} {stage['axis']} | {row['option']} | {row['n']}"
    numbers = f"{row['mean']:.4f} | {low:.4f} to {high:.4f} | {likely} | {less} | {p_value}"
    return f"| {what} | {numbers} | {row['decision']} |"


def _check_table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield the mean score of each contender by task, and what the rule has over the others, with its interval."""
    where = list(dict.fromkeys((r["task"], r["seed"]) for r in rows))

    def mean(name: str, task: str, seed: str) -> float:
        return statistics.mean(
            float(r["score"]) for r in rows if (r["contender"], r["task"], r["seed"]) == (name, task, seed)
        )

    names = (RULE, UNIFORM, RANDOM)
    yield f"| task | seeds | {' | '.join(names)} |"
    yield "|---" * 5 + "|"
    for task in dict.fromkeys(task for task, _ in where):
        seeds = [seed for of, seed in where if of == task]
        cells = (f"{statistics.mean(mean(name, task, seed) for seed in seeds):.4f}" for name in names)
        yield f"| {task} | {len(seeds)} | {' | '.join(cells)} |"
    for other in names[1:]:
        gains = [mean(RULE, *place) - mean(other, *place) for place in where]
        if len(gains) > 1:
            half = float(student.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / len(gains) ** 0.5
            middle = statistics.mean(gains)
            yield ""
            yield f"Rule less {other}: {middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}], n = {len(gains)}."


def figure(out: Path) -> None:
    """Draw the distribution of scores under every option that was compared, a panel a stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = json.loads(STAGES.read_text(encoding="utf-8"))
    stages = [s for s in found["stages"] if s["edf"]]
    rows = -(-len(stages) // 3)
    drawing, panels = plt.subplots(rows, 3, figsize=(13, 3.8 * rows), squeeze=False, layout="constrained")
    for panel, stage in zip(panels.flat, stages, strict=False):
        for option, points in stage["edf"].items():
            scores, shares = [points[0][0], *(p[0] for p in points)], [0.0, *(p[1] for p in points)]
            panel.step(scores, shares, where="post", label=option)
        panel.set(
            xlabel="mean score over the tasks", ylabel="share of models", title=f"{stage['name']} {stage['axis']}"
        )
        panel.legend(fontsize="x-small")
    for panel in panels.flat[len(stages) :]:
        panel.set_axis_off()
    drawing.savefig(out, dpi=130)
    plt.close(drawing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    refining = commands.add_parser("refine")
    refining.add_argument("glue", type=Path)
    refining.add_argument("--study", type=Path, default=Path("studies/design_spaces_real"))
    refining.add_argument("--workers", type=int)
    checking = commands.add_parser("check")
    checking.add_argument("glue", type=Path)
    checking.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    checking.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    commands.add_parser("table")
    commands.add_parser("figure").add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "refine":
        refine(args)
    elif args.command == "check":
        check(args)
    elif args.command == "table":
        print(table())
    else:
        figure(args.out)


if __name__ == "__main__":
    main()
