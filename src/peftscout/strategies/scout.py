"""Scout: one short pass over a supernet says what every level of every module is worth, and a knapsack does the rest.

1. The supernet is trained for a share of one fine-tuning. Each step draws which modules are on (site dropout) and takes
   their smallest, their largest or random sizes in turn (the sandwich rule of Yu & Huang, 2019), so that every
   sub-plan is trained a little. The backward of that very step gives the slope of the loss at every gate; from these
   follow the values (`scout_values`). No bilevel loop, no other pass.
2. A multiple-choice knapsack on the values gives the plan of every budget from one table: the ladder. Every few steps
   the modules that no budget of interest chooses are dropped, and the steps get cheaper.
3. The plans of the ladder, a few from shaken values, those of the other measures of value, one without the op that has
   most of the budget, and uniform LoRA as the space has it are ranked by their loss on training rows that the supernet
   did not see, with the supernet's weights: all on a part of the rows, the better third on all of them. What is much
   like a better one stands back.
4. The first of them are trained as any plan is, from fresh weights and from those of the supernet (`scout_checks`).
   Uniform LoRA is trial 0 of every study, so where nothing beats it, it is the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftscout.gates import Floats, Gates, Kept, Modules
from peftscout.plan import Plan
from peftscout.strategies.base import Problem
from peftscout.strategies.knapsack import ladder
from peftscout.strategies.one_shot import ALTERNATIVE_NOISE, OneShot, above_zero
from peftscout.strategies.scout_checks import Ranked, ScoutChecks
from peftscout.strategies.scout_options import MEASURES, Measure, ScoutOptions
from peftscout.strategies.scout_values import GateSlopes

DROPPED_WORTH = 1e-6
"""Factor on the value of a dropped module: it only fills what the others leave of the budget."""

QUICK_CELLS = 20_000_000
"""Cells of the table by which modules are dropped: a nearly best ladder will do."""

ALIKE = 0.7
"""Share of parameters from which two plans are taken to be nearly the same."""

FIRST_LOOK = 3
"""Part of the rows, one in so many, on which all candidates are ranked."""

_GOLDEN = (5**0.5 - 1) / 2
_ATTEMPTS = 20


def scout(problem: Problem, options: ScoutOptions | None = None) -> ScoutChecks:
    """Return the strategy that scouts on a supernet, then asks for the plans that it ranks first.

    Raises:
        ConfigError: when the problem comes without a supernet.
        SpaceError: when the space has switches, or nothing fits into the budget.
    """
    o = options or ScoutOptions()
    steps = o.steps_of(problem.fidelity.steps)
    search = ScoutSearch(Modules(problem.space), problem.budget.parameters, steps, problem.seed, o, problem.baseline)
    return ScoutChecks(problem, o.training(steps, problem.seed), search, o)


@dataclass(frozen=True)
class Candidate:
    """A plan that may be worth an evaluation.

    Attributes:
        label: in words.
        levels: of its modules.
    """

    label: str
    levels: Mapping[int, int]


class ScoutSearch:
    """The state of the search: first ``steps`` steps on the supernet, then one candidate is ranked at a time.

    Args:
        modules: of the space.
        budget: of the plans.
        steps: of the supernet.
        seed: of gates and alternatives.
        options: see there.
        baseline: uniform LoRA at the budget.
    """

    def __init__(
        self, modules: Modules, budget: int, steps: int, seed: int, options: ScoutOptions, baseline: Plan
    ) -> None:
        self.modules, self.budget, self.steps, self.seed, self.o = modules, budget, steps, seed, options
        self.baseline = baseline
        self.iteration = 0
        self.slopes = GateSlopes((modules.costs.shape[0], modules.costs.shape[1]), options.memory * steps)
        self.losses: list[float] = []
        self.closer: list[float] = []
        self._affordable: NDArray[np.bool_] = np.asarray(modules.allowed & (modules.costs <= budget))
        self.kept: NDArray[np.bool_] = np.asarray(self._affordable.any(1))
        self._shrinks = options.shrinks_at(steps)
        self._candidates: list[Candidate] | None = None

    @property
    def finished(self) -> bool:
        """Whether the supernet is trained and all candidates are ranked."""
        return self.iteration >= self.steps and self._ranked

    def advance(self, one_shot: OneShot) -> None:
        """Train the supernet by one step, or rank one candidate."""
        if self.iteration < self.steps:
            self._train(one_shot)
        else:
            self._rank(one_shot)
        self.iteration += 1

    # -- 1: the supernet ----------------------------------------------------------------------------------------------

    def _train(self, one_shot: OneShot) -> None:
        gates = self.draw()
        self.slopes.see(gates, one_shot.step(gates, "train", gate_gradients=True, update_weights=True))
        if (slack := self._shrinks.get(self.iteration + 1)) is not None:
            self._shrink(one_shot, slack)

    def draw(self) -> Gates:
        """Return the gates of this iteration: which modules are on, and at which size.

        The share of open modules goes through its range evenly (multiples of the golden ratio), the three kinds of
        sizes take turns. Closed modules are set to their smallest size.
        """
        rng = np.random.default_rng([self.seed, self.iteration])
        share = self.o.open_from + (self.o.open_to - self.o.open_from) * ((self.iteration + 1) * _GOLDEN % 1)
        on = self.kept & (rng.random(len(self.kept)) < share)
        if not on.any():
            on[rng.choice(np.flatnonzero(self.kept))] = True
        most = np.maximum(self._affordable.sum(1), 1)
        level = (most - 1, np.zeros_like(most), rng.integers(0, most))[self.iteration % 3]
        return Gates(on.astype(np.float64), self.modules.one_hot(np.where(on, level, 0)), self.kept)

    # -- 2: values, and a plan for every budget -----------------------------------------------------------------------

    def values(self) -> Floats:
        """Return what every level is worth, ``[modules, levels]``; next to nothing where the module was dropped."""
        return self._values(self.o.measure)

    def _values(self, measure: Measure) -> Floats:
        values = self.slopes.values(measure)
        return above_zero(values * np.where(self.kept, 1.0, DROPPED_WORTH)[:, None], self.modules)

    def plans(self, budgets: Sequence[int]) -> list[dict[int, int]]:
        """Return the levels of the best plan for each of ``budgets``, none of which is above that of the search."""
        return ladder(self.modules.costs, self.values(), [min(b, self.budget) for b in budgets])

    def select(self) -> dict[int, int]:
        """Return the levels of the best plan by value."""
        return self.plans([self.budget])[0]

    def _shrink(self, one_shot: OneShot, slack: float) -> None:
        """Drop the modules that neither a rung of the ladder nor ``slack`` times the budget chooses."""
        values = np.where(self.kept[:, None] & self._affordable, self.values(), -np.inf)
        budgets = [*self._rungs(), int(slack * self.budget)]
        chosen = {m for levels in ladder(self.modules.costs, values, budgets, QUICK_CELLS) for m in levels}
        dropped = sorted(set(np.flatnonzero(self.kept).tolist()) - chosen)
        self.kept = self.kept & ~np.isin(np.arange(len(self.kept)), dropped)
        one_shot.log(
            {
                "iteration": self.iteration + 1,
                "slack": slack,
                "left": int(self.kept.sum()),
                "dropped": [self.modules[m].name for m in dropped],
            }
        )

    def _rungs(self) -> list[int]:
        return [int(share * self.budget) for share in self.o.ladder]

    # -- 3: ranking ---------------------------------------------------------------------------------------------------

    def candidates(self) -> list[Candidate]:
        """Return the plans to be ranked (see the module, 3), without repetitions."""
        if self._candidates is None:
            found: dict[tuple[tuple[int, int], ...], Candidate] = {}
            for label, levels in self._proposed():
                if levels:
                    found.setdefault(tuple(sorted(levels.items())), Candidate(label, levels))
            self._candidates = list(found.values())
        return self._candidates

    def _proposed(self) -> list[tuple[str, dict[int, int]]]:
        rungs = zip(self.o.ladder, self.plans(self._rungs()), strict=True)
        proposed = [("scout" if share == 1 else f"scout, {share:.0%} of the budget", plan) for share, plan in rungs]
        proposed += [("scout, alternative", plan) for plan in self._alternatives(proposed[0][1])]
        proposed += [(f"scout, by {measure}", self._best(self._values(measure))) for measure in self._other_measures]
        if (op := self._most_of(proposed[0][1])) is not None:
            proposed.append((f"scout, without {op}", self._best(self._values_without(op))))
        return [*proposed, ("uniform LoRA in the space", self._uniform())]

    @property
    def _other_measures(self) -> list[Measure]:
        """Measures besides that of the options, each wrong in its own way; saliency is only there if asked for."""
        return [measure for measure in MEASURES if measure not in (self.o.measure, "saliency")]

    def _most_of(self, levels: Mapping[int, int]) -> str | None:
        """Return the op that takes more than half of a plan's parameters; ``None`` where none does.

        Values of different ops err alike within an op: gates of prefixes answer more steeply than they end, say.
        """
        costs: dict[str, int] = {}
        for m, k in levels.items():
            for op in {choice.op for choice in self.modules[m].choices}:
                costs[op] = costs.get(op, 0) + int(self.modules.costs[m, k])
        total = sum(costs.values())
        return next((op for op, cost in costs.items() if cost > total / 2), None)

    def _values_without(self, op: str) -> Floats:
        held = np.array([any(choice.op == op for choice in module.choices) for module in self.modules])
        return np.where(held[:, None], -np.inf, self.values())

    def _best(self, values: Floats) -> dict[int, int]:
        (plan,) = ladder(self.modules.costs, values, [self.budget])
        return plan

    def _alternatives(self, result: dict[int, int]) -> list[dict[int, int]]:
        """Return selections by values that are shaken a little."""
        values = self.values()
        others: list[dict[int, int]] = []
        for n in range(self.o.alternatives * _ATTEMPTS):
            if len(others) == self.o.alternatives:
                break
            noise = np.random.default_rng([self.seed, n, 1]).standard_normal(values.shape)
            (plan,) = ladder(self.modules.costs, values * np.exp(ALTERNATIVE_NOISE * noise), [self.budget])
            if plan != result and plan not in others:
                others.append(plan)
        return others

    def _uniform(self) -> dict[int, int]:
        """Return the baseline with every size rounded down to one that the space has; what it has not is left out."""
        sizes = self.baseline.sizes
        levels: dict[int, int] = {}
        for m, module in enumerate(self.modules):
            of_choices = [sizes.get((choice.site, choice.op), 0) for choice in module.choices]
            if held := [k for k, size in enumerate(module.sizes) if size <= min(of_choices)]:
                levels[m] = held[-1]
        return levels

    def _rank(self, one_shot: OneShot) -> None:
        """Score the next candidate: all on a part of the rows, then the better ones on all of them."""
        first = len(self.losses) < len(self.candidates())
        n = len(self.losses) if first else self._better()[len(self.closer)]
        plan = self.modules.plan(self.candidates()[n].levels)
        rows = -(-self.o.ranking_rows // FIRST_LOOK) if first else self.o.ranking_rows
        (self.losses if first else self.closer).append(one_shot.held_out_loss(Gates.of_plan(plan, self.modules), rows))
        if self._ranked:
            one_shot.log({"iteration": self.iteration + 1, "values": self._values_told(), "ranking": self._told()})

    @property
    def _ranked(self) -> bool:
        return len(self.losses) == len(self.candidates()) and len(self.closer) == len(self._better())

    def _better(self) -> list[int]:
        """Return the candidates that are looked at more closely, in the order of the first look; none before its end.

        There are a third of them, and at least as many as may be checked; none that diverged.
        """
        if len(self.losses) < (n := len(self.candidates())):
            return []
        in_order = [int(n) for n in np.argsort(np.array(self.losses), kind="stable") if np.isfinite(self.losses[n])]
        return in_order[: max(self.o.checks, -(-n // 3))]

    def _order(self) -> list[int]:
        """Return all candidates, the best first: those that were looked at more closely before all others."""
        closer = dict(zip(self._better(), self.closer, strict=True))

        def place(n: int) -> tuple[bool, float]:
            return not np.isfinite(closer.get(n, np.inf)), closer.get(n, self.losses[n])

        return sorted(range(len(self.losses)), key=place)

    def _values_told(self) -> list[dict[str, Any]]:
        return [
            {
                "name": module.name,
                "places": [[choice.site, choice.op] for choice in module.choices],
                "sizes": list(module.sizes),
                "values": values[: len(module.sizes)],
            }
            for module, values in zip(self.modules, self.values().tolist(), strict=True)
        ]

    def _told(self) -> list[dict[str, Any]]:
        """Return the ranking, the best first."""
        values, closer = self.values(), dict(zip(self._better(), self.closer, strict=True))
        found = [(n, self.candidates()[n], closer.get(n, self.losses[n])) for n in self._order()]
        return [
            {
                "label": candidate.label,
                "cost": int(sum(self.modules.costs[m, k] for m, k in candidate.levels.items())),
                "value": float(sum(values[m, k] for m, k in candidate.levels.items())),
                "held_out_loss": loss if np.isfinite(loss) else None,
                "all_rows": n in closer,
                "plan": self.modules.plan(candidate.levels).to_json(),
            }
            for n, candidate, loss in found
        ]

    def ranking(self) -> list[Ranked]:
        """Return all candidates, the best first.

        Those that share more than `ALIKE` of their parameters with a better one come after all others: there are few
        checks, and the second of two that are alike tells little.
        """
        candidates = self.candidates()
        apart: list[Candidate] = []
        alike: list[Candidate] = []
        for n in self._order():
            of_another = any(self._shared(candidates[n].levels, better.levels) > ALIKE for better in apart)
            (alike if of_another else apart).append(candidates[n])
        return [Ranked(c.label, self.modules.plan(c.levels)) for c in (*apart, *alike)]

    def _shared(self, one: Mapping[int, int], other: Mapping[int, int]) -> float:
        """Return the share of the parameters in either of two plans that are in both."""
        costs, modules = self.modules.costs, sorted(one.keys() | other.keys())
        first, second = (
            np.array([costs[m, plan[m]] if m in plan else 0 for m in modules], dtype=np.int64) for plan in (one, other)
        )
        return int(np.minimum(first, second).sum()) / max(1, int(np.maximum(first, second).sum()))

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self) -> Kept:
        """Return the whole state; the random streams follow from seed and iteration."""
        losses = {name: np.array(getattr(self, name), dtype=np.float64) for name in ("losses", "closer")}
        arrays = {"kept": self.kept, **losses, **self.slopes.state()}
        return Kept(arrays, {"iteration": self.iteration})

    def load(self, kept: Kept) -> None:
        """Take up a `save`."""
        self.iteration, self._candidates = kept.facts["iteration"], None
        self.kept = kept.arrays["kept"].copy()
        self.losses, self.closer = kept.arrays["losses"].tolist(), kept.arrays.get("closer", np.zeros(0)).tolist()
        self.slopes.load({name: kept.arrays[name] for name in self.slopes.state()})
