"""Which learning rate does each op family want? Each family alone, on real tasks, over a grid; beside it the head's.

    python benchmarks/learning_rates.py run GLUE --tasks sst2 stsb
    python benchmarks/learning_rates.py table

GLUE: folder with sst2/, stsb/. Each family is put alone on MiniLM, wherever it can go and as small as it gets (LoRA: on
query and value), and trained for 110 steps with every rate of the grid; the head has 3e-3, and, with LoRA, others too.
Every training appends a row to ``results/learning_rates.csv``; rows that are there are not computed again.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import csv_rows
from peftscout.config import StudyConfig
from peftscout.demo import model_path
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.preparation import make_evaluator, prepare
from peftscout.sites import Site
from peftscout.space import load_space

RESULTS = Path(__file__).parent / "results" / "learning_rates.csv"
COLUMNS = ("task", "op", "rate", "head_rate", "seed", "cost", "score", "loss", "state", "steps")
STEPS, ROWS, SEARCH_ROWS = 110, 4000, 500
HEAD_RATE = 3e-3
GRID = {
    "lora": (3e-4, 1e-3, 3e-3, 1e-2),
    "serial": (3e-4, 1e-3, 3e-3, 1e-2),
    "parallel": (3e-4, 1e-3, 3e-3, 1e-2),
    "lowrank_adapter": (3e-4, 1e-3, 3e-3, 1e-2),
    "bias": (1e-3, 3e-3, 1e-2, 3e-2),
    "scale": (1e-3, 3e-3, 1e-2, 3e-2),
    "norm": (1e-3, 3e-3, 1e-2, 3e-2),
    "prefix": (3e-3, 1e-2, 3e-2, 1e-1),
}
HEAD_GRID = (3e-4, 1e-3, 1e-2)


@dataclass(frozen=True)
class Cell:
    """One training."""

    task: str
    op: str
    rate: float
    head_rate: float
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        return (self.task, self.op, str(self.rate), str(self.head_rate), str(self.seed))


def cells(task: str, seeds: int) -> Iterator[Cell]:
    for seed in range(seeds):
        for op, rates in GRID.items():
            yield from (Cell(task, op, rate, HEAD_RATE, seed) for rate in rates)
        yield from (Cell(task, "lora", rate, head, seed) for rate in (1e-3, 3e-3) for head in HEAD_GRID)


def alone(op: str, sites: dict[str, Site]) -> Plan:
    """Return the plan of one family wherever the space ``all`` has it, at its smallest size; LoRA r=2 on q and v."""
    choices = [c for c in load_space("all", sites).choices if c.op == op]
    if op == "lora":
        return Plan.of({(c.site, op): 2 for c in choices if sites[c.site].role in ("q", "v")})
    return Plan.of({(c.site, op): min(s for s in c.sizes if s) for c in choices})


def run(glue: Path, tasks: list[str], seeds: int) -> None:
    done = {tuple(row[c] for c in COLUMNS[:5]) for row in csv_rows.read(RESULTS)}
    for task in tasks:
        data = {"source": str(glue / task), "max_train_rows": ROWS, "max_search_rows": SEARCH_ROWS}
        training = {"threads": 1, "evaluations": 1}
        study = {"model": str(model_path()), "budget": "50%", "space": "all", "data": data, "training": training}
        prepared = prepare(StudyConfig.from_mapping(study))
        with TemporaryDirectory() as cache:
            evaluator = make_evaluator(prepared, Path(cache))
            defaults = evaluator.settings
            for cell in (c for c in cells(task, seeds) if c.key not in done):
                rates = {**defaults.learning_rates, cell.op: cell.rate, "head": cell.head_rate}
                evaluator.settings = replace(defaults, learning_rates=rates)
                plan = alone(cell.op, dict(prepared.backbone.model_map.sites))
                outcome = evaluator(Evaluate(plan, Fidelity(STEPS), cell.seed))
                loss = outcome.metrics.get("loss", "")
                row = [*cell.key, outcome.cost, outcome.score, loss, str(outcome.state), STEPS]
                csv_rows.append(RESULTS, COLUMNS, [dict(zip(COLUMNS, row, strict=True))])
                print(*row, flush=True)


def table() -> None:
    """Print score and loss of every family and rate, mean over seeds."""
    rows = csv_rows.read(RESULTS)
    tasks = sorted({row["task"] for row in rows})
    found: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["score"]:
            key = (row["op"], row["rate"], row["head_rate"])
            found[key][row["task"]].append((float(row["score"]), float(row["loss"])))
    print("| op | learning rate | of the head |", *(f" {task}, score (loss) |" for task in tasks))
    print("|---|---|---|", *("---|" for _ in tasks))
    for (op, rate, head), by_task in found.items():
        print(f"| {op} | {float(rate):g} | {float(head):g} |", *(f"{_mean(by_task[task])} |" for task in tasks))


def _mean(pairs: list[tuple[float, float]]) -> str:
    if not pairs:
        return "-"
    score, loss = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return f"{score:.3f} ({loss:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run")
    runner.add_argument("glue", type=Path)
    runner.add_argument("--tasks", nargs="+", default=["sst2", "stsb"])
    runner.add_argument("--seeds", type=int, default=1)
    commands.add_parser("table")
    args = vars(parser.parse_args())
    run(**args) if args.pop("command") == "run" else table()


if __name__ == "__main__":
    main()
