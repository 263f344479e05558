"""Draw the models of a stage: feasible ones, and the same base models under every option (common random numbers)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from peftscout.errors import BudgetError, SpaceError
from peftscout.plan import Budget
from peftscout.strategies.design_spaces.axes import AxisOption, Design, DesignSpace, MethodSet
from peftscout.strategies.design_spaces.compilation import Compilation, Compiled, compile_genotype
from peftscout.strategies.design_spaces.compositions import Pattern, compositions
from peftscout.strategies.design_spaces.genotype import (
    Genotype,
    InfeasibleDesignError,
    Latent,
    LearningRates,
    draw_design,
    draw_latent,
    realise,
)
from peftscout.strategies.design_spaces.layout import Layout, group_number

PROBES = 40
"""Base models from which it is judged which options are possible at all."""

LEAST_FEASIBLE = 0.1
"""An option that is impossible in more base models than this leaves is refused."""

ATTEMPTS = 400
"""Impossible draws in a row after which no more models are expected."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a population: what it is and the plan that it became."""

    genotype: Genotype
    compiled: Compiled


@dataclass(frozen=True)
class Population:
    """The models of a stage.

    Attributes:
        options: labels of the options that are possible, simplest first.
        models: for each option, its models; position ``k`` is base model ``k`` under that option.
        refused: why the other options are not possible.
    """

    options: tuple[str, ...]
    models: Mapping[str, tuple[Candidate, ...]]
    refused: Mapping[str, str]


class Sampler:
    """Draws designs and compiles them; the same arguments always give the same models.

    Args:
        layout: layers and methods of the model.
        budget: of every plan.
        compilation: how genotypes become plans.
        rates: where learning-rate factors come from.
        largest_shortfall: share of the budget beyond which a plan that leaves it unspent is refused.
    """

    def __init__(
        self,
        layout: Layout,
        budget: Budget,
        compilation: Compilation,
        rates: LearningRates,
        largest_shortfall: float,
    ) -> None:
        self.layout = layout
        self.rates = rates
        self._budget = budget
        self._compilation = compilation
        self._largest_shortfall = largest_shortfall
        self._compiled: dict[object, Compiled | InfeasibleDesignError] = {}

    def candidate(self, design: Design, latent: Latent) -> Candidate:
        """Return the model of ``design`` with the random part ``latent``.

        Raises:
            InfeasibleDesignError: when it cannot be, or leaves too much of the budget unspent.
        """
        genotype = realise(design, latent, self.layout)
        key = (genotype.design.tunable, genotype.design.methods, genotype.sizes, genotype.slope)
        if key not in self._compiled:
            self._compiled[key] = self._compile(genotype)
        compiled = self._compiled[key]
        if isinstance(compiled, InfeasibleDesignError):
            raise compiled.with_traceback(None)
        return Candidate(genotype, compiled)

    def _compile(self, genotype: Genotype) -> Compiled | InfeasibleDesignError:
        try:
            compiled = compile_genotype(genotype, self.layout, self._budget, self._compilation)
        except InfeasibleDesignError as error:
            return error
        too_little = compiled.unspent > self._largest_shortfall * self._budget.parameters
        return InfeasibleDesignError(compiled.reason) if too_little else compiled

    def draws(self, space: DesignSpace, stream: Sequence[int]) -> Iterator[tuple[Design, Latent]]:
        """Yield base models without end: a design of ``space`` and a random part."""
        rng = np.random.default_rng(stream)
        while True:
            yield draw_design(rng, space), draw_latent(rng, self.layout, self.rates)

    def require_possible(self, space: DesignSpace, seed: int) -> None:
        """Make sure that models of ``space`` can be drawn.

        Where every one leaves too much of the budget unspent, because it is more than they can hold, that is allowed.

        Raises:
            BudgetError: when none is possible; the most frequent reason is given.
        """
        try:
            next(self.models(space, [seed, 0]))
        except BudgetError:
            self._largest_shortfall = 1.0
            self._compiled.clear()
            next(self.models(space, [seed, 0]))

    def models(self, space: DesignSpace, stream: Sequence[int]) -> Iterator[Candidate]:
        """Yield feasible models of ``space`` without end.

        Raises:
            BudgetError: when `ATTEMPTS` draws in a row are impossible; the most frequent reason is given.
        """
        reasons: Counter[str] = Counter()
        for design, latent in self.draws(space, stream):
            try:
                candidate = self.candidate(design, latent)
            except InfeasibleDesignError as error:
                reasons[str(error)] += 1
                if reasons.total() >= ATTEMPTS:
                    raise BudgetError(
                        f"none of {ATTEMPTS} designs of {space.name} is possible within {self._budget}; "
                        f"most often: {reasons.most_common(1)[0][0]}"
                    ) from None
            else:
                reasons.clear()
                yield candidate


def possible_options(space: DesignSpace, layout: Layout) -> tuple[DesignSpace, dict[str, dict[str, str]]]:
    """Take out of ``space`` what the model rules out whatever the budget: groupings without a structure at its depth,
    and method sets that name a method without any site.

    Returns:
        The space that is left, and for each axis the options that went and why.

    Raises:
        SpaceError: when an axis has no options left.
    """
    refused: dict[str, dict[str, str]] = {}
    for axis in space.axes:
        why = {o.label: reason for o in space.options(axis) if (reason := _impossible(o, layout))}
        left = [option.label for option in space.options(axis) if option.label not in why]
        if not left:
            raise SpaceError(f"design space {space.name!r}: {axis}: {next(iter(why.values()))}")
        refused[axis] = why
        space = space.keep(axis, left)
    return space, refused


def _impossible(option: AxisOption, layout: Layout) -> str:
    """Return why ``option`` is impossible in the model; ``""`` when it is not."""
    match option:
        case Pattern():
            for depth in layout.segments:
                try:
                    compositions(option, depth)
                except SpaceError as error:
                    return str(error)
        case MethodSet():
            if absent := [name for name in option.names if name in layout.absent]:
                return f"{absent[0]} has no site in this model and space"
        case _:
            pass
    return ""


def paired_population(
    sampler: Sampler, space: DesignSpace, axis: str, options: Sequence[AxisOption], models: int, stream: Sequence[int]
) -> Population:
    """Draw base models for the other axes and realise each under every option of ``axis``.

    Options that are hardly ever possible are refused; base models that are impossible under one of the others are
    replaced, so that every option is judged on the same ones.
    """
    reasons: dict[str, Counter[str]] = {option.label: Counter() for option in options}
    rows = _rows(sampler, space, axis, options, stream, reasons)
    probes = list(islice(rows, PROBES))
    labels = _possible([option.label for option in options], probes)
    complete = (row for row in chain(probes, rows) if all(label in row for label in labels))
    found = list(islice(complete, models)) if labels else []
    refused = {
        label: reasons[label].most_common(1)[0][0] if reasons[label] else "not possible in any base model"
        for label in reasons
        if label not in labels
    }
    return Population(tuple(labels), {label: tuple(row[label] for row in found) for label in labels}, refused)


def _rows(
    sampler: Sampler,
    space: DesignSpace,
    axis: str,
    options: Sequence[AxisOption],
    stream: Sequence[int],
    reasons: Mapping[str, Counter[str]],
) -> Iterator[dict[str, Candidate]]:
    """Yield base models under every option under which they are possible; count the reasons of the others.

    Ends after `ATTEMPTS` draws in a row that are impossible under every option.
    """
    group = group_number(axis.removeprefix("methods."), space.groups) if axis.startswith("methods.") else None
    in_vain = 0
    for design, latent in sampler.draws(space, stream):
        row = {}
        if group is None or group in design.tunable.groups:  # a frozen group shows nothing about its methods
            for option in options:
                try:
                    row[option.label] = sampler.candidate(design.with_option(axis, option), latent)
                except InfeasibleDesignError as error:
                    if group is not None and error.group not in (None, group):
                        break  # another group is impossible, whatever the methods of this one
                    reasons[option.label][str(error)] += 1
        in_vain = 0 if row else in_vain + 1
        if in_vain == ATTEMPTS:
            return
        if row:
            yield row


def _possible(labels: Sequence[str], rows: Sequence[Mapping[str, Candidate]]) -> list[str]:
    """Return the options that are possible often enough, each and together."""
    share = {label: sum(label in row for row in rows) / max(1, len(rows)) for label in labels}
    possible = [label for label in labels if share[label] >= LEAST_FEASIBLE]
    while len(possible) > 1:
        together = sum(all(label in row for label in possible) for row in rows) / len(rows)
        if together >= LEAST_FEASIBLE:
            break
        possible.remove(min(reversed(possible), key=lambda label: share[label]))
    return possible
