"""The refinement as an ask/tell strategy, and what it has found as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftscout.errors import SpaceError
from peftscout.outcome import Evaluate, Outcome
from peftscout.plan import Plan
from peftscout.strategies.base import Problem
from peftscout.strategies.design_spaces.axes import DesignSpace
from peftscout.strategies.design_spaces.bench import Bench
from peftscout.strategies.design_spaces.compilation import Compilation
from peftscout.strategies.design_spaces.genotype import LearningRates
from peftscout.strategies.design_spaces.layout import layout
from peftscout.strategies.design_spaces.options import DesignSpacesOptions
from peftscout.strategies.design_spaces.populations import Sampler, possible_options
from peftscout.strategies.design_spaces.refinement import Refinement
from peftscout.strategies.design_spaces.rule import Rule
from peftscout.strategies.design_spaces.stages import ReferenceReport, StageReport
from peftscout.strategies.design_spaces.yaml import load_design_space


@dataclass(frozen=True)
class RefinementReport:
    """What a refinement has found so far.

    Attributes:
        design_space: name of the space it started from.
        reference: the reference population, once it is done.
        stages: those that are done, in order.
        rule: what is left of the design space.
        plans: canonical plans of the rule at the budget, with the design of each in words.
        told: number of outcomes.
        finished: whether nothing is left to ask.
    """

    design_space: str
    reference: ReferenceReport | None
    stages: tuple[StageReport, ...]
    rule: Rule
    plans: tuple[tuple[str, Plan], ...]
    told: int
    finished: bool

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "design_space": self.design_space,
            "reference": None if self.reference is None else self.reference.to_json(),
            "stages": [stage.to_json() for stage in self.stages],
            "rule": str(self.rule),
            "open_axes": list(self.rule.open_axes),
            "rule_space": self.rule.to_yaml(),
            "plans": [{"design": design, "plan": plan.to_json()} for design, plan in self.plans],
            "told": self.told,
            "finished": self.finished,
        }


def design_spaces(problem: Problem, options: DesignSpacesOptions | None = None) -> DesignSpacesSearch:
    """Return the strategy that refines a design space stage by stage.

    Plans have ops at sites of the problem's space; their sizes follow from the budget. Base model ``k`` of every
    population is trained with the seed ``problem.seed + k``. On a model with fewer layers than the design space has
    groups, there are as many groups as layers.

    Raises:
        SpaceError: when the design space does not fit the model.
        BudgetError: when no design of it is possible within the budget.
    """
    return DesignSpacesSearch(problem, options or DesignSpacesOptions())


class DesignSpacesSearch:
    """The strategy; see `design_spaces`."""

    def __init__(self, problem: Problem, options: DesignSpacesOptions) -> None:
        space = load_design_space(options.design_space, options.groups)
        allowed = {(choice.site, choice.op) for choice in problem.space.choices}
        self._layout = layout(problem.sites, space.methods_defined, space.numbering, allowed)
        if options.groups is None and min(self._layout.segments) < space.groups:
            space = _with_a_group_for_each_layer(options.design_space, space, min(self._layout.segments))
        space, refused = possible_options(space, self._layout)
        sampler = Sampler(
            self._layout,
            problem.budget,
            Compilation(options.tolerance, options.frozen_share),
            LearningRates(problem.lr_scales, options.lr_between, options.lr_of_each),
            options.largest_shortfall,
        )
        sampler.require_possible(space, problem.seed)
        self._problem, self._space = problem, space
        self._bench = Bench(problem)
        self._refinement = Refinement(space, refused, sampler, self._bench, problem.budget, options, problem.seed)
        self._procedure = self._refinement.run()
        self._batch: list[Evaluate] = []
        self._handed_out: set[str] = set()
        self._finished = False

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return up to ``capacity`` requests of the batch at hand that are neither handed out nor told."""
        self._go_on()
        waiting = [r for r in self._batch if r.key not in self._handed_out and not self._bench.is_told(r)][:capacity]
        self._handed_out |= {request.key for request in waiting}
        return waiting

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of an outcome."""
        self._bench.tell(request, outcome)

    def report(self) -> RefinementReport:
        """Return what was found so far. May be called at any time, also after a replay of outcomes without `ask`."""
        self._go_on()
        rule = Rule(self._refinement.kept)
        plans = rule.plans(self._layout, self._problem.budget)
        return RefinementReport(
            self._space.name,
            self._refinement.reference,
            tuple(self._refinement.stages),
            rule,
            tuple((str(design), compiled.plan) for design, compiled in plans),
            self._bench.told,
            self._finished,
        )

    def _go_on(self) -> None:
        """Run the procedure until it waits for an outcome or ends."""
        while not self._finished and all(map(self._bench.is_told, self._batch)):
            try:
                self._batch = next(self._procedure)
            except StopIteration:
                self._batch, self._finished = [], True


def _with_a_group_for_each_layer(name: str, space: DesignSpace, layers: int) -> DesignSpace:
    """Return the design space with as many groups as the model has layers."""
    try:
        return load_design_space(name, layers)
    except SpaceError as error:
        raise SpaceError(f"the model has {layers} layers, fewer than the {space.groups} groups of {error}") from None
