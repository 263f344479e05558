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
from peftscout.gates import Modules
from peftscout.plan import Budget
from peftscout.space import Choice, Space, load_space
from peftscout.strategies import make_strategy
from peftscout.strategies.bipeft import BipeftSearch, bipeft, regulariser_gradient, softmax, through_softmax
from peftscout.strategies.bipeft_options import BipeftOptions
from peftscout.strategies.one_shot import run

QUICK = BipeftOptions(steps=30, keep_every=7)


def with_toy(p, seed: int = 0, **options):
    """The problem ``p`` with a toy supernet of its space."""
    modules = Modules(p.space)
    rng = np.random.default_rng(seed)
    best = np.array([m.sizes[rng.integers(len(m.sizes))] for m in modules])
    return replace(p, one_shot=toy_factory(modules, rng.random(len(modules)), best, **options))


class TestBipeft(StrategyContract):
    factory = staticmethod(lambda p: bipeft(with_toy(p), QUICK))


class TestBipeftInTwoPasses(StrategyContract):
    factory = staticmethod(lambda p: bipeft(with_toy(p), replace(QUICK, estimator="bilevel")))


def small_space(sizes=(1, 4, 8), modules: int = 12) -> Space:
    """LoRA on as many projections of equal cost; 64 parameters a rank."""
    sites = fake_sites("encoder", layers=4)
    places = [s.id for s in sites.values() if s.kind == "linear" and s.in_features == s.out_features]
    return Space("small", tuple(Choice.untied(s, "lora", sizes) for s in places[:modules]), sites)


USEFUL = {1: 2.0, 4: 1.6, 7: 1.8, 10: 1.4}


def searched(options: BipeftOptions, *, budget: int, space: Space | None = None, best: int = 1, seed: int = 0, **toy):
    """Run a search on a toy where only the modules of `USEFUL` matter; return it and its toy."""
    modules = Modules(space or small_space((1,)))
    u = np.array([USEFUL.get(m, 0.0) for m in range(len(modules))])
    one_shot = ToyOneShot(modules, u, np.full(len(modules), best), seed=seed, **toy)
    search = BipeftSearch(modules, budget, options.steps or 200, seed, options)
    run(search, one_shot, options.keep_every)
    return search, one_shot


# -- it finds what is there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["bilevel", "split"])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_modules_that_matter(seed: int, estimator: str) -> None:
    search, _ = searched(BipeftOptions(steps=200, estimator=estimator), budget=4 * 64, seed=seed, noise=0.2)
    assert set(search.select()) == set(USEFUL)


def test_with_both_halves_in_one_pass_it_finds_them_about_as_often() -> None:
    options = [BipeftOptions(steps=200, estimator=estimator) for estimator in ("bilevel", "split")]
    found = [sum(set(searched(o, budget=4 * 64, seed=s)[0].select()) == set(USEFUL) for s in range(8)) for o in options]
    assert min(found) >= 5
    assert abs(found[0] - found[1]) <= 2


@pytest.mark.parametrize("order", ["alternating", "joint", "binary_first", "dimension_first"])
@pytest.mark.parametrize("gumbel", [True, False])
def test_every_ablation_runs_and_finds_them_too(order: str, gumbel: bool) -> None:
    options = BipeftOptions(steps=200, order=order, gumbel=gumbel, triggers=20)
    search, _ = searched(options, budget=4 * 4 * 64, space=small_space((1, 4)), best=4)
    assert len(set(search.select()) & set(USEFUL)) >= 3


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_sizes_that_matter(seed: int) -> None:
    where = {"budget": 4 * 8 * 64, "space": small_space((1, 8)), "best": 8, "noise": 0.1, "seed": seed}
    search, _ = searched(BipeftOptions(steps=600), **where)
    assert {m: search.modules[m].sizes[k] for m, k in search.select().items()} == dict.fromkeys(USEFUL, 8)


def test_trained_at_the_leading_size_alone_as_in_the_release_it_misses_larger_ones() -> None:
    where = {"budget": 4 * 8 * 64, "space": small_space((1, 8)), "best": 8, "noise": 0.1}
    found = [searched(BipeftOptions(steps=600, sampled_sizes=False), seed=s, **where)[0] for s in range(3)]
    assert any({m: s.modules[m].sizes[k] for m, k in s.select().items()} != dict.fromkeys(USEFUL, 8) for s in found)


# -- the budget -----------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    budget=st.integers(64, 8000), steps=st.integers(1, 60), triggers=st.integers(1, 30), seed=st.integers(0, 3),
    order=st.sampled_from(["alternating", "joint"]), warmup=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_the_budget_is_never_exceeded_however_the_search_ends(budget, steps, triggers, seed, order, warmup) -> None:
    options = BipeftOptions(steps=steps, triggers=triggers, order=order, warmup=warmup, threshold=0.3)
    search, _ = searched(options, budget=budget, space=small_space(), seed=seed)
    chosen = search.select()
    assert chosen
    assert sum(search.modules.costs[m, k] for m, k in chosen.items()) <= budget


def test_the_cap_on_steps_without_a_single_trigger_still_gives_a_result_within_the_budget() -> None:
    search, one_shot = searched(BipeftOptions(steps=20, warmup=1.0), budget=1000, space=small_space())
    assert not one_shot.events
    assert search.kept.all()
    assert 0 < sum(search.modules.costs[m, k] for m, k in search.select().items()) <= 1000


def test_pruned_modules_stay_pruned_and_fixed_sizes_stay_fixed() -> None:
    modules = Modules(small_space())
    one_shot = ToyOneShot(modules, np.random.default_rng(0).random(len(modules)), np.full(len(modules), 4))
    search = BipeftSearch(modules, 1024, 120, 0, BipeftOptions(threshold=0.3, triggers=40))
    kept, fixed = search.kept.copy(), search.fixed.copy()
    while not search.finished:
        search.advance(one_shot)
        assert not (search.kept & ~kept).any()
        assert (search.fixed == fixed)[fixed >= 0].all()
        kept, fixed = search.kept.copy(), search.fixed.copy()
    assert not kept.all()
    assert (fixed >= 0).any()
    assert search.T == 0


def test_after_the_last_trigger_what_is_left_is_within_the_budget() -> None:
    search, _ = searched(BipeftOptions(steps=300, threshold=0.3, triggers=40), budget=2048, space=small_space())
    assert search.T == 0
    assert (search.fixed[search.kept] >= 0).all()
    assert 0 < search.expected_size() <= 2048


# -- one trigger, by hand -------------------------------------------------------------------------------------------


def four_modules() -> BipeftSearch:
    """Two LoRA modules of sizes 1 and 2 (64 and 128 parameters) and two biases (32); T = 4, B = 100."""
    sites = fake_sites("encoder")
    choices = (
        Choice.untied("layers.0.attention.q", "lora", (1, 2)),
        Choice.untied("layers.0.attention.v", "lora", (1, 2)),
        Choice.untied("layers.0.attention.q", "bias", (1,)),
        Choice.untied("layers.0.attention.v", "bias", (1,)),
    )
    search = BipeftSearch(
        Modules(Space("four", choices, sites)), 100, 8, 0, BipeftOptions(triggers=4, certain_triggers=1)
    )
    search.alpha = np.zeros((4, 2))
    search.beta = np.array([[0.0, np.log(3.0)], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    search.S = np.array([4.0, 1.0, 3.0, 2.0])
    return search


def test_expected_sizes_are_prices_weighted_by_keep_and_size_probabilities() -> None:
    search = four_modules()
    assert search.T == 4
    assert search.modules.costs.tolist() == [[64, 128], [64, 128], [32, 0], [32, 0]]
    # P = 1/2; mean sizes 64/4 + 3 * 128/4 = 112, (64 + 128)/2 = 96, 32, 32
    assert search.expected_sizes() == pytest.approx([56, 48, 16, 16])
    assert search.expected_size() == pytest.approx(136)


def test_a_trigger_prunes_the_least_sensitive_and_fixes_the_most_settled_size() -> None:
    search = four_modules()
    first = search.beta.copy()
    first[1, 1] = -0.5  # module 1 changed its mind, module 0 did not
    search.betas = np.stack([first, search.beta])
    one_shot = ToyOneShot(search.modules, np.zeros(4), np.ones(4, dtype=int))
    search._trigger(one_shot)
    # reduction (136 - 100)/4 = 9 < 48: the least sensitive one (1) all the same, and no more.
    assert search.kept.tolist() == [True, False, True, True]
    assert search.T == 3
    # one open module is left and agrees with itself: floor(1 * 1 / 3) = 0 are fixed
    assert search.fixed.tolist() == [-1, -1, 0, 0]
    (event,) = one_shot.events
    assert event["expected_size"] == pytest.approx(136)
    assert event["reduction"] == pytest.approx(9)
    assert event["pruned"] == ["layers.0.attention.v:lora"]
    assert event["budget"] == 100


def test_before_the_last_trigger_every_open_size_is_fixed_at_its_best() -> None:
    search = four_modules()
    search.betas, search.T = np.stack([search.beta, search.beta]), 1
    assert search.freeze_sizes() == [0, 1]
    assert search.fixed.tolist() == [1, 0, 0, 0]


def test_the_number_of_sizes_fixed_is_agreement_times_open_over_triggers_left() -> None:
    search = four_modules()
    changed = search.beta.copy()
    changed[1] = [0.0, 1.0]  # 0 keeps its level, 1 changes it: agreement 1/2, of 2 open, with 1 and with 2 left
    search.betas, search.T = np.stack([changed, search.beta]), 2
    assert search.freeze_sizes() == []  # floor(1/2 * 2 / 2) = 0
    search.betas = np.stack([search.beta, search.beta])
    assert len(search.freeze_sizes()) == 1  # floor(1 * 2 / 2)


def test_pruning_goes_on_until_the_expected_size_is_lower_by_the_reduction() -> None:
    for reduction, pruned in ((15.0, [2]), (16.0, [2]), (16.1, [2, 3]), (32.0, [2, 3]), (33.0, [2, 3, 1])):
        search = four_modules()
        search.S = np.array([4.0, 3.0, 1.0, 2.0])  # the biases go first; E counts 16 of the 32 parameters of each
        assert search.prune(reduction) == pruned, reduction


def test_four_triggers_by_hand_stay_on_schedule_while_gates_become_certain() -> None:
    """B = 36 and T = 4. Mean sizes 112, 96, 32, 32, times P = 1/2, 2/3, 5/6, 1 of the four triggers."""
    search = four_modules()
    search.B, search.S = 36, np.array([4.0, 3.0, 1.0, 2.0])
    one_shot = ToyOneShot(search.modules, np.zeros(4), np.ones(4, dtype=int))
    trace = []
    for _ in range(4):
        search.betas = search.betas[:0]  # sizes stay open
        search._trigger(one_shot)
        event = one_shot.events[-1]
        trace.append((event["expected_size"], event["reduction"], [name.split(":")[1] for name in event["pruned"]]))
    assert trace == [
        # 56 + 48 + 16 + 16; 25 takes both biases (16, 32). Counted whole, the first (32) would not have fitted.
        (pytest.approx(136), pytest.approx(100 / 4), ["bias", "bias"]),
        # 2/3 (112 + 96); 34.2 takes the lesser LoRA (64)
        (pytest.approx(416 / 3), pytest.approx((416 / 3 - 36) / 3), ["lora"]),
        # 5/6 112: one is left, and it stays
        (pytest.approx(280 / 3), pytest.approx((280 / 3 - 36) / 2), []),
        (pytest.approx(112), pytest.approx(76), []),
    ]
    assert search.T == 0
    assert search.kept.tolist() == [True, False, False, False]
    assert search.modules.plan(search.select()).cost(search.modules.space.sites) <= 36


@settings(max_examples=20)
@given(budget=st.integers(64, 4000), triggers=st.integers(2, 40), seed=st.integers(0, 5))
def test_no_trigger_leaves_the_expected_size_behind_its_schedule(budget: int, triggers: int, seed: int) -> None:
    space = load_space("bipeft-s1", fake_sites("encoder", layers=2))
    rng = np.random.default_rng(seed)
    options = BipeftOptions(triggers=triggers, certain_triggers=min(10, triggers))
    search = BipeftSearch(Modules(space), budget, 1000, seed, options)
    while search.T:
        search.S, search.alpha = rng.random(len(search.S)), rng.standard_normal(search.alpha.shape)
        before = search.expected_size()
        reduction = (before - search.B) / search.T
        pruned = search.prune(reduction)
        if reduction > 0 and search.kept.sum() > 1:
            assert search.expected_size() <= before - reduction + 1e-6
            search.kept[pruned[-1]] = True  # without the last one it would not have been enough
            assert search.expected_size() > before - reduction
            search.kept[pruned[-1]] = False
        search.T -= 1
    assert search.expected_size() <= search.B or search.kept.sum() == 1


def test_nothing_is_pruned_below_the_budget_and_the_last_module_never_is() -> None:
    search = four_modules()
    assert search.prune(-1.0) == []
    search.kept[:] = [True, False, False, False]
    assert search.prune(1e9) == []


def test_certainty_grows_to_one_as_the_triggers_run_out() -> None:
    search = four_modules()
    seen = []
    for search.T in (4, 3, 2, 1, 0):
        seen.append(search.keep_probability()[0])
    assert seen == pytest.approx([0.5, 0.5 + 0.5 / 3, 0.5 + 1 / 3, 1.0, 1.0])


def test_stability_is_the_mean_cosine_with_the_indicators_before() -> None:
    search = four_modules()
    search.history = np.array([[1, 1, 0, 0]] * 5 + [[0, 0, 1, 1]], dtype=bool)
    z = np.array([1, 1, 0, 0], dtype=bool)
    assert search.stability(z) == pytest.approx(4 / 5)  # the last five: four alike, one disjoint


# -- gradients ------------------------------------------------------------------------------------------------------


def test_the_gradient_through_softmax_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    logits, upstream = rng.standard_normal((2, 3, 4))
    expected = _slope(lambda a: float((softmax(a / 2.0) * upstream).sum()), logits)
    assert through_softmax(softmax(logits / 2.0), upstream, tau=2.0) == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_the_regulariser_is_that_of_finite_differences() -> None:
    logits = np.random.default_rng(0).standard_normal((3, 2))
    allowed = np.ones((3, 2), dtype=bool)
    expected = _slope(lambda a: float(np.abs(softmax(a) - a).mean()), logits)
    assert regulariser_gradient(logits, allowed) == pytest.approx(expected, abs=1e-6)


def _slope(f, x: np.ndarray) -> np.ndarray:
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        slope[i] = (f(x + step) - f(x - step)) / 2e-6
    return slope


def test_sensitivity_is_train_plus_agreement_times_validation_per_parameter_and_smoothed() -> None:
    from peftscout.gates import Step

    search = four_modules()
    search.S = np.array([0.0, 1.0, 1.0, 0.0])
    none = np.zeros(4)
    train = Step(0.0, none, np.zeros((4, 2)), np.array([128.0, 64.0, 32.0, 32.0]), np.array([0.5, 0.0, 1.0, 1.0]))
    validation = Step(0.0, none, np.zeros((4, 2)), np.array([256.0, 64.0, 32.0, 32.0]), none)
    search._update_sensitivity(train, validation, np.array([True, True, True, False]))
    # s = [(128 + .5 * 256) / 128, 64 / 64, (32 + 32) / 32]; the first has no past, the last was off
    assert pytest.approx([2.0, 1.0, 0.85 + 0.15 * 2.0, 0.0]) == search.S


# -- resuming, refusing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("die_after", [1, 8, 14, 20])
def test_a_search_that_was_killed_goes_on_to_the_same_result(die_after: int) -> None:
    p = replace(problem(trials=5), space=small_space(), sites=small_space().sites, budget=Budget(2000, "2000"))
    options = BipeftOptions(steps=50, keep_every=9, threshold=0.3, triggers=10)
    whole_disk: dict = {}
    whole = drive(lambda q: bipeft(with_toy(q, disk=whole_disk), options), p)
    disk: dict = {}
    with pytest.raises(KeyboardInterrupt):
        drive(lambda q: bipeft(with_toy(q, disk=disk, die_after=die_after), options), p)
    resumed = drive(lambda q: bipeft(with_toy(q, disk=disk), options), p)
    assert resumed == whole
    (kept, mine), (kept_again, mine_again) = whole_disk["kept"], disk["kept"]
    assert kept.facts == kept_again.facts
    assert mine["events"] == mine_again["events"]
    assert all(np.array_equal(kept.arrays[name], kept_again.arrays[name]) for name in kept.arrays)


def test_a_finished_search_is_not_run_again() -> None:
    disk: dict = {}
    p = problem(trials=3)
    first = drive(lambda q: bipeft(with_toy(q, disk=disk), QUICK), p)
    again = with_toy(p, disk=disk)
    assert drive(lambda q: bipeft(again, QUICK), p) == first
    assert again.one_shot.opened[0].passes == 0


@pytest.mark.parametrize(("estimator", "passes"), [("bilevel", 2), ("split", 1)])
def test_an_iteration_is_two_passes_or_one_that_is_split(estimator: str, passes: int) -> None:
    _, one_shot = searched(BipeftOptions(steps=40, warmup=1.0, estimator=estimator), budget=640)
    assert one_shot.passes == 40 * passes


def test_without_a_supernet_or_a_budget_it_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="supernet"):
        bipeft(problem())
    with pytest.raises(SpaceError, match="nothing fits"):
        bipeft(with_toy(replace(problem(), budget=Budget(3, "3"))))
    with pytest.raises(SpaceError, match="switch"):
        bipeft(replace(problem(), space=load_space("autopeft", fake_sites())))


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "both"},
        {"estimator": "all"},
        {"validation_share": 0.0},
        {"steps": 0},
        {"ema": 1.5},
        {"clip": 0.0},
        {"window": 0},
        {"triggers": 0},
    ],
)
def test_impossible_options_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_strategy("bipeft", problem(), wrong)
