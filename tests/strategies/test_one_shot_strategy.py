"""What comes of a one-shot search: its result, alternatives near to it, and nothing above the budget."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from contract import drive, problem

from fake_sites import fake_sites
from peftscout.gates import Gates, Kept, Modules, WeightTraining
from peftscout.plan import Budget, Plan
from peftscout.space import Choice, Space, load_space
from peftscout.strategies.knapsack import knapsack
from peftscout.strategies.one_shot import OneShotStrategy, above_zero, run

TRAINING = WeightTraining(steps=5, learning_rate=None, weight_decay=0.0, clip=1.0, seed=0)


class Counting:
    """A search of five iterations that does nothing, whose values are given."""

    def __init__(self, modules: Modules, values: np.ndarray, budget: int) -> None:
        self.modules, self._values, self.budget = modules, values, budget
        self.iteration, self.advanced = 0, 0

    @property
    def finished(self) -> bool:
        return self.iteration == 5

    def advance(self, one_shot: object) -> None:
        self.iteration += 1
        self.advanced += 1

    def select(self) -> dict[int, int]:
        return knapsack(self.modules.costs, self._values, self.budget)

    def values(self) -> np.ndarray:
        return self._values

    def save(self) -> Kept:
        return Kept({}, {"iteration": self.iteration})

    def load(self, kept: Kept) -> None:
        self.iteration = kept.facts["iteration"]


class Disk:
    """A one-shot that only keeps."""

    def __init__(self, kept: Kept | None = None) -> None:
        self.kept, self.saves = kept, 0

    def keep(self, arrays, facts) -> None:
        self.kept, self.saves = Kept(arrays, facts), self.saves + 1

    def resume(self) -> Kept | None:
        return self.kept

    def keep_slice(self, plan: Plan) -> str:
        return f"slice {plan.digest}"


def strategy(
    trials: int | None = 10, alternatives: int = 3, lr_scales=(1.0,), values=None, clear: float = 1.0, **options
):
    p = problem(trials=trials, space="lora", budget=1500, lr_scales=lr_scales)
    modules = Modules(p.space)
    if values is None:
        values = np.where(modules.allowed, np.random.default_rng(0).random(modules.costs.shape) ** clear, -np.inf)

    @contextmanager
    def opened(training: WeightTraining):
        assert training is TRAINING
        yield Disk()

    p = replace(p, one_shot=opened)
    search = Counting(modules, values, p.budget.parameters)
    return (
        p,
        OneShotStrategy(p, TRAINING, search, label="toy", alternatives=alternatives, keep_every=2, **options),
        search,
    )


def test_the_search_runs_once_when_it_is_first_asked() -> None:
    _, s, search = strategy()
    assert search.advanced == 0
    s.ask(1)
    s.ask(1)
    assert search.advanced == 5


def test_the_first_request_is_the_result_and_the_others_are_alternatives() -> None:
    p, s, search = strategy()
    requests = drive(lambda _: s, p)[1:]
    assert [r.label for r in requests] == ["toy", *["toy, alternative"] * 3]
    assert requests[0].plan == search.modules.plan(search.select())
    assert len({r.plan for r in requests}) == 4
    assert all(r.plan.cost(p.sites) in p.budget for r in requests)


def test_a_warm_start_names_the_slice_of_every_plan_and_changes_nothing_else() -> None:
    fresh, warm = (strategy(warm_start=warm)[1].ask(10) for warm in (False, True))
    assert [r.initial for r in fresh] == [""] * 4
    assert [r.initial for r in warm] == [f"slice {r.plan.digest}" for r in fresh]
    assert [replace(r, initial="") for r in warm] == list(fresh)


def test_no_request_is_lost_when_few_are_asked_for_at_a_time() -> None:
    _, one_by_one, _ = strategy()
    _, at_once, _ = strategy()
    assert [r for _ in range(4) for r in one_by_one.ask(1)] == list(at_once.ask(10))
    assert one_by_one.ask(5) == []


@pytest.mark.parametrize(("trials", "asked"), [(1, 0), (2, 1), (3, 2), (None, 4), (50, 4)])
def test_trials_and_alternatives_bound_the_requests(trials, asked: int) -> None:
    _, s, _ = strategy(trials=trials)
    assert len(s.ask(100)) == asked


def test_where_the_values_leave_no_doubt_there_are_fewer_alternatives() -> None:
    p = problem(space="lora", budget=1500)
    modules = Modules(p.space)
    values = np.full(modules.costs.shape, -np.inf)
    values[0, 0] = 1.0
    _, s, _ = strategy(values=values)
    (only,) = s.ask(10)
    assert len(only.plan) == 1


@pytest.mark.parametrize(("scales", "expected"), [((1.0,), 1.0), ((0.3, 1.0, 3.0), 1.0), ((0.5, 2.0), 0.5)])
def test_the_learning_rate_is_the_one_the_rates_were_made_for_where_it_is_allowed(scales, expected: float) -> None:
    _, s, _ = strategy(lr_scales=scales)
    assert {r.lr_scale for r in s.ask(10)} == {expected}


def test_it_is_saved_every_so_often_and_at_the_end() -> None:
    search = strategy()[2]
    disk = Disk()
    run(search, disk, keep_every=2)
    assert disk.saves == 3
    assert disk.kept == Kept({}, {"iteration": 5})


def test_it_goes_on_where_it_was_saved() -> None:
    search = strategy()[2]
    run(search, Disk(Kept({}, {"iteration": 3})), keep_every=2)
    assert search.advanced == 2


def test_what_is_worth_nothing_still_fills_the_budget_but_never_displaces_what_is_worth_something() -> None:
    space = load_space("bipeft-s1", fake_sites())
    modules = Modules(space)
    values = np.zeros(modules.costs.shape)
    values[0, 0] = 1e-3
    filled = above_zero(values, modules)
    chosen = knapsack(modules.costs, filled, 3000)
    assert chosen[0] == 0
    assert 0.95 * 3000 < sum(modules.costs[m, k] for m, k in chosen.items()) <= 3000
    assert (filled[~modules.allowed] == -np.inf).all()


def test_gates_of_a_plan_are_hard_and_of_its_sizes() -> None:
    sites = fake_sites()
    q, v = (Choice.untied(f"layers.0.attention.{r}", "lora", (1, 4)) for r in "qv")
    modules = Modules(Space("two", (q, v), sites))
    gates = Gates.of_plan(Plan.of({(v.site, "lora"): 4}), modules)
    assert gates.on.tolist() == [0.0, 1.0]
    assert gates.size[1].tolist() == [0.0, 1.0]
    assert gates.size.sum(1).tolist() == [1.0, 1.0]
    nothing = Gates.of_plan(Plan(), modules)
    assert not nothing.on.any()


def test_a_budget_within_which_only_one_module_fits_still_gives_a_plan() -> None:
    p = replace(problem(space="lora"), budget=Budget(64, "64"))
    modules = Modules(p.space)
    values = above_zero(np.zeros(modules.costs.shape), modules)
    assert modules.plan(knapsack(modules.costs, values, 64)).cost(p.sites) == 64
