"""A strategy's own account of a finished search, had by telling a fresh one the outcomes of the ledger.

Strategies are functions of the outcomes they were told (`strategies.base`), so nothing about them has to be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftscout.config import StudyConfig
from peftscout.ledger import Record
from peftscout.plan import Budget
from peftscout.report.view import View
from peftscout.space import load_space
from peftscout.strategies import check_strategy
from peftscout.strategies.autopeft import DEFAULTS, AutoPeft
from peftscout.strategies.base import Problem
from peftscout.strategies.design_spaces import DesignSpacesOptions, DesignSpacesSearch, RefinementReport


def problem_of(view: View, config: StudyConfig, records: Sequence[Record]) -> Problem | None:
    """Return the problem as the strategy saw it; ``None`` when the ledger is empty or the sites are not known.

    Raises:
        SpaceError: when the space is a file that is not there any more.
    """
    search = [r for r in records if r.stage == "search"]
    if view.sites is None or not search:
        return None
    space = load_space(config.space, view.sites)
    first = search[0].request
    return Problem(
        sites=view.sites,
        space=space if config.export == "any" else space.for_stock(config.export),
        budget=Budget(view.budget, str(view.summary["budget"]["text"])),
        baseline=first.plan,
        fidelity=first.fidelity,
        trials=config.trials,
        seed=config.seed,
        lr_scales=config.lr_scales,
        tasks=("", *dict.fromkeys(r.request.task for r in search if r.request.task)),
    )


def refinement(problem: Problem, config: StudyConfig, records: Sequence[Record]) -> RefinementReport:
    """Return the stages of a Design Spaces search."""
    options = check_strategy("design-spaces", config.strategy_options) or DesignSpacesOptions()
    search = DesignSpacesSearch(problem, options)
    for record in _told(records):
        assert record.outcome is not None
        search.tell(record.request, record.outcome)
    return search.report()


@dataclass(frozen=True)
class Prediction:
    """What AutoPEFT expected of a trial just before it was told its score.

    Attributes:
        number: of the trial.
        mean: expected score.
        std: standard deviation of the score that a training would show, noise included.
        score: what came.
    """

    number: int
    mean: float
    std: float
    score: float

    @property
    def z(self) -> float:
        """How many standard deviations the score lies above what was expected."""
        return (self.score - self.mean) / max(self.std, 1e-12)


def predictions(problem: Problem, config: StudyConfig, records: Sequence[Record]) -> list[Prediction]:
    """Return AutoPEFT's expectation of each full trial after the initial design, one step ahead, in ledger order.

    A surrogate is fitted for each of them, to the trials before it.
    """
    search = AutoPeft(problem, check_strategy("autopeft", config.strategy_options) or DEFAULTS)
    found = []
    for record in _told(records):
        assert record.outcome is not None
        expected = search.expectation(record.request) if record.outcome.score is not None else None
        if expected is not None and record.outcome.score is not None and record.request.fidelity == problem.fidelity:
            found.append(Prediction(record.number, *expected, record.outcome.score))
        search.tell(record.request, record.outcome)
    return found


def _told(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r.stage == "search" and r.outcome is not None]
