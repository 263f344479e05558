"""Which rows train, which steer the search, and which are kept for the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from peftscout.errors import DataError
from peftscout.tasks.splits import Split, carve, overlap, sample

SMALLEST = 8
"""Fewest rows that anything can be carved from."""


@dataclass(frozen=True, slots=True)
class Partition:
    """The three splits of a task, how they came about, and how many rows they share.

    ``overlap`` counts, for ``"train-report"`` say, the rows of report whose texts also occur in train.
    """

    train: Split
    search: Split
    report: Split
    overlap: Mapping[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Carving:
    """How splits that the data lack are carved from train.

    Attributes:
        fraction: share of the training rows for each carved split.
        max_rows: most rows of a carved split.
        max_train_rows: most rows that stay for training; ``None`` for all.
        seed: of every choice.
    """

    fraction: float = 0.2
    max_rows: int = 1000
    max_train_rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 0.5:
            raise DataError(f"search_fraction {self.fraction}: must be above 0 and below 0.5")
        if self.max_rows < 2:
            raise DataError(f"max_search_rows {self.max_rows}: at least 2 are needed")
        if self.max_train_rows is not None and self.max_train_rows < 2:
            raise DataError(f"max_train_rows {self.max_train_rows}: at least 2 are needed")

    def rows_from(self, total: int) -> int:
        """Return how many rows are carved from ``total``."""
        return min(round(self.fraction * total), self.max_rows)


def partition(splits: Mapping[str, Split], carving: Carving) -> Partition:
    """Arrange the labelled splits of the source as train, search and report.

    Three splits serve as they are: validation steers the search, test is the report. With one held-out split, that is
    the report and the search split is carved from train; with none, both are carved. Rows with identical texts never
    fall on two sides of a carving, and classes keep their proportions.

    Args:
        splits: by role: ``train`` and perhaps ``validation`` and ``test``, all with labels.
        carving: how to carve.

    Raises:
        DataError: when train is too small to carve from.
    """
    train, notes = splits["train"], []
    held_out = [role for role in ("validation", "test") if role in splits]
    count = carving.rows_from(len(train))
    if len(held_out) < 2 and len(train) < SMALLEST:
        raise DataError(
            f"train has {len(train)} rows, too few to carve a split from (at least {SMALLEST}); "
            "give more rows, or validation and test"
        )
    if len(held_out) == 2:
        search, report = splits["validation"], splits["test"]
        notes.append("search = validation, report = test")
    elif held_out:
        report = splits[held_out[0]]
        train, search = _carve(train, "search", count, [carving.seed, 1])
        notes.append(f"report = {held_out[0]}; search = {len(search)} rows carved from train (seed {carving.seed})")
    else:
        train, report = _carve(train, "report", count, [carving.seed, 2])
        train, search = _carve(train, "search", count, [carving.seed, 1])
        notes.append(f"search = {len(search)} and report = {len(report)} rows carved from train (seed {carving.seed})")
    if carving.max_train_rows is not None and carving.max_train_rows < len(train):
        notes.append(f"train = {carving.max_train_rows} of {len(train)} rows (max_train_rows, seed {carving.seed})")
        train = _limited(train, carving.max_train_rows, carving.seed)
    named = {"train": train, "search": search, "report": report}
    named = {name: replace(split, name=name) for name, split in named.items()}
    shared = {
        f"{one}-{other}": overlap(named[one], named[other])
        for one, other in (("train", "search"), ("train", "report"), ("search", "report"))
    }
    for pair, rows in shared.items():
        if rows:
            one, other = pair.split("-")
            notes.append(f"overlap: {rows} of {len(named[other])} {other} rows have texts that are also in {one}")
    return Partition(**named, overlap=shared, notes=tuple(notes))


def _carve(train: Split, name: str, rows: int, seed: list[int]) -> tuple[Split, Split]:
    stay, taken = carve(train, max(rows, 2), seed)
    if not len(taken):
        raise DataError(f"train has {len(train)} rows but hardly any different texts; no {name} split can be carved")
    return train.select(stay), train.select(taken, name)


def _limited(train: Split, rows: int, seed: int) -> Split:
    classes = len(np.unique(train.classes))
    if rows < classes:
        raise DataError(f"max_train_rows {rows}: fewer than the {classes} classes")
    return train.select(sample(train, rows, [seed, 3]))
