"""The front that AutoPEFT finds on real data, against random search at the same number of training steps.

    python benchmarks/autopeft_real.py run GLUE [--tasks sst2 stsb] [--seeds 0 1] [--contenders autopeft random]
    python benchmarks/autopeft_real.py table
    python benchmarks/autopeft_real.py figure docs/autopeft_real.png

GLUE: folder with sst2/ and stsb/. MiniLM, 40 trials at low fidelity (110 steps of 32 rows out of 1,500), scored on 500
search rows. Trial 0, uniform LoRA, is the same for all and left out. The figure of merit is the hypervolume over log10
cost between the majority score and the observed front, up to 1.25 times the budget, in units of score x decades.
Scores are those that the search saw, so every front is flattered by the noise of one evaluation, all of them alike.

A contender's run is an ordinary study under ``--studies``: killed, it goes on where it was. When it has ended its
trials are appended to the CSV; runs that are there are not run again. ``random`` fills the budget with every plan, as
the strategy of that name does; ``spread`` is AutoPEFT's initial design going on to the end: what spreading over the
cost axis does without a model; ``early-stop`` is AutoPEFT with hopeless runs stopped at rungs.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import csv_rows
from peftscout.config import StudyConfig
from peftscout.demo import model_path
from peftscout.engine import run_study
from peftscout.front import front_of
from peftscout.ledger import Record
from peftscout.preparation import Prepared, prepare
from peftscout.report.progress import PlainLines
from peftscout.study import read_records
from peftscout.surrogate.staircase import Reference, hypervolume

RESULTS = Path(__file__).parent / "results" / "autopeft_real.csv"
COLUMNS = (
    "task", "contender", "seed", "number", "label", "state", "full", "cost", "score", "steps", "steps_so_far",
    "steps_allowed", "reference_score", "budget", "plan",
)  # fmt: skip
TASKS = ("sst2", "stsb")
BUDGET, TRIALS, STEPS, ROWS, SEARCH_ROWS = "1%", 40, 110, 1500, 500
MARGIN = 1.25
"""The reference cost over the budget, so that a plan which uses all of it still counts."""

CONTENDERS: Mapping[str, Mapping[str, Any]] = {
    "autopeft": {"strategy": "autopeft"},
    "random": {"strategy": "random"},
    "spread": {"strategy": "autopeft", "strategy_options": {"initial": 10_000}},
    "early-stop": {"strategy": "autopeft", "fidelity": "early-stop"},
}
Row = Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One search."""

    task: str
    contender: str
    seed: int

    @property
    def key(self) -> tuple[str, str, str]:
        return self.task, self.contender, str(self.seed)


# -- running ----------------------------------------------------------------------------------------------------------


def prepared_for(cell: Cell, glue: Path, trials: int, steps: int) -> Prepared:
    """Return the study of a cell, ready to run."""
    data = {"source": str(glue / cell.task), "max_train_rows": ROWS, "max_search_rows": SEARCH_ROWS}
    fixed = {"model": str(model_path()), "budget": BUDGET, "space": "autopeft", "data": data, "seed": cell.seed}
    fixed |= {"trials": trials, "steps": steps, "final": {"seeds": 0}, "training": {"threads": 1}}
    return prepare(StudyConfig.from_mapping(fixed | dict(CONTENDERS[cell.contender])))


def rows_of(cell: Cell, prepared: Prepared, records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a finished search; a run that went on from a rung takes the steps in between."""
    furthest: dict[str, int] = defaultdict(int)
    problem = prepared.problem
    for record in records:
        request, outcome = record.request, record.outcome
        if record.number == 0 or outcome is None:
            continue
        furthest[request.course] = max(furthest[request.course], request.fidelity.steps)
        yield dict(
            zip(
                COLUMNS,
                (
                    *cell.key, record.number, request.label, outcome.state, request.fidelity.full, outcome.cost,
                    "" if outcome.score is None else f"{outcome.score:.5f}", request.fidelity.steps,
                    sum(furthest.values()), (prepared.config.trials - 1) * problem.fidelity.steps,
                    f"{problem.reference_score:.5f}", problem.budget.parameters, request.plan,
                ),
                strict=True,
            )
        )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    done = {(r["task"], r["contender"], r["seed"]) for r in csv_rows.read(args.results)}
    cells = [Cell(task, name, seed) for seed in args.seeds for task in args.tasks for name in args.contenders]
    for cell in cells:
        if cell.key in done:
            continue
        prepared = prepared_for(cell, args.glue, args.trials, args.steps)
        folder = args.studies / "-".join((*cell.key, str(args.trials), str(args.steps)))
        run_study(prepared, folder, PlainLines())
        csv_rows.append(args.results, COLUMNS, rows_of(cell, prepared, read_records(folder)))


# -- reporting --------------------------------------------------------------------------------------------------------


def searches(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, list[Row]]]:
    """Return (task, contender) -> seed -> rows."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["task"], row["contender"]][row["seed"]].append(row)
    return found


def evaluated(rows: Sequence[Row], share: float = 1.0) -> list[Row]:
    """Return the full trainings with a score within that share of the steps."""
    within = [r for r in rows if int(r["steps_so_far"]) <= share * int(r["steps_allowed"])]
    return [r for r in within if r["full"] == "True" and r["score"]]


def volume(rows: Sequence[Row], share: float = 1.0) -> float:
    """Return the hypervolume after that share of the steps, in score x decades of cost."""
    reference = Reference(float(np.log10(MARGIN * int(rows[0]["budget"]))), float(rows[0]["reference_score"]))
    full = evaluated(rows, share)
    costs = np.log10([float(r["cost"]) for r in full])
    return hypervolume(costs, np.array([float(r["score"]) for r in full]), reference)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table: mean hypervolume over seeds after a quarter, half and all of the steps."""
    lines = ["| task | contender | seeds | plans | 25 % | 50 % | 100 % of the steps | best score |", "|---" * 8 + "|"]
    found = searches(rows)
    for (task, contender), by_seed in found.items():
        shares = [statistics.mean(volume(r, share) for r in by_seed.values()) for share in (0.25, 0.5, 1.0)]
        plans = statistics.mean(len({row["plan"] for row in r}) for r in by_seed.values())
        best = statistics.mean(max((float(x["score"]) for x in evaluated(r)), default=0.0) for r in by_seed.values())
        cells = " | ".join(f"{value:.4f}" for value in shares)
        lines.append(f"| {task} | {contender} | {len(by_seed)} | {plans:.0f} | {cells} | {best:.4f} |")
    lines += ["", *_differences(found)]
    return "\n".join(lines)


def _differences(found: Mapping[tuple[str, str], Mapping[str, list[Row]]]) -> Iterator[str]:
    """Yield what `autopeft` has over each other contender, seed by seed."""
    for (task, contender), theirs in found.items():
        ours = found.get((task, "autopeft"), {})
        both = sorted(set(ours) & set(theirs), key=int)
        if contender != "autopeft" and both:
            each = ", ".join(f"{volume(ours[seed]) - volume(theirs[seed]):+.4f}" for seed in both)
            yield f"{task}: hypervolume of autopeft minus {contender}, by seed {', '.join(both)}: {each}"


def figure(rows: Sequence[Row], out: Path) -> None:
    """Draw every full training and the front of each search, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = searches(rows)
    tasks = list(dict.fromkeys(task for task, _ in found))
    drawing, panels = plt.subplots(1, len(tasks), figsize=(5.5 * len(tasks), 4), squeeze=False, layout="constrained")
    colours = {name: f"C{n}" for n, name in enumerate(CONTENDERS)}
    for panel, task in zip(panels[0], tasks, strict=True):
        for (of, contender), by_seed in found.items():
            for n, one in enumerate(by_seed.values() if of == task else ()):
                _draw(panel, evaluated(one), colours[contender], contender if n == 0 else None, int(one[0]["budget"]))
        panel.set(xscale="log", xlabel="trainable parameters, head apart", ylabel="score, search split", title=task)
        panel.legend(loc="upper left")
    drawing.savefig(out, dpi=150)
    plt.close(drawing)


def _draw(panel: Any, rows: Sequence[Row], colour: str, label: str | None, budget: int) -> None:
    costs, scores = [int(r["cost"]) for r in rows], [float(r["score"]) for r in rows]
    front = front_of(costs, scores)
    panel.scatter(costs, scores, s=8, color=colour, alpha=0.35)
    edges = [costs[i] for i in front] + [budget for _ in front[-1:]]
    panel.step(edges, [scores[i] for i in [*front, *front[-1:]]], where="post", color=colour, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="CSV to read and to append to")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table")
    commands.add_parser("figure").add_argument("out", type=Path)
    running = commands.add_parser("run")
    running.add_argument("glue", type=Path)
    running.add_argument("--tasks", nargs="*", default=list(TASKS))
    running.add_argument("--seeds", nargs="*", type=int, default=[0, 1])
    running.add_argument("--contenders", nargs="*", default=["autopeft", "random", "spread"], choices=list(CONTENDERS))
    running.add_argument("--trials", type=int, default=TRIALS)
    running.add_argument("--steps", type=int, default=STEPS)
    running.add_argument("--studies", type=Path, default=Path("studies/autopeft_real"))
    args = parser.parse_args()
    match args.command:
        case "run":
            run(args)
        case "table":
            print(table(csv_rows.read(args.results)))
        case "figure":
            figure(csv_rows.read(args.results), args.out)


if __name__ == "__main__":
    main()
