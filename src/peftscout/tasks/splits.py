"""Splits of a task: content and its hash, carving without leaks, and the lock on the report split."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from peftscout.errors import DataError
from peftscout.tasks.recipes import Kind

Texts = tuple[str, ...]
"""The texts of one row: one text, a pair, or for multiple choice the prompt and then the choices."""

References = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""What is to be predicted, one a row: class ids, indices of choices, or numbers."""

Target = str | list[Any]
"""A sequence that is to be predicted: a text; a chat whose last message is; a tag for each word."""

ROWS_PER_CLASS = 2
"""How many rows of a class a carved split gets at least, where the class has twice as many."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows that serve one purpose.

    Attributes:
        name: ``train``, ``search`` or ``report``.
        texts: the texts of each row, see `Texts`.
        references: int64 class ids (or indices of choices), or float32 numbers; read-only, shape (rows,).
        kind: what is predicted.
        targets: of kinds that predict sequences, one a row (``references`` are zeros then); else empty.
    """

    name: str
    texts: tuple[Texts, ...]
    references: References
    kind: Kind = "classification"
    targets: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        if self.targets and len(self.targets) != len(self.texts):
            raise ValueError(f"{self.name}: {len(self.texts)} rows of text, {len(self.targets)} targets")
        if len(self.texts) != len(self.references):
            raise ValueError(f"{self.name}: {len(self.texts)} rows of text, {len(self.references)} references")
        self.references.setflags(write=False)

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64], name: str | None = None) -> Split:
        """Return the rows at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        texts, targets = tuple(self.texts[i] for i in chosen), tuple(self.targets[i] for i in chosen if self.targets)
        return Split(name or self.name, texts, self.references[chosen], self.kind, targets)

    @cached_property
    def keys(self) -> tuple[Texts, ...]:
        """What identifies the texts of each row (its target where it has none); blanks do not tell rows apart."""
        rows: Iterable[Texts] = self.texts
        if self.targets:
            rows = (own or (_plain(target),) for own, target in zip(self.texts, self.targets, strict=True))
        return tuple(tuple(" ".join(text.split()) for text in texts) for texts in rows)

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The class of each row; one class for all where numbers are predicted."""
        if self.kind == "regression":
            return np.zeros(len(self), dtype=np.int64)
        return self.references.astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of texts and references in their order: one JSON line a row."""
        hasher = hashlib.sha256()
        for texts, reference in zip(self.texts, self.targets or self.references.tolist(), strict=True):
            hasher.update(json.dumps([texts, reference], ensure_ascii=False).encode() + b"\n")
        return hasher.hexdigest()

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return what the manifest says of the split: rows, hash, and rows per label or the range of the numbers."""
        facts: dict[str, Any] = {"rows": len(self), "sha256": self.digest}
        if self.targets:
            return facts
        if labels:
            counts = np.bincount(self.references.astype(np.int64), minlength=len(labels))
            return facts | {"labels": dict(zip(labels, counts.tolist(), strict=True))}
        low, high, mean = self.references.min(), self.references.max(), self.references.mean(dtype=np.float64)
        return facts | {"range": {"min": float(low), "max": float(high), "mean": round(float(mean), 6)}}


def _plain(target: Target) -> str:
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False)


class LockedSplit:
    """The report split behind a lock: rows and hash are known, the content is not to be had before the end.

    The final phase calls `unlock` once and works with the split that it returns; until then ``texts`` and
    ``references`` raise, so that no search can read them by accident.
    """

    __slots__ = ("_digest", "_opened", "_split")

    def __init__(self, split: Split) -> None:
        self._split = split
        self._digest = split.digest
        self._opened = False

    @property
    def name(self) -> str:
        """Name of the split."""
        return self._split.name

    @property
    def kind(self) -> Kind:
        """What is predicted."""
        return self._split.kind

    @property
    def digest(self) -> str:
        """SHA-256 of the content, see `Split.digest`."""
        return self._digest

    def facts(self, labels: Sequence[str]) -> dict[str, Any]:
        """Return what the manifest says of the split, see `Split.facts`; known while it is locked."""
        return self._split.facts(labels)

    @property
    def unlocked(self) -> bool:
        """Whether the final phase has begun."""
        return self._opened

    def __len__(self) -> int:
        return len(self._split)

    def __repr__(self) -> str:
        state = "unlocked" if self._opened else "locked"
        return f"LockedSplit({self.name!r}, {len(self)} rows, {state})"

    def unlock(self) -> Split:
        """Open the split for the final comparison and return it."""
        self._opened = True
        return self._split

    def _content(self) -> Split:
        if not self._opened:
            raise DataError(
                f"the {self.name} split ({len(self)} rows) is locked until the search is over; "
                "only the final comparison unlocks it"
            )
        return self._split

    @property
    def texts(self) -> tuple[Texts, ...]:
        """The texts, once unlocked; a DataError before."""
        return self._content().texts

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets, once unlocked; a DataError before."""
        return self._content().targets

    @property
    def references(self) -> References:
        """The references, once unlocked; a DataError before."""
        return self._content().references

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64], name: str | None = None) -> Split:
        """Return some rows, once unlocked; a DataError before."""
        return self._content().select(indices, name)


def overlap(one: Split, other: Split) -> int:
    """Return how many rows of ``other`` have the texts of a row of ``one``."""
    known = set(one.keys)
    return sum(key in known for key in other.keys)


def carve(split: Split, rows: int, seed: Sequence[int]) -> tuple[npt.NDArray[np.int64], ...]:
    """Choose about ``rows`` rows at random, so that rows with identical texts stay together; classes keep their shares.

    Args:
        split: what to carve from.
        rows: how many rows to take; a few less when groups of identical rows do not fit, a few more when every class
            is to have `ROWS_PER_CLASS`.
        seed: of the choice.

    Returns:
        The indices that stay and the indices taken, each in increasing order.
    """
    rng = np.random.default_rng(list(seed))
    classes = split.classes
    groups: dict[Texts, list[int]] = defaultdict(list)
    for i, key in enumerate(split.keys):
        groups[key].append(i)
    strata: dict[int, list[list[int]]] = defaultdict(list)
    for group in groups.values():
        strata[int(classes[group[0]])].append(group)
    ordered = [strata[stratum] for stratum in sorted(strata)]
    sizes = np.array([sum(map(len, stratum)) for stratum in ordered])
    taken: list[int] = []
    for stratum, quota in zip(ordered, _quotas(sizes, rows, np.minimum(ROWS_PER_CLASS, sizes // 2)), strict=True):
        taken += _fill([stratum[i] for i in rng.permutation(len(stratum))], int(quota))
    chosen = np.array(sorted(taken), dtype=np.int64)
    return np.setdiff1d(np.arange(len(split)), chosen), chosen


def sample(split: Split, rows: int, seed: Sequence[int]) -> npt.NDArray[np.int64]:
    """Choose exactly ``rows`` rows at random, with at least one of each class; return their indices in order."""
    rng = np.random.default_rng(list(seed))
    _, membership, sizes = np.unique(split.classes, return_inverse=True, return_counts=True)
    quotas = _quotas(sizes, rows, np.minimum(1, sizes))
    chosen: list[int] = []
    for i, quota in enumerate(quotas):
        chosen += rng.permutation(np.flatnonzero(membership == i))[:quota].tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def _quotas(sizes: npt.NDArray[np.int64], rows: int, least: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Divide ``rows`` in proportion to ``sizes`` by largest remainders, and raise small shares to their ``least``."""
    exact = sizes * rows / sizes.sum()
    quotas = np.floor(exact).astype(np.int64)
    remainders = np.argsort(-(exact - quotas), kind="stable")
    quotas[remainders[: rows - int(quotas.sum())]] += 1
    raised: npt.NDArray[np.int64] = np.maximum(quotas, least)
    for _ in range(int(raised.sum()) - rows):  # the largest shares pay for the small ones
        spare = raised - least
        if not spare.any():
            break
        raised[np.argmax(np.where(spare > 0, raised, -1))] -= 1
    return raised


def _fill(groups: Sequence[list[int]], quota: int) -> list[int]:
    """Take groups in order while they fit; always leave at least one group behind."""
    taken: list[int] = []
    for left, group in zip(range(len(groups) - 1, -1, -1), groups, strict=True):
        if left and len(taken) + len(group) <= quota:
            taken += group
    return taken
