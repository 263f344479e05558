"""Progressive refinement (section 3.2 of Chen et al. 2023): S0, one stage an axis, then models of the found rule.

The procedure is a generator of batches of requests that goes on from their outcomes. It is a function of the outcomes
alone: told those of a ledger, in any order, it repeats every decision without training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import numpy as np

from peftscout.errors import BudgetError
from peftscout.outcome import Evaluate
from peftscout.plan import Budget
from peftscout.strategies.design_spaces import statistics as st
from peftscout.strategies.design_spaces.axes import DesignSpace
from peftscout.strategies.design_spaces.bench import Bench, Procedure
from peftscout.strategies.design_spaces.genotype import canonical_genotype
from peftscout.strategies.design_spaces.layout import group_number
from peftscout.strategies.design_spaces.options import DesignSpacesOptions
from peftscout.strategies.design_spaces.populations import Candidate, Sampler, paired_population
from peftscout.strategies.design_spaces.race import race, schedule
from peftscout.strategies.design_spaces.rule import Rule
from peftscout.strategies.design_spaces.stages import ReferenceReport, StageReport, Verdict, empty_row
from peftscout.strategies.design_spaces.statistics import Array

REFERENCE_SHARE = 0.2
"""Share of the trials that the reference population may take; it is left out where that is not enough."""

REDRAWS = 50
"""Draws for each model of the found rule, after which the rule counts as exhausted."""


class Refinement:
    """The procedure and what it has found.

    Args:
        space: the design space, with the options that are possible in the model.
        refused: for each axis, the options that are not and why.
        sampler: draws its models.
        bench: has them trained.
        budget: of every plan.
        options: see `DesignSpacesOptions`.
        seed: of the search.

    Attributes:
        kept: what is left of the design space.
        reference: the reference population, once it is done.
        stages: those that are done.
    """

    def __init__(
        self,
        space: DesignSpace,
        refused: dict[str, dict[str, str]],
        sampler: Sampler,
        bench: Bench,
        budget: Budget,
        options: DesignSpacesOptions,
        seed: int,
    ) -> None:
        self._space, self._refused, self._sampler, self._bench = space, refused, sampler, bench
        self._budget, self._options, self._seed = budget, options, seed
        self.kept = space
        self.reference: ReferenceReport | None = None
        self.stages: list[StageReport] = []

    def run(self) -> Procedure[None]:
        """Refine the space: S0, the stages in order, the found rule."""
        rungs = yield from self._reference()
        stages = [(number, axis) for number in range(1, self._options.passes + 1) for axis in self._space.order]
        for position, (number, axis) in enumerate(stages):
            ahead = [axis for _, axis in stages[position:]]
            stage = yield from self._stage(f"S{position + 1}", axis, number, rungs, ahead)
            self.kept = self._with(axis, stage.kept)
            self.stages.append(stage)
        yield from self._finale()

    # -- S0 -----------------------------------------------------------------------------------------------------------

    def _reference(self) -> Procedure[tuple[float, ...]]:
        """Train the reference population at every rung; return the rungs that rank models as full training does."""
        o, left = self._options, self._bench.left
        if left is not None and o.reference * len(o.rungs) > REFERENCE_SHARE * left:
            self.reference = ReferenceReport(0, None, None, [], (), "off: too few trials for a reference population")
            return (1.0,)
        models = list(islice(self._sampler.models(self._space, [self._seed, 0]), o.reference))
        scores: list[Array] = []  # of each rung [models, tasks]
        for share in o.rungs:
            table = yield from self._bench.measure([models], share, [f"S0 reference, {share:.0%} of the steps"])
            scores.append(table[0])
        taus = tuple(_tau(low, scores[-1]) for low in scores[:-1])
        full = scores[-1].mean(axis=1)
        usable = tuple(
            share for share, tau in zip(o.rungs, taus, strict=False) if tau is not None and tau >= o.least_tau
        )
        full = full[~np.isnan(full)]
        self.reference = ReferenceReport(
            n=len(full),
            mean=float(full.mean()) if len(full) else None,
            upper_mean=st.upper_mean(full) if len(full) else None,
            edf=st.edf(full),
            taus=taus,
            halving=_halving(o, taus, usable),
        )
        return (*usable, 1.0)

    # -- S1, S2, ... --------------------------------------------------------------------------------------------------

    def _stage(
        self, name: str, axis: str, number: int, rungs: Sequence[float], ahead: Sequence[str]
    ) -> Procedure[StageReport]:
        """Decide one axis, or keep it open."""
        options = self._space.options(axis)
        kept = tuple(option.label for option in self.kept.options(axis))
        rows = tuple(empty_row(label, "refused", why) for label, why in self._refused.get(axis, {}).items())

        def without_comparison(verdict: Verdict, labels: tuple[str, ...], why: str) -> StageReport:
            return StageReport(name, axis, verdict, labels, why, rows, passes=number)

        if len(options) == 1:
            return without_comparison("fixed", kept, "the only option")
        if not self._matters(axis):
            return without_comparison("fixed", kept, "the group is frozen in every design that is left")
        models = self._affordable_models(ahead, rungs)
        if not models:
            return without_comparison(
                "not run",
                kept,
                f"{self._options.least_models} models under {len(options)} options are more than the "
                f"{self._bench.left} trials that are left can pay for",
            )
        stream = [self._seed, 1 + len(self.stages)]
        others = self._with(axis, [option.label for option in options])
        population = paired_population(self._sampler, others, axis, options, models, stream)
        rows += tuple(empty_row(label, "refused", why) for label, why in population.refused.items())
        if not population.options:
            return without_comparison("not run", kept, "no option is possible in the designs that are left")
        if len(population.options) == 1:
            return without_comparison("fixed", population.options, "the only option that is possible")
        stage = yield from race(self._bench, name, axis, population, rungs, self._options, stream)
        labels = stage.kept
        if number > 1 and stage.verdict == "undecided":  # what was decided before stands unless it is refuted now
            labels = tuple(label for label in kept if label in labels) or labels
        return replace(stage, kept=labels, rows=(*stage.rows, *rows), passes=number)

    def _matters(self, axis: str) -> bool:
        """Return whether the options of ``axis`` make a difference in the designs that are left."""
        if not axis.startswith("methods."):
            return True
        group = group_number(axis.removeprefix("methods."), self.kept.groups)
        return any(group in tunable.groups for tunable in self.kept.tunable)

    def _with(self, axis: str, labels: Sequence[str]) -> DesignSpace:
        """Return what is left of the space, with the options ``labels`` on ``axis`` whether or not they are left."""
        return self.kept.with_axis(axis, self._space.keep(axis, labels).options(axis))

    def _affordable_models(self, ahead: Sequence[str], rungs: Sequence[float]) -> int:
        """Return how many base models the next stage may have; 0 when the trials do not allow the least number.

        The trials that are left, less those for the found rule, are shared over the stages ahead in proportion to their
        options, as if no option were let go.
        """
        o, left = self._options, self._bench.left
        if left is None:
            return o.models
        left -= min(o.finalists, left // 4)
        counts = [len(self._space.options(axis)) for axis in ahead if len(self._space.options(axis)) > 1]
        shared, alone = left // sum(counts), left // counts[0]
        for models in range(o.models, o.least_models - 1, -1):
            price = sum(count for _, count in schedule(models, rungs, o))
            if price <= shared or (models == o.least_models and price <= alone):
                return models
        return 0

    # -- the found rule -----------------------------------------------------------------------------------------------

    def _finale(self) -> Procedure[None]:
        """Train models of the found rule: its canonical designs at each learning rate, then others drawn from it.

        As many as the options say, or, where trials are counted, as there are left.
        """
        wanted = self._options.finalists if self._bench.left is None else self._bench.left
        requests: dict[str, Evaluate] = {}
        for candidate in islice(self._finalists(), REDRAWS * wanted):
            request = self._bench.request(candidate, 1.0, 0, f"found rule: {candidate.genotype.design}")
            if not self._bench.is_spent(request):
                requests.setdefault(request.key, request)
            if len(requests) == wanted:
                break
        yield from self._bench.ask(list(requests.values()))

    def _finalists(self) -> Iterator[Candidate]:
        for design, compiled in Rule(self.kept).plans(self._sampler.layout, self._budget):
            for lr_scale in self._sampler.rates.spread:
                yield Candidate(canonical_genotype(design, self._sampler.layout, lr_scale), compiled)
        with suppress(BudgetError):  # each option that is left is possible, but perhaps never all of them together
            yield from self._sampler.models(self.kept, [self._seed, 1 + len(self.stages)])


def _tau(low: Array, full: Array) -> float | None:
    """Return how a rung ranks models, by scores ``[models, tasks]``, compared with full training."""
    both = ~np.isnan(low).any(axis=1) & ~np.isnan(full).any(axis=1)
    if not both.any():
        return None
    first, last = (st.standardise(scores[None, both])[0] for scores in (low, full))
    tau = st.kendall_tau(first, last)
    return None if np.isnan(tau) else tau


def _halving(options: DesignSpacesOptions, taus: Sequence[float | None], usable: Sequence[float]) -> str:
    if len(options.rungs) == 1:
        return "off: one rung"
    ranks = ", ".join(
        f"{share:.0%} of the steps: tau {'undefined' if tau is None else f'{tau:.2f}'}"
        for share, tau in zip(options.rungs, taus, strict=False)
    )
    if not usable:
        return f"off: no rung ranks models as full training does ({ranks}; needed {options.least_tau:g})"
    return f"on ({ranks}; needed {options.least_tau:g})"
