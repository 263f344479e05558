"""Is what a search finds better than a random plan, and than uniform LoRA, of the same budget?

    python benchmarks/search_quality.py run GLUE --tasks sst2 [--strategies scout bipeft s3delta random] [--space S]
    python benchmarks/search_quality.py table [--space S]
    python benchmarks/search_quality.py figure docs/search_quality.png

GLUE: folder with sst2/, cola/, stsb/, qnli/. For every task, budget and seed each strategy searches once on MiniLM; its
plan is then trained from fresh weights with that seed; so are the first 8 plans of random search, and uniform LoRA.
Scores are those of the last step on the search split, of which no search on a supernet sees a row. AutoPEFT trains 40
plans in its search; it does so on other rows of the task, so that it does not choose by the scores that are reported
(a few rows may be in both samples). ``best of 8`` is chosen by these, so it is flattered; and ``uniform, tuned`` and
``scout, tuned`` a little: for every task and budget they have the best of three learning-rate factors by its mean over
the seeds, where all others have the default rates. A search costs its CPU time over that of one training.
Intervals are of Student's t over (task, budget, seed): they hold for these tasks, not for tasks in general.

Every training appends a row to ``results/search_quality.csv``; rows that are there are not computed again, so that a
run can be stopped at any time. Runs of different tasks may go on side by side.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scipy.stats import t as student

import csv_rows
from peftscout.config import StudyConfig
from peftscout.demo import model_path
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Budget, Plan
from peftscout.preparation import make_evaluator, prepare
from peftscout.strategies import make_strategy
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import lora_on_query_value
from peftscout.training.evaluator import Evaluator
from peftscout.training.one_shot import one_shot_factory

RESULTS = Path(__file__).parent / "results" / "search_quality.csv"
COLUMNS = (
    "task", "budget", "seed", "contender", "space", "cost", "score", "loss", "steps", "train_seconds", "search_seconds",
    "plan",
)  # fmt: skip
TASKS = ("sst2", "cola", "stsb", "qnli")
BUDGETS = ("0.02%", "0.1%", "0.5%")
STEPS, ROWS, SEARCH_ROWS = 110, 1500, 500
RANDOM_PLANS = 8
UNIFORM = "uniform"
FACTORS = (0.33, 3)
"""Learning-rate factors, beside 1, of the contenders that are tuned, written ``uniform x3``."""

TUNED = {"tuned": UNIFORM, "scout-tuned": "scout"}
"""Name on the command line -> contender, whose plan is trained with each of `FACTORS`."""

SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "scout": ("scout", {}),
    "bipeft": ("bipeft", {"estimator": "bilevel"}),
    "bipeft-split": ("bipeft", {"estimator": "split"}),
    "s3delta": ("s3delta", {}),
    "s3delta-split": ("s3delta", {"estimator": "split"}),
    "autopeft": ("autopeft", {}),
}
"""Contender -> strategy and options. ``random`` and ``uniform`` are the others."""

BEST_UNIFORM = "uniform, tuned"
COMPARED = ("scout", "scout, tuned", *(name for name in SEARCHES if name != "scout"))
PAIRS = (
    *(("scout", name) for name in SEARCHES if name != "scout"),
    ("bipeft-split", "bipeft"),
    ("s3delta-split", "s3delta"),
)

TRAINING = ("autopeft",)
"""Contenders that train plans in their search; the others search on a supernet."""

TRAINED_TRIALS, ELSEWHERE = 40, 1
"""Trainings of a search that trains its plans, and the seed of the sample of rows on which it does."""


@dataclass(frozen=True)
class Cell:
    """One plan to be found and trained."""

    task: str
    budget: str
    seed: int
    contender: str
    space: str

    @property
    def key(self) -> tuple[str, ...]:
        """As in the first columns; uniform LoRA is the same in every space."""
        return (
            self.task,
            self.budget,
            str(self.seed),
            self.contender,
            self.space if self.base != UNIFORM else "",
        )

    @property
    def base(self) -> str:
        """The contender without its learning-rate factor."""
        return self.contender.partition(" x")[0]

    @property
    def factor(self) -> float:
        return float(self.contender.partition(" x")[2] or 1)


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    """Return the key of the cell that a row is of."""
    return Cell(row["task"], row["budget"], int(row["seed"]), row["contender"], row["space"]).key


def cells(tasks: list[str], budgets: list[str], seeds: list[int], strategies: list[str], space: str) -> Iterator[Cell]:
    """Yield the cells; those of one seed first, so that a run that was stopped has whole comparisons."""
    for seed in seeds:
        for task in tasks:
            for budget in budgets:
                for name in (UNIFORM, *strategies):
                    yield from (Cell(task, budget, seed, each, space) for each in contenders(name))


def contenders(name: str) -> list[str]:
    """Return the contenders of a name on the command line."""
    if name in TUNED:
        return [f"{TUNED[name]} x{factor}" for factor in FACTORS]
    return [f"random-{n}" for n in range(RANDOM_PLANS)] if name == "random" else [name]


def study(glue: Path, task: str, space: str, seed: int = 0) -> tuple[Problem, Any]:
    """Return the problem of a task, its budget still open, and what is prepared; ``seed`` is of the sample of rows."""
    prepared = prepare(
        StudyConfig.from_mapping(
            {
                "model": str(model_path()),
                "budget": BUDGETS[-1],
                "space": space,
                "steps": STEPS,
                "seed": seed,
                "data": {"source": str(glue / task), "max_train_rows": ROWS, "max_search_rows": SEARCH_ROWS},
                "training": {"threads": 1, "evaluations": 1},
            }
        )
    )
    return prepared.problem, prepared


def problem_of(problem: Problem, cell: Cell, total: int) -> Problem:
    budget = Budget.parse(cell.budget, total, 4)
    baseline = lora_on_query_value(problem.sites, budget).plan
    return replace(problem, budget=budget, baseline=baseline, seed=cell.seed, trials=None)


def plan_of(
    cell: Cell, problem: Problem, evaluator: Evaluator, elsewhere: Evaluator | None = None
) -> tuple[Plan, float]:
    """Return the plan of a cell, and the CPU seconds of finding it; ``elsewhere`` trains on other rows."""
    if cell.base == UNIFORM:
        return problem.baseline, 0.0
    if cell.contender != cell.base:
        if (plan := found_plan(replace(cell, contender=cell.base))) is None:
            raise SystemExit(f"{cell.contender}: there is no row of {cell.base} for it yet; name that first")
        return plan, 0.0
    name, _, number = cell.contender.partition("-")
    if name == "random":
        return make_strategy("random", problem, {}).ask(RANDOM_PLANS)[int(number)].plan, 0.0
    strategy, options = SEARCHES[cell.contender]
    started = time.process_time()
    if cell.contender in TRAINING:
        if elsewhere is None:
            raise ValueError(f"{cell.contender} trains in its search: give it an evaluator of other rows")
        plan = best_trained(strategy, options, problem, elsewhere)
    else:
        with TemporaryDirectory() as folder:
            factory = one_shot_factory(evaluator, problem.space, Path(folder))
            (request,) = make_strategy(strategy, replace(problem, one_shot=factory), options).ask(1)
            plan = request.plan
    return plan, time.process_time() - started


def found_plan(cell: Cell) -> Plan | None:
    """Return the plan of a cell that has a row."""
    of_cell = [row["plan"] for row in read() if key_of(row) == cell.key]
    return plan_from(of_cell[0]) if of_cell else None


def plan_from(text: str) -> Plan:
    """Return the plan that was written as ``layers.0.ffn.up: lora 4; layers.1.attention.q: bias``."""
    sizes = {}
    for placement in text.split("; "):
        site, written = placement.split(": ")
        op, _, size = written.partition(" ")
        sizes[site, op] = int(size or 1)
    return Plan.of(sizes)


def best_trained(strategy: str, options: dict[str, Any], problem: Problem, evaluator: Evaluator) -> Plan:
    """Return the plan with the best score of those that a strategy trains."""
    search = make_strategy(strategy, replace(problem, trials=TRAINED_TRIALS + 1), options)
    found: list[tuple[float, Plan]] = []
    while batch := search.ask(1):
        outcome = evaluator(batch[0])
        search.tell(batch[0], outcome)
        if outcome.score is not None:
            found.append((outcome.score, batch[0].plan))
    return max(found, key=lambda each: each[0])[1]


def measure(cell: Cell, problem: Problem, evaluator: Evaluator, elsewhere: Evaluator | None) -> dict[str, Any]:
    """Return the row of a cell."""
    plan, search_seconds = plan_of(cell, problem, evaluator, elsewhere)
    started = time.process_time()
    outcome = evaluator(Evaluate(plan, Fidelity(STEPS), cell.seed, cell.factor))
    seconds = time.process_time() - started
    if outcome.score is None:
        raise RuntimeError(f"{cell}: {outcome.state}: {outcome.message}")
    return {
        "task": cell.task,
        "budget": cell.budget,
        "seed": cell.seed,
        "contender": cell.contender,
        "space": cell.space,
        "cost": outcome.cost,
        "score": f"{outcome.score:.5f}",
        "loss": f"{outcome.metrics['loss']:.5f}",
        "steps": STEPS,
        "train_seconds": f"{seconds:.1f}",
        "search_seconds": f"{search_seconds:.1f}",
        "plan": str(plan),
    }


def read() -> list[dict[str, str]]:
    return csv_rows.read(RESULTS)


def append(row: dict[str, Any]) -> None:
    """Add one row to the results."""
    csv_rows.append(RESULTS, COLUMNS, [row])


def run(args: argparse.Namespace) -> None:
    done = {key_of(row) for row in read()}
    for task in args.tasks:
        wanted = cells([task], args.budgets, args.seeds, args.strategies, args.space)
        left = [c for c in wanted if c.key not in done]
        if not left:
            continue
        problem, prepared = study(args.glue, task, args.space)
        with TemporaryDirectory() as cache, TemporaryDirectory() as other_cache:
            evaluator, elsewhere = make_evaluator(prepared, Path(cache)), None
            if any(c.contender in TRAINING for c in left):
                elsewhere = make_evaluator(study(args.glue, task, args.space, ELSEWHERE)[1], Path(other_cache))
            for cell in left[: args.most]:
                of_cell = problem_of(problem, cell, prepared.backbone.model_map.total)
                row = measure(cell, of_cell, evaluator, elsewhere)
                append(row)
                print(",".join(str(row[c]) for c in COLUMNS[:-1]), flush=True)


Where = tuple[str, str, str]
"""Task, budget, seed."""


def scores(space: str) -> dict[str, dict[Where, float]]:
    """Return contender -> where -> score, with the mean and the best of the random plans as contenders."""
    found: dict[str, dict[Where, float]] = defaultdict(dict)
    random: dict[Where, list[float]] = defaultdict(list)
    for r in read():
        where, contender, score = (r["task"], r["budget"], r["seed"]), r["contender"], float(r["score"])
        if r["space"] not in (space, "") and contender.partition(" x")[0] != UNIFORM:
            continue
        if contender.startswith("random-"):
            random[where].append(score)
        else:
            found[contender][where] = score
    whole = {where: values for where, values in random.items() if len(values) == RANDOM_PLANS}
    found["random, mean"] = {where: statistics.mean(values) for where, values in whole.items()}
    found["random, best of 8"] = {where: max(values) for where, values in whole.items()}
    for base in TUNED.values():
        found[f"{base}, tuned"] = tuned(found, base)
    names = (UNIFORM, BEST_UNIFORM, "random, mean", "random, best of 8", *COMPARED)
    return {name: found[name] for name in names if found[name]}


def tuned(found: dict[str, dict[Where, float]], base: str) -> dict[Where, float]:
    """Return where -> score of ``base`` with the factor that is best, on the mean, for the task and the budget."""
    names = (base, *(f"{base} x{factor}" for factor in FACTORS))
    complete = set[Where].intersection(*(set(found[name]) for name in names))
    by_cell: dict[tuple[str, str], list[Where]] = defaultdict(list)
    for where in sorted(complete):
        by_cell[where[:2]].append(where)
    best = dict[Where, float]()
    for several in by_cell.values():
        chosen = max(names, key=lambda name: statistics.mean(found[name][where] for where in several))
        best |= {where: found[chosen][where] for where in several}
    return best


def table(space: str) -> str:
    """Return Markdown tables of a space: means over seeds; differences to uniform and random, costs; of searches."""
    by = scores(space)
    lines = [f"| task | budget | {' | '.join(by)} |", "|---" * (2 + len(by)) + "|"]
    for task, budget in sorted(dict.fromkeys(where[:2] for where in by[UNIFORM]), key=_order):
        means = [_mean([s for where, s in of.items() if where[:2] == (task, budget)]) for of in by.values()]
        lines.append(f"| {task} | {budget} | {' | '.join(means)} |")
    lines += [
        "",
        "| search | less the random mean | n | less uniform | n | less uniform, tuned | n | search, in trainings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in [n for n in COMPARED if n in by]:
        against = [_difference(by[name], by.get(other, {})) for other in ("random, mean", UNIFORM, BEST_UNIFORM)]
        lines.append(f"| {name} | {' | '.join(against)} | {_multiple(name, space)} |")
    both = [pair for pair in PAIRS if set(by.get(pair[0], {})) & set(by.get(pair[1], {}))]
    if both:
        lines += ["", "| difference | score | n |", "|---|---|---|"]
        lines += [f"| {ours} less {others} | {_difference(by[ours], by[others])} |" for ours, others in both]
    return "\n".join(lines)


def _order(cell: tuple[str, str]) -> tuple[int, float]:
    return TASKS.index(cell[0]), float(cell[1].rstrip("%"))


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" if values else ""


def _difference(ours: dict[Where, float], others: dict[Where, float]) -> str:
    return paired([ours[where] - others[where] for where in ours if where in others])


def paired(pairs: list[float]) -> str:
    """Return a mean difference with its interval, and behind a bar how many pairs there are."""
    if len(pairs) < 2:
        return f"{_mean(pairs)} | {len(pairs)}"
    half = float(student.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / len(pairs) ** 0.5
    mean = statistics.mean(pairs)
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] | {len(pairs)}"


def _multiple(name: str, space: str) -> str:
    """Return the median CPU time of a search over that of training the plan that it found."""
    rows = [r for r in read() if r["contender"] == name and r["space"] == space]
    if not rows:
        return ""
    return f"{statistics.median(float(r['search_seconds']) / float(r['train_seconds']) for r in rows):.1f}"


def figure(space: str, out: Path) -> None:
    """Draw every score, a panel for each task that was learnt: by budget, and side by side within it by contender."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    by = scores(space)
    everywhere = [r for r in read() if r["space"] == space and r["contender"].startswith("random-")]
    random = {(r["task"], r["budget"], r["seed"], r["contender"]): float(r["score"]) for r in everywhere}
    drawn = [name for name in (UNIFORM, BEST_UNIFORM, *COMPARED) if name in by]
    tasks = [task for task in TASKS if any(where[0] == task for name in drawn for where in by[name])]
    lines = -(-len(tasks) // 2)
    drawing, panels = plt.subplots(lines, 2, figsize=(10, 3.6 * lines + 0.4), squeeze=False, layout="constrained")
    for panel in panels.flat[len(tasks) :]:
        panel.set_axis_off()
    for panel, task in zip(panels.flat, tasks, strict=False):
        for x, budget in enumerate(BUDGETS):
            every = [score for where, score in random.items() if where[:2] == (task, budget)]
            _column(panel, x, 0, "random", every, len(drawn))
            for n, name in enumerate(drawn, start=1):
                _column(
                    panel, x, n, name, [s for where, s in by[name].items() if where[:2] == (task, budget)], len(drawn)
                )
        panel.set_xticks(range(len(BUDGETS)), BUDGETS)
        panel.set(title=task, xlabel="budget, share of the backbone", ylabel="score, search split")
        panel.set_xlim(-0.5, len(BUDGETS) - 0.5)
        panel.grid(axis="y", alpha=0.3)
        for edge in range(1, len(BUDGETS)):
            panel.axvline(edge - 0.5, color="0.8", linewidth=0.8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    drawing.savefig(out, dpi=150)
    plt.close(drawing)


def _column(panel: Any, budget: int, column: int, name: str, values: list[float], columns: int) -> None:
    """Draw the scores of one contender at one budget, and their mean as a bar."""
    x, colour = budget + 0.8 * (column / columns - 0.5), "0.6" if column == 0 else f"C{column - 1}"
    panel.scatter([x] * len(values), values, s=14, color=colour, alpha=0.6, label=name if budget == 0 else None)
    if values:
        panel.plot([x - 0.04, x + 0.04], [statistics.mean(values)] * 2, color=colour, linewidth=2.5)


NAMES = ("random", *SEARCHES, *TUNED)
"""What may be asked for beside uniform LoRA."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table").add_argument("--space", default="bipeft-s1")
    drawing = commands.add_parser("figure")
    drawing.add_argument("out", type=Path)
    drawing.add_argument("--space", default="bipeft-s1")
    running = commands.add_parser("run")
    running.add_argument("glue", type=Path)
    running.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    running.add_argument("--budgets", nargs="*", default=list(BUDGETS))
    running.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    running.add_argument("--strategies", nargs="*", default=list(NAMES), choices=NAMES)
    running.add_argument("--space", default="bipeft-s1")
    running.add_argument("--most", type=int, help="cells of a task after which to stop")
    args = parser.parse_args()
    match args.command:
        case "table":
            print(table(args.space))
        case "figure":
            figure(args.space, args.out)
        case _:
            run(args)


if __name__ == "__main__":
    main()
