"""Whole refinements against a closed-form objective: what is found, what is spent, and that replay repeats it."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from fake_sites import fake_sites
from peftscout.errors import BudgetError, SpaceError
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget
from peftscout.space import load_space
from peftscout.strategies.base import Problem
from peftscout.strategies.design_spaces import DesignSpacesOptions, design_spaces
from peftscout.strategies.uniform import lora_on_query_value

SMALL = """
name: small
groups: 3
methods:
  lora: {op: lora, sites: ["*.attention.{q,v}"]}
  adapter: {op: serial, sites: ["*.ffn"]}
axes:
  grouping: [uniform, spindle, bottleneck]
  allocation: [uniform, increasing]
  tunable: [[G1, G2, G3], [G3]]
  methods: {each_group: every_subset}
"""


@pytest.fixture
def small(tmp_path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


def problem(trials=None, kind="encoder", layers=6, budget=12_000, space="all", lr_scales=(1.0,), seed=0) -> Problem:
    sites = fake_sites(kind, layers=layers, width=64, ffn=128)
    bound = Budget(budget, str(budget))
    baseline = lora_on_query_value(sites, bound).plan
    return Problem(sites, load_space(space, sites), bound, baseline, Fidelity(40), trials, seed, lr_scales)


def truth(problem: Problem, request: Evaluate, noise: float = 0.002) -> Outcome:
    """Adapters in the first third are worth most; a frozen first third costs much; seeds and models differ a little."""
    layers = [problem.sites[p.site].layer for p in request.plan if p.op == "serial"]
    tuned = {problem.sites[p.site].layer for p in request.plan}
    early = sum(layer < 2 for layer in layers)
    rng = np.random.default_rng([int(request.key, 16) % 2**32, request.seed])
    shared = np.random.default_rng(request.seed).normal()
    score = 0.7 + 0.02 * early + 0.03 * len(tuned & {0, 1}) + 0.005 * shared + noise * rng.normal()
    return Outcome(State.DONE, request.plan.cost(problem.sites), float(score))


def drive(problem: Problem, options: DesignSpacesOptions, answer=truth, capacity: int = 5):
    strategy = design_spaces(problem, options)
    told: list[tuple[Evaluate, Outcome]] = []
    while batch := strategy.ask(capacity):
        assert len(batch) <= capacity
        for request in batch:
            outcome = answer(problem, request)
            strategy.tell(request, outcome)
            told.append((request, outcome))
    return strategy, told


def options(small: str, **changed) -> DesignSpacesOptions:
    return DesignSpacesOptions(**{"design_space": small, "models": 12, "resamples": 500, "reference": 8, **changed})


# -- what is found -----------------------------------------------------------------------------------------------------


def test_a_refinement_finds_what_the_objective_rewards_and_leaves_the_rest_open_or_simple(small):
    strategy, told = drive(problem(), options(small, models=32, rungs=(1.0,)))
    report = strategy.report()
    by_axis = {stage.axis: stage for stage in report.stages}
    assert report.finished
    assert by_axis["tunable"].kept == ("all groups",)
    assert by_axis["tunable"].verdict == "decided"
    assert "lora" not in by_axis["methods.G1"].kept
    assert "adapter" in by_axis["methods.G1"].kept
    assert by_axis["methods.G3"].kept[0] == "lora"  # no effect there: never the more complex option alone
    assert [stage.name for stage in report.stages] == ["S1", "S2", "S3", "S4", "S5", "S6"]
    assert report.told == len(told)


def test_in_pure_noise_a_more_complex_option_is_seldom_decided_for(small):
    """Six stages in each of eight searches; by chance about one in twenty, and as many where halving lost a tie."""

    def noise(p, request):
        rng = np.random.default_rng([int(request.key, 16) % 2**32, p.seed])
        return Outcome(State.DONE, 1, float(rng.normal()))

    simplest = {"uniform", "all groups", "lora"}
    reports = [drive(problem(seed=seed), options(small, models=16), noise)[0].report() for seed in range(8)]
    stages = [stage for report in reports for stage in report.stages]
    wrong = [stage for stage in stages if stage.verdict == "decided" and not simplest.issuperset(stage.kept)]
    assert len(stages) == 48
    assert len(wrong) <= 6


def test_every_request_is_within_the_budget_and_asked_once(small):
    p = problem(lr_scales=(0.3, 1.0, 3.0))
    _, told = drive(p, options(small, passes=2))
    keys = [request.key for request, _ in told]
    assert len(keys) == len(set(keys))
    assert all(0 < request.plan.cost(p.sites) <= 12_000 for request, _ in told)
    assert {request.lr_scale for request, _ in told} == {0.3, 1.0, 3.0}


def test_the_rule_is_told_in_words_as_a_space_and_as_plans(small):
    p = problem()
    report = drive(p, options(small, models=32))[0].report()
    assert "all groups, G1: " in str(report.rule)
    assert report.rule.space.open_axes == report.rule.open_axes
    assert report.plans
    for design, plan in report.plans:
        assert 0.98 * 12_000 <= plan.cost(p.sites) <= 12_000
        assert "all groups" in design
    data = json.loads(json.dumps(report.to_json()))
    assert data["rule"] == str(report.rule)
    assert len(data["stages"]) == 6
    assert {"option", "n", "mean", "interval", "probability_best", "decision", "why"} <= set(
        data["stages"][0]["rows"][0]
    )


def test_the_found_rule_is_trained_at_every_learning_rate_at_the_end(small):
    p = problem(lr_scales=(0.5, 1.0, 2.0))
    strategy, told = drive(p, options(small, models=32, finalists=6))
    last = [request for request, _ in told[-6:]]
    assert all(request.label.startswith("found rule: ") for request in last)
    assert all(request.fidelity.steps == 40 for request in last)
    canonical = strategy.report().plans[0][1]
    trained = {request.lr_scale for request, _ in told if request.plan == canonical and request.fidelity.steps == 40}
    assert trained == {0.5, 1.0, 2.0}


def test_the_rule_can_be_searched_further_as_a_space_of_its_own(small, tmp_path):
    first = drive(problem(), options(small))[0].report()
    path = tmp_path / "found.yaml"
    path.write_text(first.rule.to_yaml())
    strategy, told = drive(problem(seed=1), options(str(path)))
    report = strategy.report()
    assert told
    decided = {stage.axis for stage in first.stages if stage.verdict in ("decided", "fixed")}
    assert {stage.axis for stage in report.stages if stage.verdict == "fixed"} >= decided


def test_a_second_pass_tests_every_axis_again_and_decisions_stand_unless_refuted(small):
    report = drive(problem(), options(small, passes=2, models=24))[0].report()
    assert [stage.passes for stage in report.stages] == [1] * 6 + [2] * 6
    first, second = report.stages[:6], report.stages[6:]
    for before, after in zip(first, second, strict=True):
        assert before.axis == after.axis
        if before.verdict == "decided" and after.verdict == "undecided":
            assert after.kept == before.kept or before.kept[0] not in after.kept
    assert next(s for s in second if s.axis == "tunable").kept == ("all groups",)


def test_an_interaction_that_the_first_pass_could_not_see_is_found_by_the_second(small):
    """Increasing allocation pays only where G3 has adapters, which is decided after the allocation."""

    def answer(p, request):
        adapters = {p.sites[x.site].layer: x.size for x in request.plan if x.op == "serial"}
        late = [adapters[layer] for layer in (4, 5) if layer in adapters]
        rng = np.random.default_rng([int(request.key, 16) % 2**32, request.seed])
        worth = 0.2 * bool(late) * (1 + max(late, default=0) / 8) + 0.001 * rng.normal()
        return Outcome(State.DONE, 1, 0.5 + worth if late else 0.5 + 0.001 * rng.normal())

    report = drive(problem(), options(small, passes=2, models=16, rungs=(1.0,)), answer)[0].report()
    second = next(s for s in report.stages if s.passes == 2 and s.axis == "allocation")
    assert (second.verdict, second.kept) == ("decided", ("increasing",))


# -- halving -----------------------------------------------------------------------------------------------------------


def test_halving_is_on_where_a_rung_ranks_models_as_full_training_does(small):
    strategy, told = drive(problem(), options(small, models=24))
    reference = strategy.report().reference
    assert reference.halving.startswith("on (25% of the steps: tau 0.")
    assert reference.taus[0] >= 0.4
    assert reference.n == 8
    assert reference.edf[-1][1] == 1
    assert {request.fidelity.steps for request, _ in told} == {10, 40}


def test_halving_is_off_where_it_does_not(small):
    def answer(p, request):
        if request.fidelity.steps < 40:
            rng = np.random.default_rng(int(request.key, 16) % 2**32)
            return Outcome(State.DONE, 1, float(rng.normal()))
        return truth(p, request)

    strategy, told = drive(problem(), options(small, models=24, reference=12), answer)
    reference = strategy.report().reference
    assert reference.taus[0] < 0.4
    assert reference.halving.startswith("off: no rung ranks models as full training does")
    assert sum(request.fidelity.steps < 40 for request, _ in told) == 12
    assert all(rung.steps == 40 for stage in strategy.report().stages for rung in stage.rungs)


def test_halving_can_be_turned_off(small):
    strategy, told = drive(problem(), options(small, rungs=(1.0,)))
    assert strategy.report().reference.halving == "off: one rung"
    assert {request.fidelity.steps for request, _ in told} == {40}


# -- trials ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trials", [1, 2, 5, 20, 60, 150, 400])
def test_the_trials_are_never_exceeded_and_the_rest_goes_to_the_found_rule(small, trials):
    strategy, told = drive(problem(trials), options(small))
    assert len(told) <= trials - 1  # the baseline is one of them
    assert strategy.report().finished
    if trials <= 60:  # with more, the found rule is exhausted: it has few plans at one learning rate
        assert len(told) == trials - 1


def test_stages_that_cannot_be_paid_for_are_not_run_and_say_so(small):
    strategy, _ = drive(problem(40), options(small))
    stages = strategy.report().stages
    skipped = [stage for stage in stages if stage.verdict == "not run"]
    assert skipped
    for stage in skipped:
        assert stage.why.startswith(f"8 models under {len(stage.kept)} options are more than the ")
        assert stage.axis in strategy.report().rule.open_axes
    assert strategy.report().reference.halving == "off: too few trials for a reference population"


def test_more_trials_give_more_models_a_stage(small):
    few, many = (drive(problem(t), options(small, models=64))[0].report() for t in (250, 700))
    assert few.stages[0].models < many.stages[0].models <= 64


# -- replay ------------------------------------------------------------------------------------------------------------


def test_everything_regenerates_from_the_outcomes_without_asking(small):
    strategy, told = drive(problem(), options(small))
    shuffled = list(told)
    random.Random(0).shuffle(shuffled)
    replayed = design_spaces(problem(), options(small))
    for request, outcome in shuffled:
        replayed.tell(request, outcome)
    assert replayed.report().to_json() == strategy.report().to_json()
    assert not replayed.ask(10)


def test_a_search_cut_anywhere_goes_on_to_the_same_decisions(small):
    small_options = options(small, models=8)
    strategy, told = drive(problem(), small_options)
    whole = strategy.report().to_json()
    for cut in (1, len(told) // 3, len(told) - 1):
        resumed = design_spaces(problem(), small_options)
        known = {request.key: outcome for request, outcome in told[:cut]}
        again = 0
        while batch := resumed.ask(3):
            for request in batch:
                again += request.key not in known
                resumed.tell(request, known.get(request.key) or truth(problem(), request))
        assert resumed.report().to_json() == whole
        assert again == len(told) - cut


@pytest.mark.parametrize("capacity", [1, 4, 1000])
def test_how_many_workers_there_are_changes_nothing(small, capacity):
    _, told = drive(problem(), options(small), capacity=capacity)
    _, reference = drive(problem(), options(small), capacity=7)
    assert [r.key for r, _ in told] == [r.key for r, _ in reference]


def test_another_seed_draws_other_models(small):
    first, second = (drive(problem(seed=s), options(small))[1] for s in (0, 1))
    plans = [{r.plan for r, _ in told if r.label.startswith("S0")} for told in (first, second)]
    assert len(plans[0] - plans[1]) > len(plans[0]) / 2


def test_a_report_can_be_had_at_any_time(small):
    strategy = design_spaces(problem(), options(small))
    assert strategy.report().stages == ()
    assert not strategy.report().finished
    first = strategy.ask(3)
    assert len(first) == 3
    strategy.tell(first[0], truth(problem(), first[0]))
    assert strategy.report().told == 1
    assert strategy.report().reference is None


def test_nothing_is_asked_while_the_last_of_a_batch_is_out(small):
    strategy = design_spaces(problem(), options(small))
    batch = list(strategy.ask(1000))
    assert batch
    assert strategy.ask(5) == []
    for request in batch[1:]:
        strategy.tell(request, truth(problem(), request))
    assert strategy.ask(5) == []
    strategy.tell(batch[0], truth(problem(), batch[0]))
    assert strategy.ask(5)


# -- outcomes without a score ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.FAILED, State.DIVERGED, State.OUT_OF_MEMORY, State.PRUNED, State.INFEASIBLE])
def test_a_search_in_which_nothing_works_ends_with_everything_open(small, state):
    strategy, told = drive(problem(200), options(small), lambda p, r: Outcome(state, 1, message="on purpose"))
    report = strategy.report()
    assert report.finished
    assert told
    assert set(report.rule.open_axes) == set(report.rule.space.axes)


def test_some_failures_do_not_stop_it(small):
    def answer(p, request):
        broken = int(request.key, 16) % 7 == 0
        return Outcome(State.OUT_OF_MEMORY, 1) if broken else truth(p, request)

    report = drive(problem(), options(small, models=32), answer)[0].report()
    assert report.finished
    assert next(s for s in report.stages if s.axis == "tunable").kept == ("all groups",)
    assert any(stage.models < 32 for stage in report.stages if stage.models)


# -- models and spaces -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder", "decoder"])
def test_the_paper_s_space_is_refined_on_every_kind_of_model(kind):
    p = problem(120, kind, layers=6, budget=30_000)
    settings = DesignSpacesOptions(resamples=200)
    strategy, told = drive(p, settings, lambda p, r: Outcome(State.DONE, 1, float(len(r.plan))))
    assert len(told) == 119
    assert all(0 < request.plan.cost(p.sites) <= 30_000 for request, _ in told)
    assert {op for request, _ in told for op in request.plan.ops} == {"lora", "bias", "serial", "prefix"}
    assert strategy.report().design_space == "chen2023-s0"


def test_only_ops_of_the_problems_space_are_used_and_the_rest_is_refused_with_the_reason(small):
    p = problem(100, space="lora")
    strategy, told = drive(p, options(small))
    assert {op for request, _ in told for op in request.plan.ops} == {"lora"}
    stage = next(s for s in strategy.report().stages if s.axis == "methods.G1")
    assert stage.verdict == "fixed"
    assert {row.option: row.why for row in stage.rows} == {
        "adapter": "adapter has no site in this model and space",
        "lora+adapter": "adapter has no site in this model and space",
    }


def test_a_shallow_model_has_as_many_groups_as_layers():
    strategy, told = drive(problem(60, layers=2), DesignSpacesOptions(resamples=200))
    assert told
    assert strategy.report().rule.space.groups == 2


def test_a_space_that_names_its_groups_is_refused_by_a_model_with_fewer_layers():
    with pytest.raises(
        SpaceError, match="the model has 2 layers, fewer than the 4 groups of chen2023-s3: axes.tunable"
    ):
        design_spaces(problem(layers=2), DesignSpacesOptions("chen2023-s3"))


def test_the_options_of_a_stage_cost_the_same_and_it_is_recorded(small):
    for stage in drive(problem(), options(small))[0].report().stages:
        costs = [row.cost for row in stage.rows if row.cost is not None]
        assert all(0.98 * 12_000 <= cost <= 12_000 for cost in costs)
        assert bool(costs) == bool(stage.models)


def test_groups_of_each_stack_are_as_many_as_the_shallower_stack_has_layers(tmp_path):
    path = tmp_path / "stacks.yaml"
    path.write_text("extends: chen2023-s0\nnumbering: per_stack\n")
    p = problem(60, "encoder_decoder", layers=3)
    strategy, told = drive(p, DesignSpacesOptions(design_space=str(path), resamples=200))
    assert strategy.report().rule.space.groups == 3
    tuned = {(p.sites[x.site].stack, p.sites[x.site].layer) for request, _ in told for x in request.plan}
    assert len(tuned) == 6


def test_a_budget_too_small_for_the_space_is_refused_at_once(small):
    with pytest.raises(BudgetError, match="none of 400 designs of small is possible within 130 parameters; most often"):
        design_spaces(replace(problem(), budget=Budget(130, "130")), options(small))


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_share_of_frozen_groups_can_be_forfeited(small):
    """Then a design that tunes one of three groups costs a third, which must be allowed to be that far below."""
    changed = {"frozen_share": "forfeit", "largest_shortfall": 1.0, "models": 8}
    p = problem()
    _, told = drive(p, options(small, **changed))
    costs = {request.plan.cost(p.sites) for request, _ in told}
    assert min(costs) < 0.5 * 12_000
    assert max(costs) > 0.98 * 12_000
    _, fair = drive(p, options(small, models=8))
    assert min(request.plan.cost(p.sites) for request, _ in fair) > 0.95 * 12_000


def test_delta_decides_what_counts_as_a_tie(small):
    """With a large smallest difference of interest, every axis is a tie and the simplest options are kept."""
    report = drive(problem(), options(small, models=32, delta=50.0, rungs=(1.0,)))[0].report()
    assert {stage.verdict for stage in report.stages} == {"decided"}
    assert str(report.rule) == "uniform, uniform allocation, all groups, G1: lora; G2: lora; G3: lora"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"models": 1}, "models 1: must be between 2 and"),
        ({"least_models": 20}, r"least_models 20: more than models \(12\)"),
        ({"delta": 0}, "delta 0: must be between 1e-06 and 100"),
        ({"alpha": 0.6}, "alpha 0.6: must be between 0.0001 and 0.5"),
        ({"rungs": (0.5,)}, r"rungs \(0.5,\): ascending shares of the steps, the last one 1.0"),
        ({"rungs": (0.5, 0.25, 1.0)}, "rungs .*: ascending"),
        ({"rungs": ()}, "rungs .*: ascending"),
        ({"passes": 0}, "passes 0: must be between 1 and 10"),
        ({"lr_between": (3.0, 0.3)}, "lr_between .*: two factors above 0, the lower one first"),
        ({"frozen_share": "keep"}, "frozen_share 'keep': redistribute or forfeit"),
        ({"groups": 0}, "groups 0: must be between 1 and 1000"),
    ],
)
def test_impossible_options_are_refused_in_words(small, changed, message):
    with pytest.raises(ValueError, match=message):
        options(small, **changed)


def test_an_unknown_design_space_is_refused_before_anything_is_loaded():
    with pytest.raises(SpaceError, match="no design space 'chen2023-s9'.*did you mean"):
        DesignSpacesOptions(design_space="chen2023-s9")


def test_lists_of_a_configuration_file_are_taken_as_they_are(small):
    read = options(small, rungs=[0.5, 1], lr_between=[0.1, 10])
    assert (read.rungs, read.lr_between) == ((0.5, 1), (0.1, 10))


def test_learning_rates_of_a_range_are_drawn_for_every_base_model(small):
    _, told = drive(problem(), options(small, lr_between=(0.1, 10.0)))
    assert len({request.lr_scale for request, _ in told}) > 12


def test_the_options_of_a_study_are_checked_by_the_dataclass(small):
    with pytest.raises(TypeError, match="unexpected keyword argument 'model'"):
        DesignSpacesOptions(design_space=small, model=3)
