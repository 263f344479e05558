from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from contract import StrategyContract, drive, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from toy_one_shot import ToyOneShot, toy_factory

from fake_sites import fake_sites
from peftscout.errors import ConfigError, SpaceError
from peftscout.gates import Modules
from peftscout.plan import Budget, Plan
from peftscout.report.scout_section import module_values, ranking_table
from peftscout.space import Choice, Space, load_space
from peftscout.strategies import make_strategy
from peftscout.strategies.knapsack import ladder
from peftscout.strategies.one_shot import above_zero, run
from peftscout.strategies.scout import Candidate, ScoutSearch, scout
from peftscout.strategies.scout_options import ScoutOptions

QUICK = ScoutOptions(steps=12, keep_every=5)
USEFUL = {1: 2.0, 4: 1.6, 7: 1.8, 10: 1.4}


def with_toy(p, **options):
    """The problem ``p`` with a toy supernet of its space."""
    modules = Modules(p.space)
    rng = np.random.default_rng(0)
    best = np.array([m.sizes[rng.integers(len(m.sizes))] for m in modules])
    return replace(p, one_shot=toy_factory(modules, rng.random(len(modules)), best, **options))


class TestScout(StrategyContract):
    factory = staticmethod(lambda p: scout(with_toy(p), QUICK))


class TestScoutWithManyChecks(StrategyContract):
    options = ScoutOptions(steps=8, checks=30, alternatives=10, shrinks=0)
    factory = staticmethod(lambda p: scout(with_toy(p), TestScoutWithManyChecks.options))


class TestScoutFromFreshWeights(StrategyContract):
    options = ScoutOptions(steps=9, checks=6, warm_start=False, measure="fisher", shrinks=1)
    factory = staticmethod(lambda p: scout(with_toy(p), TestScoutFromFreshWeights.options))


def small_space(sizes=(1, 4, 8), modules: int = 12) -> Space:
    """LoRA on as many projections of equal cost; 64 parameters a rank."""
    sites = fake_sites("encoder", layers=4)
    places = [s.id for s in sites.values() if s.kind == "linear" and s.in_features == s.out_features]
    return Space("small", tuple(Choice.untied(s, "lora", sizes) for s in places[:modules]), sites)


def searched(options: ScoutOptions, *, budget: int, space: Space | None = None, best=1, seed: int = 0, u=None, **toy):
    """Run a search on a toy where only the modules of `USEFUL` matter, if nothing else is said; return both."""
    modules = Modules(space or small_space((1,)))
    u = np.array([USEFUL.get(m, 0.0) for m in range(len(modules))]) if u is None else u
    best = np.broadcast_to(best, len(modules))
    one_shot = ToyOneShot(modules, u, best, seed=seed, **toy)
    search = ScoutSearch(modules, budget, options.steps or 120, seed, options, Plan())
    run(search, one_shot, options.keep_every)
    return search, one_shot


# -- it finds what is there -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("measure", ["difference", "opening"])
def test_it_finds_the_modules_that_matter(seed: int, measure: str) -> None:
    search, _ = searched(ScoutOptions(measure=measure), budget=4 * 64, seed=seed)
    assert set(search.select()) == set(USEFUL)


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_how_large_they_are_to_be(seed: int) -> None:
    best = np.array([{1: 8, 4: 1, 7: 4, 10: 4}.get(m, 1) for m in range(12)])
    search, _ = searched(ScoutOptions(), budget=64 * (8 + 1 + 4 + 4), space=small_space(), best=best, seed=seed)
    sizes = {m: search.modules[m].sizes[k] for m, k in search.select().items()}
    assert sizes == {1: 8, 4: 1, 7: 4, 10: 4}


@pytest.mark.parametrize("seed", range(3))
def test_one_pass_answers_every_budget(seed: int) -> None:
    """Modules of equal cost: the best plan of n modules has the n best."""
    search, one_shot = searched(ScoutOptions(), budget=4 * 64, seed=seed)
    plans = search.plans([n * 64 for n in (1, 2, 3, 4)])
    best_first = sorted(USEFUL, key=USEFUL.__getitem__, reverse=True)
    assert [set(plan) for plan in plans] == [set(best_first[:n]) for n in (1, 2, 3, 4)]
    assert one_shot.passes == 120


@pytest.mark.parametrize("seed", range(3))
def test_values_rank_levels_as_the_loss_without_them_does(seed: int) -> None:
    space = small_space()
    u = np.random.default_rng(seed).uniform(0, 2, 12)
    best = np.random.default_rng(seed + 1).integers(1, 9, 12)
    options = ScoutOptions(shrinks=0)
    search, one_shot = searched(options, budget=64 * 90, space=space, best=best, u=u, seed=seed)
    true = 0.5 * np.stack([(one_shot.u[:, :size] ** 2).sum(1) for size in (1, 4, 8)], axis=1)
    rho = spearmanr(search.values().ravel(), true.ravel()).statistic
    assert rho > 0.95
    removal = search.slopes.values("removal")
    assert spearmanr(removal.ravel(), true.ravel()).statistic < rho


def test_a_step_takes_one_pass_and_ranking_none() -> None:
    search, one_shot = searched(ScoutOptions(steps=20), budget=512, space=small_space())
    assert one_shot.passes == 20
    assert one_shot.drawn == {"train": 20, "validation": 0}
    assert len(search.losses) == len(search.candidates()) > len(search.closer) >= search.o.checks


@pytest.mark.parametrize("measure", ["removal", "fisher", "saliency"])
def test_every_other_measure_gives_plans_too(measure: str) -> None:
    search, _ = searched(ScoutOptions(steps=30, measure=measure), budget=4 * 64)
    assert len(search.select()) == 4
    assert search.o.training(30, 0).saliency is (measure == "saliency")


# -- gates ----------------------------------------------------------------------------------------------------------


def drawn(options: ScoutOptions, steps: int = 90, budget: int = 10**6, space: Space | None = None):
    search = ScoutSearch(Modules(space or small_space()), budget, steps, 0, options, Plan())
    gates = []
    for search.iteration in range(steps):
        gates.append(search.draw())
    return search, gates


def test_sizes_take_turns_from_largest_to_smallest_to_random() -> None:
    _, gates = drawn(ScoutOptions())
    levels = [g.size.argmax(1)[g.on > 0].tolist() for g in gates]
    assert all(set(level) == {2} for level in levels[0::3])
    assert all(set(level) == {0} for level in levels[1::3])
    assert {k for level in levels[2::3] for k in level} == {0, 1, 2}


def test_closed_modules_are_at_their_smallest_size_and_gates_are_hard() -> None:
    _, gates = drawn(ScoutOptions())
    for g in gates:
        assert set(g.on) <= {0.0, 1.0}
        assert g.on.any()
        assert (g.size[g.on == 0].argmax(1) == 0).all()
        assert (g.size.sum(1) == 1).all()


def test_the_share_of_open_modules_goes_evenly_through_its_range() -> None:
    _, gates = drawn(ScoutOptions(open_from=0.2, open_to=0.6), 400)
    shares = [g.on.mean() for g in gates]
    assert np.mean(shares) == pytest.approx(0.4, abs=0.03)
    assert np.std(shares) > 0.1
    _, gates = drawn(ScoutOptions(open_from=1.0, open_to=1.0))
    assert all(g.on.all() for g in gates)


def test_every_step_has_an_open_module() -> None:
    _, gates = drawn(ScoutOptions(open_from=1e-9, open_to=1e-9))
    assert all(g.on.sum() == 1 for g in gates)


def test_what_no_plan_can_have_is_never_opened() -> None:
    search, gates = drawn(ScoutOptions(), budget=4 * 64)
    assert max(int(g.size.argmax(1).max()) for g in gates) == 1  # size 8 costs 512
    search, _ = drawn(ScoutOptions(), budget=40, space=load_space("bipeft-s1", fake_sites()))
    assert (search.modules.costs[search.kept, 0] <= 40).all()
    assert not search.kept.all()


# -- shrinking ------------------------------------------------------------------------------------------------------


def test_modules_that_no_budget_of_interest_chooses_are_dropped_and_never_come_back() -> None:
    options = ScoutOptions(steps=100, shrinks=3, shrink_from=0.3, slack_from=2.0, slack_to=1.0)
    search, one_shot = searched(options, budget=4 * 64)
    shrinks = [event for event in one_shot.events if "dropped" in event]
    assert [event["iteration"] for event in shrinks] == [30, 48, 65]
    assert [event["left"] for event in shrinks] == [8, 6, 4] or shrinks[-1]["left"] == 4
    assert set(np.flatnonzero(search.kept)) == set(USEFUL)
    assert not search.draw().probed[0]
    assert set(np.flatnonzero(search.draw().on)) <= set(USEFUL)


def test_without_shrinking_everything_stays() -> None:
    search, one_shot = searched(ScoutOptions(shrinks=0), budget=256)
    assert search.kept.all()
    assert not [event for event in one_shot.events if "dropped" in event]


def test_what_was_dropped_only_fills_what_the_others_leave() -> None:
    search, _ = searched(ScoutOptions(slack_from=1.0, slack_to=1.0), budget=4 * 64)
    values = search.values()
    assert values[~search.kept].max() < 1e-3 * values[search.kept].max()
    assert (values[search.modules.allowed] > 0).all()


@given(st.integers(1, 400), st.integers(0, 9))
def test_modules_are_dropped_within_the_steps_and_ever_more_strictly(steps: int, shrinks: int) -> None:
    times = ScoutOptions(shrinks=shrinks).shrinks_at(steps)
    assert len(times) <= shrinks
    assert all(1 <= at <= steps for at in times)
    slacks = [times[at] for at in sorted(times)]
    assert slacks == sorted(slacks, reverse=True)


# -- budgets --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(budget=st.integers(64, 9000), seed=st.integers(0, 3), share=st.floats(0.01, 1))
def test_no_candidate_is_above_the_budget_and_rungs_cost_no_more_than_those_above(budget, seed, share) -> None:
    options = ScoutOptions(steps=6, ladder=(1.0, share, 0.3))
    search, _ = searched(options, budget=budget, space=small_space(), seed=seed)
    cost = search.modules.costs
    candidates = [sum(cost[m, k] for m, k in c.levels.items()) for c in search.candidates()]
    assert candidates
    assert 0 < max(candidates) <= budget
    budgets = sorted(int(rung * budget) for rung in search.o.ladder)
    rungs = [sum(cost[m, k] for m, k in plan.items()) for plan in search.plans(budgets)]
    assert all(rung <= bound for rung, bound in zip(rungs, budgets, strict=True))
    assert rungs == sorted(rungs)


def test_a_plan_for_more_than_the_budget_is_that_of_the_budget() -> None:
    search, _ = searched(ScoutOptions(steps=9), budget=512, space=small_space())
    assert search.plans([10**9]) == [search.select()]


# -- ranking --------------------------------------------------------------------------------------------------------


def test_candidates_are_the_ladder_alternatives_and_uniform_lora_without_repetitions() -> None:
    space = small_space((1, 2, 4))
    p = replace(problem(trials=9), space=space, sites=space.sites, budget=Budget(2000, "2000"))
    modules = Modules(space)
    uniform = Plan.of({(c.site, "lora"): 3 for c in space.choices[:5]})
    search = ScoutSearch(modules, 2000, 10, 0, ScoutOptions(alternatives=2), uniform)
    run(search, ToyOneShot(modules, np.ones(12), np.full(12, 4)), 50)
    labels = [c.label for c in search.candidates()]
    assert labels[0] == "scout"
    assert "scout, 50% of the budget" in labels
    assert labels.count("scout, alternative") == 2
    assert labels[-1] == "uniform LoRA in the space"
    assert search.candidates()[-1].levels == dict.fromkeys(range(5), 1)  # rank 3, rounded down to 2
    assert len({tuple(sorted(c.levels.items())) for c in search.candidates()}) == len(labels)
    assert p.space is space


def test_every_other_measure_of_value_proposes_its_best_plan() -> None:
    search, _ = searched(ScoutOptions(), budget=4 * 64, space=small_space(), seed=3)
    by = {c.label: c.levels for c in search.candidates()}
    known = {tuple(sorted(levels.items())) for levels in by.values()}
    for measure in ("removal", "opening", "fisher"):
        values = above_zero(search.slopes.values(measure) * np.where(search.kept, 1.0, 1e-6)[:, None], search.modules)
        (best,) = ladder(search.modules.costs, values, [4 * 64])
        assert by.get(f"scout, by {measure}", best) == best
        assert tuple(sorted(best.items())) in known
    assert "scout, by difference" not in by


def two_ops() -> Space:
    """LoRA and biases on the same projections: 64 parameters a rank, 32 a bias."""
    sites = small_space().sites
    places = list(small_space().choices)
    choices = [Choice.untied(c.site, op, sizes) for c in places[:4] for op, sizes in (("lora", (1, 2)), ("bias", (1,)))]
    return Space("two", tuple(choices), sites)


def test_a_plan_without_the_op_that_takes_most_is_proposed_too() -> None:
    modules = Modules(two_ops())
    loras = np.array([module.choices[0].op == "lora" for module in modules])
    search, _ = searched(ScoutOptions(), budget=4 * 64, space=two_ops(), best=2, u=np.where(loras, 2.0, 0.1))
    by = {c.label: c.levels for c in search.candidates()}
    assert all(loras[m] for m in by["scout"])
    assert by["scout, without lora"]
    assert not any(loras[m] for m in by["scout, without lora"])


def test_a_space_of_one_op_has_no_plan_without_it() -> None:
    search, _ = searched(ScoutOptions(), budget=4 * 64)
    assert not [c.label for c in search.candidates() if "without" in c.label]


def test_what_is_much_like_a_better_plan_stands_back_in_the_ranking() -> None:
    modules = Modules(small_space((1, 4)))
    search = ScoutSearch(modules, 10**6, 5, 0, ScoutOptions(), Plan())
    plans = {"a": {0: 1, 1: 1}, "like a": {0: 1, 1: 1, 2: 0}, "b": {5: 1}, "half of a": {0: 1}}
    search._candidates = [Candidate(label, levels) for label, levels in plans.items()]
    search.losses = search.closer = [0.1, 0.2, 0.4, 0.3]
    search.closer = sorted(search.losses)
    assert [r.label for r in search.ranking()] == ["a", "half of a", "b", "like a"]
    assert search._shared(plans["a"], plans["like a"]) == pytest.approx(8 / 9)
    assert search._shared(plans["a"], plans["half of a"]) == pytest.approx(1 / 2)
    assert search._shared({0: 0}, {0: 1}) == pytest.approx(1 / 4)


def test_a_tied_module_has_the_smallest_size_of_its_choices_in_the_uniform_plan() -> None:
    sites = fake_sites()
    tied = tuple(Choice(f"layers.0.attention.{r}", "lora", (1, 2, 4), size_variable="both") for r in "qv")
    modules = Modules(Space("tied", tied, sites))
    for sizes, expected in (((4, 2), {0: 1}), ((4, 0), {})):
        uniform = Plan.of({(c.site, "lora"): size for c, size in zip(tied, sizes, strict=True) if size})
        assert ScoutSearch(modules, 10**6, 5, 0, ScoutOptions(), uniform)._uniform() == expected


def test_the_ranking_goes_by_the_held_out_loss_with_the_weights_of_the_supernet() -> None:
    search, one_shot = searched(ScoutOptions(), budget=4 * 64)
    ranked = search.ranking()
    assert {r.plan.digest for r in ranked} == {search.modules.plan(c.levels).digest for c in search.candidates()}
    best = search.candidates()[int(np.argmin(search.losses))]  # the toy loses the same on any rows
    assert ranked[0] == (best.label, search.modules.plan(best.levels))
    assert ranked[0].plan == search.modules.plan(dict.fromkeys(USEFUL, 0))
    (event,) = [event for event in one_shot.events if "ranking" in event]
    assert [entry["held_out_loss"] for entry in event["ranking"]] == sorted(search.losses)
    assert [entry["all_rows"] for entry in event["ranking"]].count(True) == len(search.closer)
    assert all(entry["cost"] <= 256 for entry in event["ranking"])


class TwoLooks(ToyOneShot):
    """On few rows plans look the other way round than on all of them."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.rows: list[int] = []

    def held_out_loss(self, gates, rows):
        self.rows.append(rows)
        loss = super().held_out_loss(gates, rows)
        return loss if rows == 30 else -loss


def test_all_are_ranked_on_a_part_of_the_rows_and_a_better_third_on_all_of_them() -> None:
    modules = Modules(small_space((1, 4)))
    one_shot = TwoLooks(modules, np.ones(12), np.ones(12, dtype=int))
    options = ScoutOptions(steps=10, ranking_rows=30, checks=1, alternatives=4)
    search = ScoutSearch(modules, 4 * 64, 10, 0, options, Plan())
    while not search.finished:
        search.advance(one_shot)
    n = len(search.candidates())
    again = max(1, -(-n // 3))
    assert n >= 4
    assert one_shot.rows == [10] * n + [30] * again
    first, closer = np.array(search.losses), np.array(search.closer)
    looked_at = np.argsort(first, kind="stable")[:again]
    np.testing.assert_allclose(closer, -first[looked_at])
    order = [search.candidates()[i].label for i in search._order()]
    best_first = [*looked_at[np.argsort(closer, kind="stable")], *np.argsort(first, kind="stable")[again:]]
    assert order == [search.candidates()[i].label for i in best_first]


def test_a_search_that_stops_between_the_two_looks_goes_on_to_the_same_ranking() -> None:
    def fresh() -> ScoutSearch:
        return ScoutSearch(Modules(small_space((1, 4))), 4 * 64, 10, 0, ScoutOptions(steps=10, ranking_rows=30), Plan())

    one_shot = TwoLooks(Modules(small_space((1, 4))), np.ones(12), np.ones(12, dtype=int))
    search, stopped = fresh(), None
    while not search.finished:
        if len(search.closer) == 2 and stopped is None:
            stopped = search.save()
        search.advance(one_shot)
    again = fresh()
    again.load(stopped)
    while not again.finished:
        again.advance(one_shot)
    assert (again.losses, again.closer) == (search.losses, search.closer)
    assert again.ranking() == search.ranking()


@pytest.mark.parametrize("least", [1, ScoutOptions().ranking_rows])
def test_a_candidate_whose_loss_is_infinite_at_any_look_is_last_and_the_log_has_none(least: int) -> None:
    modules = Modules(small_space((1,)))

    class Diverging(ToyOneShot):
        worst = None

        def held_out_loss(self, gates, rows):
            self.worst = self.worst or gates
            diverges = rows >= least and np.array_equal(gates.on, self.worst.on)
            return np.inf if diverges else super().held_out_loss(gates, rows)

    one_shot = Diverging(modules, np.ones(12), np.ones(12, dtype=int))
    search = ScoutSearch(modules, 256, 9, 0, ScoutOptions(), Plan())
    run(search, one_shot, 50)
    assert search.ranking()[-1].label == "scout"
    told = [entry["held_out_loss"] for entry in one_shot.events[-1]["ranking"]]
    assert told[-1] is None
    assert None not in told[:-1]


# -- saving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("die_after", [1, 6, 11, 12])
def test_a_search_that_was_killed_goes_on_to_the_same_result(die_after: int) -> None:
    p = problem(trials=5)
    whole_disk: dict = {}
    whole = drive(lambda q: scout(with_toy(q, disk=whole_disk), QUICK), p)
    disk: dict = {}
    with pytest.raises(KeyboardInterrupt):
        drive(lambda q: scout(with_toy(q, disk=disk, die_after=die_after), QUICK), p)
    assert drive(lambda q: scout(with_toy(q, disk=disk), QUICK), p) == whole
    for name, array in whole_disk["kept"][0].arrays.items():
        assert np.array_equal(disk["kept"][0].arrays[name], array), name
    assert disk["kept"][1]["events"] == whole_disk["kept"][1]["events"]


def test_a_finished_search_is_read_without_another_pass() -> None:
    disk: dict = {}
    p = problem(trials=5)
    whole = drive(lambda q: scout(with_toy(q, disk=disk), QUICK), p)
    assert drive(lambda q: scout(with_toy(q, disk=disk, die_after=0), QUICK), p) == whole


# -- options --------------------------------------------------------------------------------------------------------


def test_the_supernet_gets_a_share_of_the_steps_of_one_training() -> None:
    opened = []
    p = problem(trials=3)
    toy = with_toy(p).one_shot

    def note(training):
        opened.append(training)
        return toy(training)

    scout(replace(p, one_shot=note, fidelity=replace(p.fidelity, steps=50))).ask(1)
    assert opened[0].steps == 25
    assert (opened[0].held_out, opened[0].lr_scale, opened[0].last_rate) == (0.2, 0.3, 0.5)
    assert ScoutOptions(steps=7).steps_of(50) == 7
    assert ScoutOptions(fraction=0.001).steps_of(50) == 1


def test_what_cannot_work_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="supernet"):
        scout(problem())
    with pytest.raises(SpaceError, match="nothing fits"):
        scout(with_toy(replace(problem(), budget=Budget(3, "3"))))
    with pytest.raises(SpaceError, match="switch"):
        scout(replace(problem(), space=load_space("autopeft", fake_sites())))


@pytest.mark.parametrize(
    "wrong",
    [
        {"measure": "guess"}, {"fraction": 0}, {"steps": 0}, {"clip": -1}, {"memory": 0},
        {"lr_scale": 0}, {"last_rate": 1.5}, {"learning_rate": 0.0},
        {"weight_decay": -1.0}, {"alternatives": -1}, {"shrinks": -1}, {"checks": 0}, {"keep_every": 0},
        {"ranking_rows": 0}, {"held_out": 1.0}, {"shrink_from": 0}, {"open_from": 1.5}, {"open_to": 0.3},
        {"slack_from": 1.0}, {"slack_to": 0.5}, {"ladder": [0.5, 2]}, {"ladder": "all"}, {"ladder": [0]},
    ],
)  # fmt: skip
def test_impossible_options_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_strategy("scout", problem(), wrong)


def test_the_whole_budget_is_always_a_rung_and_rungs_fall() -> None:
    assert ScoutOptions(ladder=[0.25, 0.5]).ladder == (1.0, 0.5, 0.25)
    assert ScoutOptions(ladder=()).ladder == (1.0,)


def test_what_it_logs_at_the_end_is_what_the_report_reads():
    search, toy = searched(ScoutOptions(), budget=500)
    values = module_values(toy.events)
    assert values is not None
    assert sum(share or 0.0 for row in values.shares for share in row) == pytest.approx(1.0)
    best = max(range(len(search.modules)), key=lambda m: search.values()[m].max())
    assert values.table.rows[0][0] == search.modules[best].name
    assert len(ranking_table(toy.events).rows) == len(search.candidates())
