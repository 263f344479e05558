"""A finished study as the report reads it: the summary with its trials and sites as objects, and nothing else.

Made from ``summary.json`` alone, so that a report can be written where the model is not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from peftscout.cost import price
from peftscout.errors import PeftscoutError
from peftscout.front import front_of
from peftscout.plan import Plan, Sites
from peftscout.sites import site_from_json


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation; the fields are those of ``summary.json`` (``docs/summary.md``)."""

    number: int
    stage: str
    label: str
    state: str
    cost: int | None
    score: float | None
    seconds: float | None
    steps: int | None
    full: bool
    peak_memory: int | None
    seed: int
    lr_scale: float
    plan: Plan
    message: str = ""
    task: str = ""

    @property
    def counts(self) -> bool:
        """Whether its score may be compared: of a full training on the study's own task."""
        return self.full and self.score is not None and not self.task

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        """Read an entry of ``trials``; fields that came later may be missing."""
        known: dict[str, Any] = {name: data[name] for name in cls.__slots__ if name in data}
        return cls(**{"full": True, "peak_memory": None, **known, "plan": Plan.from_json(data["plan"])})


@dataclass(frozen=True)
class Contender:
    """The chosen plan, or the baseline.

    Attributes:
        name: for people.
        plan: of it.
        cost: its trainable parameters.
        score: on the search split; ``None`` when it has none.
        scores: on the report split, one a seed; empty without a final comparison.
    """

    name: str
    plan: Plan
    cost: int
    score: float | None
    scores: tuple[float, ...]


@dataclass(frozen=True)
class View:
    """A finished study.

    Attributes:
        summary: as in ``summary.json``.
    """

    summary: Mapping[str, Any]

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Every evaluation, by number."""
        return tuple(Trial.from_json(t) for t in self.summary["trials"])

    @cached_property
    def searched(self) -> tuple[Trial, ...]:
        """Evaluations of search and tuning that count: those that scores are compared of."""
        return tuple(t for t in self.trials if t.stage != "final" and t.counts)

    @cached_property
    def front(self) -> tuple[Trial, ...]:
        """Those that no other one beats on both cost and score, cheapest first."""
        chosen = front_of([t.cost or 0 for t in self.searched], [t.score or 0.0 for t in self.searched])
        return tuple(self.searched[i] for i in chosen)

    @cached_property
    def sites(self) -> Sites | None:
        """The sites of the model; ``None`` in a summary that was written before they were part of it."""
        sites = [site_from_json(site) for site in self.summary.get("sites") or ()]
        return {site.id: site for site in sites} or None

    @cached_property
    def best(self) -> Contender:
        """The chosen plan."""
        return self._contender("best", "chosen plan")

    @cached_property
    def baseline(self) -> Contender:
        """Uniform LoRA."""
        return self._contender("baseline", "uniform LoRA")

    def _contender(self, key: str, name: str) -> Contender:
        data, final = self.summary[key], self.summary.get("final")
        scores = () if final is None else tuple(final[key]["scores"])
        return Contender(name, Plan.from_json(data["plan"]), data["cost"], data["score"], scores)

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return str(self.summary["metric"])

    @property
    def budget(self) -> int:
        """The bound, in trainable parameters."""
        return int(self.summary["budget"]["parameters"])

    def parameters_by_op(self, plan: Plan) -> dict[str, int] | None:
        """Return ``{op: trainable parameters}``; ``None`` when the sites are not known."""
        if self.sites is None:
            return None
        bill = dict.fromkeys(plan.ops, 0)
        try:
            for p in plan:
                bill[p.op] += price(self.sites[p.site], p.op).at(p.size)
        except (KeyError, PeftscoutError):  # a plan of another model
            return None
        return bill
