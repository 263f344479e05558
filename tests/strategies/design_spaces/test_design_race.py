"""Races on simulated scores: halving keeps the best, failures are no zeros, and the rows say what happened."""

from collections.abc import Callable

import numpy as np
import pytest

from fake_sites import fake_sites
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan
from peftscout.space import load_space
from peftscout.strategies.base import Problem
from peftscout.strategies.design_spaces.bench import Bench
from peftscout.strategies.design_spaces.compilation import Compiled
from peftscout.strategies.design_spaces.genotype import canonical_genotype
from peftscout.strategies.design_spaces.layout import layout
from peftscout.strategies.design_spaces.options import DesignSpacesOptions
from peftscout.strategies.design_spaces.populations import Candidate, Population
from peftscout.strategies.design_spaces.race import race, schedule
from peftscout.strategies.design_spaces.stages import StageReport, complete, score_table
from peftscout.strategies.design_spaces.yaml import load_design_space

SITES = fake_sites("encoder", layers=4)
SPACE = load_design_space("chen2023-s0")
GENOTYPE = canonical_genotype(SPACE.first, layout(SITES, SPACE.methods_defined))
STEPS = 100
RUNGS = (0.25, 1.0)

Answer = Callable[[int, int, int], Outcome]
"""Position of the option, base model, steps -> outcome."""


def plan_of(option: int, model: int) -> Plan:
    """A plan that stands for one model of one option: its two sizes are their numbers."""
    return Plan.of({("layers.0.ffn", "serial"): option + 1, ("layers.1.ffn", "serial"): model + 1})


def population(options: int, models: int) -> Population:
    names = [f"o{o}" for o in range(options)]
    candidates = {
        name: tuple(Candidate(GENOTYPE, Compiled(plan_of(o, m), 1, 0)) for m in range(models))
        for o, name in enumerate(names)
    }
    return Population(tuple(names), candidates, {})


def problem(trials: int | None = None) -> Problem:
    budget = Budget(10_000, "10k")
    return Problem(SITES, load_space("all", SITES), budget, plan_of(30, 30), Fidelity(STEPS), trials)


def position(request: Evaluate) -> tuple[int, int, int]:
    sizes = request.plan.sizes
    return sizes["layers.0.ffn", "serial"] - 1, sizes["layers.1.ffn", "serial"] - 1, request.fidelity.steps


def run(answer: Answer, options: int, models: int, rungs=RUNGS, **settings) -> tuple[StageReport, list[Evaluate]]:
    bench, asked = Bench(problem()), []
    settings = DesignSpacesOptions(**{"resamples": 400, "models": max(models, 8), **settings})
    procedure = race(bench, "S1", "grouping", population(options, models), rungs, settings, [0])
    while True:
        try:
            batch = next(procedure)
        except StopIteration as end:
            return end.value, asked
        for request in batch:
            asked.append(request)
            bench.tell(request, answer(*position(request)))


def done(score: float) -> Outcome:
    return Outcome(State.DONE, 1, float(score))


def simulated(effects, seed: int, low: float = 1.0, correlation: float = 0.8) -> Answer:
    """Scores with base models in common; at a lower rung, effects are ``low`` of the full ones and the noise is new."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=64)
    own = {steps: rng.normal(size=(len(effects), 64)) for steps in (25, 50, 100)}

    def answer(option: int, model: int, steps: int) -> Outcome:
        effect = effects[option] * (1 if steps == STEPS else low)
        noise = np.sqrt(correlation) * shared[model] + np.sqrt(1 - correlation) * own[steps][option, model]
        return done(0.8 + 0.01 * (effect + noise))

    return answer


def test_halving_keeps_the_true_best_in_95_of_100_simulations():
    """Nine options, one better by 0.6 SD of which a low rung shows half; 12, then 24 models; keep half, guarded."""
    effects = [0, 0.1, -0.2, 0, 0.6, -0.4, 0.2, 0, -0.6]
    kept = saved = 0
    simulations = 40
    for seed in range(simulations):
        report, asked = run(simulated(effects, seed, low=0.5), 9, 24, least_models=8)
        kept += "o4" not in report.rungs[0].let_go
        saved += 9 * 24 - sum(r.fidelity.steps == STEPS for r in asked)
    assert kept >= 0.95 * simulations
    low_rung = 0.25 * 9 * 12
    assert saved / simulations > low_rung  # and it saves more than it costs


def test_an_option_that_was_let_go_is_not_trained_any_further():
    report, asked = run(simulated([0, 0, 3, 3, -3], 0), 5, 24)
    assert report.rungs[0].let_go == ("o1", "o4")  # three of five go on
    assert {position(r)[0] for r in asked if r.fidelity.steps == STEPS} == {0, 2, 3}
    row = next(row for row in report.rows if row.option == "o4")
    assert (row.decision, row.n) == ("dropped", 12)
    assert row.why.startswith("let go at 25 steps: worse than o")


def test_rungs_have_growing_numbers_of_models_and_steps():
    options = DesignSpacesOptions(models=64, least_models=8, keep_share=0.5)
    assert schedule(64, (0.1, 0.3, 1.0), options) == [(0.1, 16), (0.3, 32), (1.0, 64)]
    assert schedule(64, (1.0,), options) == [(1.0, 64)]


def test_a_rung_that_would_save_nothing_is_left_out():
    options = DesignSpacesOptions(models=64, least_models=8, keep_share=0.5)
    assert schedule(8, (0.25, 1.0), options) == [(1.0, 8)]
    assert schedule(12, (0.1, 0.25, 1.0), options) == [(0.1, 8), (0.25, 8), (1.0, 12)]


def test_the_report_has_a_row_an_option_with_everything_a_table_needs():
    report, _ = run(simulated([0, 2, 0], 1), 3, 24, rungs=(1.0,))
    assert (report.name, report.axis, report.verdict, report.kept) == ("S1", "grouping", "decided", ("o1",))
    assert report.why.startswith("o1: no other option is better by delta 0.3 SD")
    assert [row.option for row in report.rows] == ["o0", "o1", "o2"]
    best = report.rows[1]
    assert (best.n, best.decision, best.difference, best.p_value, best.distance) == (24, "kept", 0, None, 0)
    assert best.interval[0] < best.mean < best.interval[1]
    assert 0.81 < best.mean < 0.83
    assert best.cost == 1
    assert best.upper_mean > best.mean
    assert best.probability_best > 0.99
    worse = report.rows[0]
    assert worse.decision == "beaten"
    assert worse.p_value <= 0.05
    assert worse.difference == pytest.approx(-2, abs=0.6)
    assert worse.distance > 0.5
    assert report.edf["o1"][-1][1] == 1
    assert len(report.edf["o0"]) == 24
    assert report.models == 24
    assert report.spread == pytest.approx(np.sqrt(0.4), rel=0.5)
    assert report.detectable > report.spread / np.sqrt(24)


def test_undecided_says_how_much_the_models_could_have_shown():
    report, _ = run(simulated([0, 0.2, 0], 1), 3, 8, rungs=(1.0,))
    assert report.verdict == "undecided"
    assert report.kept == ("o0", "o1", "o2")
    assert "3 of 3 options stay: 8 models show differences of" in report.why
    assert report.why.endswith("delta is 0.3 SD")


def test_base_models_are_asked_for_one_after_the_other_under_every_option():
    _, asked = run(simulated([0, 0, 0], 0), 3, 8, rungs=(1.0,))
    assert [position(r)[:2] for r in asked[:6]] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert [r.seed for r in asked[:6]] == [0, 0, 0, 1, 1, 1]
    assert asked[1].label == "S1 grouping: o1 #0"


# -- outcomes without a score ------------------------------------------------------------------------------------------


def test_a_failed_model_takes_its_base_model_out_under_every_option():
    good = simulated([0, 2], 0)

    def answer(option, model, steps):
        return Outcome(State.FAILED, 1) if (option, model) == (1, 3) else good(option, model, steps)

    report, _ = run(answer, 2, 16, rungs=(1.0,))
    assert [row.n for row in report.rows] == [15, 15]
    assert report.kept == ("o1",)


def test_a_diverged_model_counts_as_the_worst_that_was_seen():
    good = simulated([0, 0], 0)

    def answer(option, model, steps):
        return Outcome(State.DIVERGED, 1) if option == 1 and model % 2 else good(option, model, steps)

    report, _ = run(answer, 2, 24, rungs=(1.0,))
    assert [row.n for row in report.rows] == [24, 24]
    assert report.kept == ("o0",)
    assert report.rows[1].decision == "beaten"


def test_an_option_most_of_whose_models_fail_is_out_and_the_others_go_on():
    good = simulated([0, 2, 0], 0)

    def answer(option, model, steps):
        return Outcome(State.OUT_OF_MEMORY, 1) if option == 2 and model > 2 else good(option, model, steps)

    report, asked = run(answer, 3, 24)
    assert report.kept == ("o1",)
    failed = next(row for row in report.rows if row.option == "o2")
    assert (failed.decision, failed.n) == ("failed", 3)
    assert report.rungs[0].let_go == ("o2",)
    assert not [r for r in asked if position(r)[0] == 2 and r.fidelity.steps == STEPS]


def test_where_only_one_option_has_scores_it_is_kept_without_a_claim():
    def answer(option, model, steps):
        return done(0.5) if option == 1 else Outcome(State.FAILED, 1)

    report, _ = run(answer, 3, 8)
    assert (report.verdict, report.kept) == ("fixed", ("o1",))
    assert report.why == "o1: the models of every other option failed"


def test_where_everything_fails_every_option_stays():
    report, _ = run(lambda *_: Outcome(State.FAILED, 1, message="no"), 3, 8)
    assert (report.verdict, report.kept) == ("undecided", ("o0", "o1", "o2"))
    assert {row.decision for row in report.rows} == {"failed"}
    assert "nothing can be compared" in report.why


def test_scores_that_are_all_the_same_are_a_tie():
    report, _ = run(lambda *_: done(0.5), 3, 8)
    assert (report.verdict, report.kept) == ("decided", ("o0",))


# -- tables ------------------------------------------------------------------------------------------------------------


def test_a_table_has_a_dimension_for_tasks_and_each_has_its_own_worst():
    outcomes = [
        [[done(0.9), done(5)], [Outcome(State.DIVERGED, 1), done(3)]],
        [[done(0.2), done(4)], [Outcome(State.FAILED, 1), Outcome(State.DIVERGED, 1)]],
    ]
    table = score_table(outcomes)
    assert table.shape == (2, 2, 2)
    assert table[0].tolist() == [[0.9, 5], [0.2, 3]]
    assert np.isnan(table[1, 1, 0])
    assert table[1, 1, 1] == 3


def test_a_comparison_is_of_whole_options_and_then_of_whole_models():
    scores = np.zeros((3, 4, 1))
    scores[1, 0] = scores[2, 1] = scores[2, 2] = scores[2, 3] = np.nan
    assert complete(scores) == ([0, 1], [1, 2, 3])
    assert complete(np.full((2, 3, 1), np.nan)) == ([], [])


def test_the_bench_asks_for_the_same_request_once_and_knows_what_is_left():
    bench = Bench(problem(trials=10))
    candidate = population(1, 1).models["o0"][0]
    requests = [bench.request(candidate, 1.0, 0, "a"), bench.request(candidate, 1.0, 0, "b")]
    assert bench.left == 9
    assert next(bench.ask(requests)) == requests[1:]
    assert bench.left == 8
    assert bench.is_spent(requests[0])
    assert next(bench.ask(requests)) == requests[1:]
    assert bench.left == 8
    assert (bench.steps(0.25), bench.steps(1e-9)) == (25, 1)
