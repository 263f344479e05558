"""The rule by which a stage chooses between options, and by which a rung lets go of some. Pure arithmetic on scores.

The paper keeps the option with the highest mean, whatever the difference. Here a decision is a claim with an error
rate:

* an option is **beaten** when another one is better in a sign-flip test, Holm-corrected over all pairs of options (all,
  because the best of them is picked by looking);
* an option is **good enough** when the data show that no other option is better than it by the smallest difference of
  interest (delta): for each other option, the upper bound of its lead is below delta. Every bound is one-sided at
  alpha / (options - 1): an option that is more than delta below the best is kept with probability alpha at most;
* the **simplest option that is good enough** is kept, if every simpler one is beaten: what may be a tie never goes to
  the more complex option by its mean alone. Otherwise the axis is undecided, and every option that is not beaten stays.

Scores and delta are in units of the pooled standard deviation within options (see `statistics.standardise`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from peftscout.strategies.design_spaces import statistics as st
from peftscout.strategies.design_spaces.statistics import Array

Verdict = Literal["decided", "undecided"]
Fate = Literal["kept", "open", "beaten", "passed over", "dropped", "refused", "failed"]
"""Of an option: kept (decided for), open (stays on an undecided axis), beaten (significantly worse), passed over (less
simple than the kept one and not better by delta), dropped (at a lower rung), refused (impossible), failed."""


_FINENESS = 10
"""The smallest Holm-adjusted p-value that random flips can show is alpha over this."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the options of a stage compare; arrays over options or pairs of options ``[options, options]``.

    Attributes:
        means: mean standardised score ``[options]``.
        p_values: Holm-adjusted, of "no difference" ``[options, options]``, 1 on the diagonal.
        upper_lead: upper bound of the lead of option i over option j ``[i, j]``, 0 on the diagonal.
        probability_best: ``[options]``.
        spread: typical (root mean square) standard deviation of the paired differences.
        models: number of base models.
    """

    means: Array
    p_values: Array
    upper_lead: Array
    probability_best: Array
    spread: float
    models: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Which options stay.

    Attributes:
        verdict: whether one option was decided for.
        kept: positions of the options that stay.
        fates: of each option.
        why: of each option, in words.
    """

    verdict: Verdict
    kept: tuple[int, ...]
    fates: tuple[Fate, ...]
    why: tuple[str, ...]


def compare(scores: Array, alpha: float, resamples: int, rng: np.random.Generator) -> Comparison:
    """Compare options on the same base models.

    Args:
        scores: standardised ``[options, models]``, at least one model, no NaN.
        alpha: family-wise error rate.
        resamples: of the bootstrap; the permutation test takes more flips where so many pairs need finer p-values.
        rng: for both.
    """
    options, models = scores.shape
    bootstrap = st.Resamples.draw(models, resamples, rng)
    p_values, upper = np.ones((options, options)), np.zeros((options, options))
    spread = 0.0
    if options > 1:
        differences = st.paired_differences(scores)
        flips = max(resamples, int(_FINENESS * differences.shape[1] / alpha))
        adjusted = st.holm(st.sign_flip(differences, flips, rng))
        low, high = st.mean_bounds(differences, bootstrap, level=1 - 2 * alpha / (options - 1))
        for (i, j), p, down, up in zip(st.pairs_of(options), adjusted, low, high, strict=True):
            p_values[i, j] = p_values[j, i] = p
            upper[i, j], upper[j, i] = up, -down
        if models > 1:
            spread = float(np.sqrt((differences.var(axis=0, ddof=1)).mean()))
    best = st.probability_best(scores, bootstrap)
    return Comparison(scores.mean(axis=1), p_values, upper, best, spread, models)


def decide(comparison: Comparison, delta: float, alpha: float) -> Decision:
    """Choose between the options of a stage, which are listed from the simplest on (see the module's text)."""
    c = comparison
    options = range(len(c.means))
    better: NDArray[np.bool_] = np.less_equal(c.p_values, alpha) & np.greater.outer(c.means, c.means)
    beaten: NDArray[np.bool_] = np.any(better, axis=0)
    lead = c.upper_lead.max(axis=0)
    good_enough = [i for i in options if lead[i] < delta]
    choice = next((i for i in good_enough if beaten[:i].all()), None)
    if choice is None:
        fates: list[Fate] = ["beaten" if beaten[i] else "open" for i in options]
        kept = tuple(i for i in options if not beaten[i])
        why = tuple(_why_open(c, i, lead[i], fates[i], delta) for i in options)
        return Decision("undecided", kept, tuple(fates), why)
    fates = ["kept" if i == choice else "beaten" if beaten[i] else "passed over" for i in options]
    why = tuple(_why_decided(c, i, len(good_enough), fates[i], delta) for i in options)
    return Decision("decided", (choice,), tuple(fates), why)


def _why_open(c: Comparison, i: int, lead: float, fate: Fate, delta: float) -> str:
    if fate == "beaten":
        return _why_beaten(c, i)
    if lead < delta:
        return f"within delta {delta:g} SD of the best, but a simpler option may be, too"
    return f"another option may be better by {lead:.2f} SD, which is not below delta {delta:g} SD"


def _why_decided(c: Comparison, i: int, good_enough: int, fate: Fate, delta: float) -> str:
    match fate:
        case "beaten":
            return _why_beaten(c, i)
        case "passed over":
            return f"not better by delta {delta:g} SD than the one kept, and less simple"
        case _ if good_enough > 1:
            return f"the simplest of {good_enough} options within delta {delta:g} SD of the best"
        case _:
            return f"no other option is better by delta {delta:g} SD, and every simpler one is worse"


def _why_beaten(c: Comparison, i: int) -> str:
    best = int(np.argmin(np.where(c.means > c.means[i], c.p_values[i], np.inf)))
    return f"worse than another by {c.means[best] - c.means[i]:.2f} SD (p {c.p_values[best, i]:.2g})"


def let_go(comparison: Comparison, keep_share: float) -> tuple[int, ...]:
    """Return the positions of the options that go on to the next rung of successive halving, in order.

    Guarded: an option is let go only if it is outside of the best ``keep_share`` by mean **and** the upper bound of its
    lead over the best one is below 0, so that noise at a low fidelity seldom throws the best option out. Two options go
    on at least: what is decided is decided by full training.
    """
    c = comparison
    count = max(2, int(np.ceil(keep_share * len(c.means))))
    order = np.argsort(-c.means, kind="stable")
    best = order[0]
    return tuple(sorted(int(i) for rank, i in enumerate(order) if rank < count or c.upper_lead[i, best] >= 0))
