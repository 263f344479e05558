"""Task: what is learnt from which rows, and by which metric it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftscout.tasks.metrics import compute_metrics
from peftscout.tasks.recipes import Kind
from peftscout.tasks.splits import LockedSplit, Split

SCHEMA = 1
"""Version of the manifest."""


@dataclass(frozen=True, eq=False)
class Task:
    """Data ready to be encoded.

    Attributes:
        name: of the recipe, folder, file or data set.
        kind: what is predicted.
        labels: class names by class id, names of the choices for multiple choice, ``()`` for regression.
        metrics: the first one is the main metric; higher is better.
        train: rows to learn from.
        search: rows that the search scores plans on.
        report: rows of the final comparison, locked until then.
        notes: what people should know: recipe, columns, where splits come from, rows left out, overlaps.
        num_choices: choices a row for multiple choice, else ``None``.
        columns: the columns that were read: ``texts`` (one list a text) and ``label``.
        files: by role, name and SHA-256 of each source file.
        overlap: rows that splits share, see `Partition`.
        seed: of the carving.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Split
    search: Split
    report: LockedSplit
    notes: tuple[str, ...] = ()
    num_choices: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    overlap: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0

    @property
    def metric(self) -> str:
        """The main metric."""
        return self.metrics[0]

    @property
    def majority(self) -> float | None:
        """Score on the search split, by the main metric, of predicting one value for every row.

        The value is the most frequent class of train, or the mean of its numbers; correlations are 0 then. ``None``
        where targets are sequences, of which none is frequent.
        """
        if self.train.targets:
            return None
        if self.kind == "regression":
            guess = self.train.references.mean(dtype=np.float64)
        else:
            guess = np.bincount(self.train.references.astype(np.int64)).argmax()
        return compute_metrics(self.metrics[:1], np.full(len(self.search), guess), self.search.references)[self.metric]

    def manifest(self) -> dict[str, Any]:
        """Return the fingerprint of the data, JSON-able: equal manifests mean equal rows in equal splits."""
        return {
            "schema": SCHEMA,
            "task": self.name,
            "kind": self.kind,
            "labels": list(self.labels),
            "metrics": list(self.metrics),
            "num_choices": self.num_choices,
            "columns": dict(self.columns),
            "seed": self.seed,
            "splits": {
                "train": self.train.facts(self.labels),
                "search": self.search.facts(self.labels),
                "report": self.report.facts(self.labels),
            },
            "overlap": dict(self.overlap),
            "files": {role: dict(facts) for role, facts in self.files.items()},
        }
