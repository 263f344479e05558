from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from contract import StrategyContract, drive, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_one_shot import ToyOneShot, toy_factory

from fake_sites import fake_sites
from peftscout.errors import ConfigError, SpaceError
from peftscout.gates import Gates, Modules
from peftscout.plan import Budget
from peftscout.space import Choice, Space, load_space
from peftscout.strategies import make_strategy
from peftscout.strategies.one_shot import run
from peftscout.strategies.s3delta import S3DeltaOptions, S3DeltaSearch, s3delta
from peftscout.strategies.shifted_sigmoid import concrete

QUICK = S3DeltaOptions(steps=12, keep_every=5)
USEFUL = {1: 2.0, 4: 1.6, 7: 1.8, 10: 1.4}


def with_toy(p, **options):
    """The problem ``p`` with a toy supernet of its space."""
    modules = Modules(p.space)
    u = np.random.default_rng(0).random(len(modules))
    return replace(p, one_shot=toy_factory(modules, u, np.array([m.sizes[0] for m in modules]), **options))


class TestS3Delta(StrategyContract):
    factory = staticmethod(lambda p: s3delta(with_toy(p), QUICK))


class TestS3DeltaOfFirstOrderWithKnapsack(StrategyContract):
    options = S3DeltaOptions(steps=12, estimator="bilevel", selection="knapsack", competition=False)
    factory = staticmethod(lambda p: s3delta(with_toy(p), TestS3DeltaOfFirstOrderWithKnapsack.options))


class TestS3DeltaInOnePass(StrategyContract):
    factory = staticmethod(lambda p: s3delta(with_toy(p), S3DeltaOptions(steps=12, estimator="split")))


def small_space(sizes=(1,), modules: int = 12) -> Space:
    sites = fake_sites("encoder", layers=4)
    places = [s.id for s in sites.values() if s.kind == "linear" and s.in_features == s.out_features]
    return Space("small", tuple(Choice.untied(s, "lora", sizes) for s in places[:modules]), sites)


def searched(options: S3DeltaOptions, *, budget: int = 4 * 64, space: Space | None = None, seed: int = 0):
    modules = Modules(space or small_space())
    u = np.array([USEFUL.get(m, 0.0) for m in range(len(modules))])
    one_shot = ToyOneShot(modules, u, np.ones(len(modules), dtype=int), seed=seed, noise=0.2)
    search = S3DeltaSearch(modules, budget, options.steps or 120, seed, options)
    run(search, one_shot, options.keep_every)
    return search, one_shot


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("estimator", ["unrolled", "bilevel", "split"])
@pytest.mark.parametrize("selection", ["greedy", "knapsack"])
def test_it_finds_the_modules_that_matter(seed: int, estimator: str, selection: str) -> None:
    search, _ = searched(S3DeltaOptions(estimator=estimator, selection=selection), seed=seed)
    assert set(search.select()) == set(USEFUL)


def test_the_expected_cost_is_the_budget_at_every_iteration() -> None:
    modules = Modules(small_space((1, 4)))
    one_shot = ToyOneShot(modules, np.ones(len(modules)), np.ones(len(modules), dtype=int))
    search = S3DeltaSearch(modules, 700, 20, 0, S3DeltaOptions())
    while not search.finished:
        assert (search.n * search.p).sum() == pytest.approx(700, rel=1e-6)
        assert (search.n * search.p).sum() <= 700
        search.advance(one_shot)


@settings(max_examples=25)
@given(budget=st.integers(64, 9000), seed=st.integers(0, 3), selection=st.sampled_from(["greedy", "knapsack"]))
def test_the_budget_is_never_exceeded(budget: int, seed: int, selection: str) -> None:
    search, _ = searched(
        S3DeltaOptions(steps=6, selection=selection), budget=budget, space=small_space((1, 4, 8)), seed=seed
    )
    chosen = search.select()
    assert chosen
    assert sum(search.modules.costs[m, k] for m, k in chosen.items()) <= budget


def test_of_several_sizes_of_a_module_at_most_one_is_taken() -> None:
    search, _ = searched(S3DeltaOptions(steps=30), budget=2000, space=small_space((1, 4)))
    plan = search.modules.plan(search.select())
    assert len({(p.site, p.op) for p in plan}) == len(plan) > 0


def test_where_everything_fits_there_is_nothing_to_search_and_everything_is_taken() -> None:
    search, one_shot = searched(S3DeltaOptions(), budget=12 * 64)
    assert one_shot.passes == 0
    assert set(search.select()) == set(range(12))


def test_gates_of_the_sizes_add_up_in_the_gates_of_the_module() -> None:
    search = S3DeltaSearch(Modules(small_space((1, 4), 2)), 300, 5, 0, S3DeltaOptions())
    gates = search.gates(np.array([0.2, 0.6, 0.0, 0.5]))
    assert gates.on == pytest.approx([0.8, 0.5])
    assert gates.size == pytest.approx(np.array([[0.25, 0.75], [0.0, 1.0]]))


def test_the_gradient_at_the_gates_of_the_sizes_is_that_of_finite_differences() -> None:
    modules = Modules(small_space((1, 4), 3))
    one_shot = ToyOneShot(modules, np.array([1.0, 0.5, 2.0]), np.array([1, 4, 1]))
    search = S3DeltaSearch(modules, 300, 5, 0, S3DeltaOptions())
    z = np.random.default_rng(0).uniform(0.1, 0.9, 6)
    target = one_shot._target("validation")

    def loss(values: np.ndarray) -> float:
        return one_shot._gradients(search.gates(values), one_shot.theta, target)[0]

    expected = [(loss(z + d) - loss(z - d)) / 2e-6 for d in 1e-6 * np.eye(6)]
    seen = one_shot.step(search.gates(z), "validation", gate_gradients=True, update_weights=False)
    assert search.at_gates(seen, z) == pytest.approx(np.array(expected), abs=1e-5)


def test_the_second_order_gradient_looks_through_the_weight_step() -> None:
    """d/dz L_val(theta - rate dL_train/dtheta(z), z), by finite differences."""
    modules = Modules(small_space((1,), 3))
    one_shot = ToyOneShot(modules, np.array([1.0, 0.5, 2.0]), np.ones(3, dtype=int))
    z, size = np.array([0.3, 0.6, 0.9]), np.ones((3, 1))
    train, validation = one_shot._target("train"), one_shot._target("validation")

    def loss(on: np.ndarray) -> float:
        theta = one_shot.theta - one_shot.rate * one_shot._gradients(Gates(on, size), one_shot.theta, train)[3]
        return one_shot._gradients(Gates(on, size), theta, validation)[0]

    expected = [(loss(z + d) - loss(z - d)) / 2e-6 for d in 1e-6 * np.eye(3)]
    assert one_shot.unrolled(Gates(z, size)).on == pytest.approx(np.array(expected), rel=1e-4)


def test_one_u_serves_all_passes_of_a_gate_step_and_another_the_weight_step() -> None:
    search = S3DeltaSearch(Modules(small_space()), 256, 5, 0, S3DeltaOptions())
    assert np.array_equal(search._uniform(0), search._uniform(0))
    assert not np.array_equal(search._uniform(0), search._uniform(1))
    assert not np.array_equal(concrete(search.p, search._uniform(0)), concrete(search.p, search._uniform(1)))


def test_the_log_has_the_expected_size_and_the_probabilities() -> None:
    _search, one_shot = searched(S3DeltaOptions(steps=20, log_every=10))
    assert [e["iteration"] for e in one_shot.events] == [10, 20]
    assert one_shot.events[0]["expected_size"] == pytest.approx(256)
    assert len(one_shot.events[0]["probabilities"]) == 12


@pytest.mark.parametrize(("estimator", "passes"), [("unrolled", 5), ("bilevel", 2), ("split", 1)])
def test_an_iteration_has_the_passes_of_its_estimator(estimator: str, passes: int) -> None:
    _, one_shot = searched(S3DeltaOptions(steps=20, estimator=estimator))
    assert one_shot.passes == 20 * passes


@pytest.mark.parametrize("die_after", [1, 20, 55])
def test_a_search_that_was_killed_goes_on_to_the_same_result(die_after: int) -> None:
    space = small_space((1, 4))
    p = replace(problem(trials=5), space=space, sites=space.sites, budget=Budget(2000, "2000"))
    whole_disk: dict = {}
    whole = drive(lambda q: s3delta(with_toy(q, disk=whole_disk), QUICK), p)
    disk: dict = {}
    with pytest.raises(KeyboardInterrupt):
        drive(lambda q: s3delta(with_toy(q, disk=disk, die_after=die_after), QUICK), p)
    assert drive(lambda q: s3delta(with_toy(q, disk=disk), QUICK), p) == whole
    assert np.array_equal(disk["kept"][0].arrays["alpha"], whole_disk["kept"][0].arrays["alpha"])


def test_what_cannot_work_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="supernet"):
        s3delta(problem())
    with pytest.raises(SpaceError, match="nothing fits"):
        s3delta(with_toy(replace(problem(), budget=Budget(3, "3"))))
    with pytest.raises(SpaceError, match="switch"):
        s3delta(replace(problem(), space=load_space("autopeft", fake_sites())))


@pytest.mark.parametrize(
    "wrong",
    [{"selection": "best"}, {"steps": 0}, {"beta": -1.0}, {"clip": 0.0}, {"estimator": "all"}, {"validation_share": 0}],
)
def test_impossible_options_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_strategy("s3delta", problem(), wrong)
