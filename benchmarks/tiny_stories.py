"""Does every strategy find something on a real decoder: better than the frozen model, and than random plans?

    python benchmarks/tiny_stories.py run MODEL [--strategies scout random ...]
    python benchmarks/tiny_stories.py table

MODEL: folder of stories260k-llama, 260,032 parameters that know children's stories. The task is made here: stories of
the same kind in a world of its own, where each animal has its one food, place and fear, so that there is something to
learn besides the style. Each strategy searches within 1 % for plans by next-token loss; its plan is then trained with
fresh seeds and scored on rows that the search did not see, as are plans drawn at random, with the first of these seeds,
and the frozen model. Rows are appended to ``results/tiny_stories.csv``; strategies that are there are not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.engine import FINAL_SEED
from peftscout.outcome import Evaluate
from peftscout.preparation import encode_split, make_evaluator, prepare
from peftscout.report.progress import Silent
from peftscout.strategies import STRATEGIES, make_strategy
from peftscout.tasks import compute_metrics

RESULTS = Path(__file__).parent / "results" / "tiny_stories.csv"
BUDGET = "1%"
STEPS, TRIALS, SEEDS, RANDOM_PLANS = 60, 8, 2, 6
TRAIN, VALIDATION, SEARCH = 240, 80, 60
"""Rows."""

NAMES = ("Lily", "Tom", "Mia", "Ben", "Sue", "Max", "Anna", "Tim")
ANIMALS = {
    "cat": ("red apples", "under the big tree", "the rain"),
    "dog": ("sweet cakes", "in the old box", "the loud bird"),
    "bird": ("green leaves", "on the soft bed", "the dark"),
    "frog": ("yellow flowers", "near the small house", "the wind"),
    "bear": ("white stones", "behind the door", "the little mouse"),
    "duck": ("blue berries", "in the tall grass", "the cold snow"),
}
"""What each animal eats, where it sleeps, and what it is afraid of."""


def story(rng: random.Random) -> str:
    """Return a story of five sentences; what it says of its animal is always so."""
    name, animal = rng.choice(NAMES), rng.choice(list(ANIMALS))
    food, bed, fear = ANIMALS[animal]
    middle = [
        f"The {animal} only wanted to eat {food}.",
        f"At night the {animal} slept {bed}.",
        f"The {animal} was afraid of {fear}.",
    ]
    rng.shuffle(middle)
    opening = rng.choice(("Once upon a time, there was", "One day, there was"))
    end = rng.choice((f"{name} and the {animal} were best friends.", f"{name} hugged the {animal} and smiled."))
    return " ".join([f"{opening} a little {animal} named {name}.", *middle, end])


def write_stories(folder: Path, train: int = TRAIN, validation: int = VALIDATION, seed: int = 0) -> Path:
    """Write ``train.jsonl`` and ``validation.jsonl`` with a column ``text``; no story is in both."""
    rng = random.Random(seed)
    stories: dict[str, None] = {}
    while len(stories) < train + validation:
        stories[story(rng)] = None
    texts = list(stories)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", texts[:train]), ("validation", texts[train:])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def study_config(model: Path, data: Path, strategy: str, **changes: Any) -> StudyConfig:
    """Return the study of one strategy."""
    return StudyConfig.from_mapping(
        {
            "model": str(model),
            "budget": BUDGET,
            "data": {"source": str(data), "kind": "causal_lm", "max_search_rows": SEARCH},
            "strategy": strategy,
            "trials": TRIALS,
            "steps": STEPS,
            "final": {"seeds": SEEDS, "lr_scales": [1.0]},
            "training": {"precision": "fp32", "batch_size": 8, "evaluations": 1},
            **changes,
        }
    )


@dataclass(frozen=True)
class References:
    """Scores on the report rows that a found plan has to beat: minus mean next-token loss.

    Attributes:
        frozen: of the model as it is.
        random_mean: of random plans within the budget, the mean.
        random_best: the best of them.
    """

    frozen: float
    random_mean: float
    random_best: float


def references(config: StudyConfig, plans: int = RANDOM_PLANS) -> References:
    """Score the frozen model, and train and score random plans, on the rows of the final comparison."""
    prepared = prepare(config)
    with TemporaryDirectory() as temporary:
        evaluator = make_evaluator(prepared, Path(temporary))
        rows = encode_split(prepared, prepared.task.report.unlock(), Path(temporary))

        def score(model: Any) -> float:
            return compute_metrics(("neg_loss",), evaluator.predict(model, rows), rows.references)["neg_loss"]

        frozen = score(evaluator.backbone.model.eval())
        scores: list[float] = []
        seed = FINAL_SEED + 100 * config.seed
        problem = replace(prepared.problem, trials=plans + 1)  # the first of them is the baseline
        for request in make_strategy("random", problem, {}).ask(plans):
            asked = Evaluate(request.plan, prepared.fidelity, seed, label="random")
            evaluator(asked, after=lambda model: scores.append(score(model)))
    return References(frozen, statistics.mean(scores), max(scores))


@dataclass(frozen=True)
class Row:
    """What one strategy found. Scores are minus mean next-token losses on the report rows."""

    strategy: str
    cost: int
    found: float
    spread: float
    uniform: float
    random_mean: float
    random_best: float
    frozen: float
    trials: int
    cpu_seconds: float

    @property
    def beats(self) -> bool:
        """Whether it is better than the frozen model and than the mean of the random plans."""
        return self.found > max(self.frozen, self.random_mean)


def search_row(name: str, config: StudyConfig, folder: Path, against: References) -> Row:
    """Search as ``config`` says, in ``folder``, and return the row of this contender."""
    started = time.process_time()
    summary = search_config(config, folder, Silent()).summary
    final = summary["final"]
    return Row(
        strategy=name,
        cost=summary["best"]["cost"],
        found=final["best"]["mean"],
        spread=final["best"]["std"] or 0.0,
        uniform=final["baseline"]["mean"],
        random_mean=against.random_mean,
        random_best=against.random_best,
        frozen=against.frozen,
        trials=sum(trial["stage"] == "search" for trial in summary["trials"]),
        cpu_seconds=time.process_time() - started,
    )


def run(model: Path, contenders: Sequence[str]) -> None:
    """Search with each of ``contenders`` that has no row yet, and append its row."""
    known = {row.strategy: row for row in read()}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = write_stories(folder / "data")
        first = next(iter(known.values()), None)
        against = (
            References(first.frozen, first.random_mean, first.random_best)
            if first is not None
            else references(study_config(model, data, "random"))
        )
        for name in (name for name in contenders if name not in known):
            append(search_row(name, study_config(model, data, name), folder / name, against))


def read() -> list[Row]:
    """Return the rows that there are."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        kinds = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Row)}
        return [Row(**{name: kinds[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


def append(row: Row) -> None:
    """Add a row to the results."""
    fresh = not RESULTS.exists()
    with RESULTS.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if fresh:
            writer.writeheader()
        values = asdict(row)
        writer.writerow({name: f"{v:.4f}" if isinstance(v, float) else v for name, v in values.items()})


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, as losses: lower is better."""
    lines = ["| strategy | parameters | loss of the found plan | better than frozen and mean random | CPU s |"]
    lines.append("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row.found):
        found = f"{-row.found:.3f} +- {row.spread:.3f}"
        lines.append(
            f"| `{row.strategy}` | {row.cost:,} | {found} | {'yes' if row.beats else 'no'} | {row.cpu_seconds:.0f} |"
        )
    first = rows[0]
    lines.append(
        f"\nFrozen model: {-first.frozen:.3f}. Random plans: {-first.random_mean:.3f} in the mean, "
        f"{-first.random_best:.3f} the best of {RANDOM_PLANS}. Uniform LoRA at the budget: {-first.uniform:.3f}."
    )
    return "\n".join(lines)


def main() -> None:
    """Run or print, as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("model", type=Path)
    runs.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    commands.add_parser("table")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.model, arguments.strategies)
    else:
        print(table(read()))


if __name__ == "__main__":
    main()
