"""What a stage of the refinement found, as plain data: one row an option, the EDFs, the rungs, the decision and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peftscout.outcome import Outcome, State
from peftscout.strategies.design_spaces import statistics as st
from peftscout.strategies.design_spaces.decision import Comparison, Decision, Fate
from peftscout.strategies.design_spaces.statistics import Array

Verdict = Literal["decided", "undecided", "fixed", "not run"]
"""Of a stage; undecided and not run leave the axis open, fixed means that there was nothing to choose."""


@dataclass(frozen=True, slots=True)
class Row:
    """One option of a stage.

    Attributes:
        option: its label.
        n: base models that count.
        mean: mean score (of the metric; over tasks, where there are several).
        interval: 95 % interval of the mean, bootstrap over base models.
        probability_best: share of bootstrap resamples in which the option has the highest mean.
        upper_mean: mean of its best 20 %: what one would deploy.
        difference: standardised mean minus that of the best option, at most 0.
        p_value: of no difference to the best option, Holm-adjusted over all pairs.
        distance: Kolmogorov-Smirnov distance between its EDF and that of the best option.
        decision: what became of it.
        why: in words.
        cost: mean trainable parameters of its models.
    """

    option: str
    n: int
    mean: float | None
    interval: tuple[float, float] | None
    probability_best: float | None
    upper_mean: float | None
    difference: float | None
    p_value: float | None
    distance: float | None
    decision: Fate
    why: str
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of successive halving: how many steps and models, and which options did not go on."""

    steps: int
    models: int
    options: tuple[str, ...]
    let_go: tuple[str, ...]


@dataclass(frozen=True)
class StageReport:
    """One stage.

    Attributes:
        name: such as ``S1``.
        axis: what was decided.
        verdict: see `Verdict`.
        kept: options that stay.
        why: in words.
        rows: one an option, those refused included.
        models: base models of the last rung that count.
        spread: standard deviation of the paired differences, in standard deviations of the scores.
        detectable: difference that shows as significant with 80 % probability at this number of models, in that unit.
        edf: for each option of the last rung, points (score, share of models with at most that score).
        rungs: of successive halving.
        passes: number of the pass through the axes, from 1.
    """

    name: str
    axis: str
    verdict: Verdict
    kept: tuple[str, ...]
    why: str
    rows: tuple[Row, ...] = ()
    models: int = 0
    spread: float | None = None
    detectable: float | None = None
    edf: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)
    rungs: tuple[Rung, ...] = ()
    passes: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; numbers that are not finite become ``None``."""
        return _finite(asdict(self))


@dataclass(frozen=True)
class ReferenceReport:
    """The reference population S0: all components random.

    Attributes:
        n: models with a score at full fidelity.
        mean: their mean score.
        upper_mean: mean of the best 20 %.
        edf: points (score, share).
        taus: Kendall's tau between each lower rung and full training; ``None`` where it is undefined.
        halving: what follows for successive halving, in words.
    """

    n: int
    mean: float | None
    upper_mean: float | None
    edf: list[tuple[float, float]]
    taus: tuple[float | None, ...]
    halving: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return _finite(asdict(self))


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _finite_value(value) for key, value in data.items()}


def _finite_value(value: Any) -> Any:
    if isinstance(value, dict):
        return _finite(value)
    if isinstance(value, list | tuple):
        return [_finite_value(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def score_table(outcomes: Sequence[Sequence[Sequence[Outcome]]]) -> Array:
    """Return the scores ``[options, models, tasks]`` of outcomes nested in the same way.

    A model that diverged counts as the worst one of its task that was seen, because a design whose training diverges is
    a bad design. Other failures say nothing about the design and are NaN.
    """
    options, models, tasks = len(outcomes), len(outcomes[0]), len(outcomes[0][0])
    scores = np.full((options, models, tasks), np.nan)
    diverged = np.zeros(scores.shape, dtype=bool)
    for o, row in enumerate(outcomes):
        for m, cells in enumerate(row):
            for t, outcome in enumerate(cells):
                if outcome.score is not None:
                    scores[o, m, t] = outcome.score
                diverged[o, m, t] = outcome.state is State.DIVERGED
    for t in range(tasks):
        known = scores[..., t][~np.isnan(scores[..., t])]
        if known.size:
            scores[..., t][diverged[..., t]] = known.min()
    return scores


def complete(scores: Array) -> tuple[list[int], list[int]]:
    """Return the options and base models ``[options, models, tasks]`` that can be compared.

    Options that lack more than half of their scores are left out, then base models that lack one.
    """
    missing: NDArray[np.bool_] = np.any(np.isnan(scores), axis=2)
    options = [o for o in range(len(scores)) if missing[o].mean() <= 0.5]
    models = [m for m in range(scores.shape[1]) if options and not missing[options, m].any()]
    return options, models


def rows_of(
    labels: Sequence[str], scores: Array, comparison: Comparison, decision: Decision, resamples: st.Resamples
) -> tuple[Row, ...]:
    """Return one row an option of the last rung; ``scores`` ``[options, models, tasks]`` are complete."""
    raw = scores.mean(axis=2)
    low, high = st.mean_bounds(raw.T, resamples, level=0.95)
    best = int(np.argmax(comparison.means))
    return tuple(
        Row(
            option=label,
            n=raw.shape[1],
            mean=float(raw[i].mean()),
            interval=(float(low[i]), float(high[i])),
            probability_best=float(comparison.probability_best[i]),
            upper_mean=st.upper_mean(raw[i]),
            difference=float(comparison.means[i] - comparison.means[best]),
            p_value=None if i == best else float(comparison.p_values[i, best]),
            distance=st.ks_distance(raw[i], raw[best]),
            decision=decision.fates[i],
            why=decision.why[i],
        )
        for i, label in enumerate(labels)
    )


def empty_row(option: str, decision: Fate, why: str, scores: Array | None = None) -> Row:
    """Return the row of an option that was not in the last comparison; ``scores`` ``[models]`` are those it has."""
    known = np.array([]) if scores is None else scores[~np.isnan(scores)]
    mean = float(known.mean()) if known.size else None
    upper = st.upper_mean(known) if known.size else None
    return Row(option, int(known.size), mean, None, None, upper, None, None, None, decision, why)
