"""Requests and outcomes on one task or several; nothing is asked for twice."""

from dataclasses import replace

import numpy as np
import pytest

from fake_sites import fake_sites
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan
from peftscout.space import load_space
from peftscout.strategies.base import Problem
from peftscout.strategies.design_spaces.bench import Bench
from peftscout.strategies.design_spaces.compilation import Compiled
from peftscout.strategies.design_spaces.decision import compare, decide
from peftscout.strategies.design_spaces.genotype import Rates, canonical_genotype
from peftscout.strategies.design_spaces.layout import layout
from peftscout.strategies.design_spaces.populations import Candidate
from peftscout.strategies.design_spaces.statistics import standardise
from peftscout.strategies.design_spaces.yaml import load_design_space

SITES = fake_sites("encoder", layers=4)
SPACE = load_design_space("chen2023-s0")
THERE = layout(SITES, SPACE.methods_defined)
BASELINE = Plan.of({("layers.0.attention.q", "lora"): 1})


def problem(trials: int | None = None, tasks: tuple[str, ...] = ("",)) -> Problem:
    space, budget, fidelity = load_space("all", SITES), Budget(9999, "9999"), Fidelity(200, 0.5)
    return Problem(SITES, space, budget, BASELINE, fidelity, trials, 7, (1.0,), tasks=tasks)


def candidate(size: int, lr_scale: float = 1.0) -> Candidate:
    plan = Plan.of({("layers.0.ffn", "serial"): size})
    return Candidate(canonical_genotype(SPACE.first, THERE, lr_scale), Compiled(plan, plan.cost(SITES), 0))


def done(score: float) -> Outcome:
    return Outcome(State.DONE, 1, float(score))


def finish(procedure, tell, batches=None) -> np.ndarray:
    """Run a procedure to its end, telling every request of every batch; collect the batches."""
    while True:
        try:
            batch = next(procedure)
        except StopIteration as end:
            return end.value
        if batches is not None:
            batches.append(batch)
        for request in batch:
            tell(request)


def test_a_request_has_the_share_of_the_steps_the_fraction_of_the_data_and_the_seed_of_its_base_model():
    request = Bench(problem()).request(candidate(3, lr_scale=0.3), 0.25, base_model=4, label="S1")
    assert request == Evaluate(candidate(3).compiled.plan, Fidelity(50, 0.5), 11, 0.3)
    assert request.label == "S1"


def test_the_baseline_counts_as_asked_for():
    bench = Bench(problem(trials=3))
    assert bench.left == 2
    assert bench.is_spent(Evaluate(BASELINE, Fidelity(200, 0.5), 7))
    assert Bench(problem()).left is None


def test_a_request_has_the_learning_rates_of_the_methods_that_its_plan_has():
    one = candidate(3)
    rates = Rates(0.5, (("lora", 3.0), ("serial", 2.0)))
    request = Bench(problem()).request(replace(one, genotype=replace(one.genotype, rates=rates)), 1.0, 0, "")
    assert request.plan.ops == ("serial",)
    assert request.op_lr_scales == (("serial", 2.0),)
    assert request.lr_factor("serial") == 1.0
    assert request.lr_factor("head") == 0.5


def test_a_batch_larger_than_what_is_left_is_a_mistake_of_the_procedure():
    bench = Bench(problem(trials=3))
    requests = [bench.request(candidate(size), 1.0, 0, "") for size in (1, 2, 3)]
    with pytest.raises(AssertionError, match="3 requests are more than are left"):
        next(bench.ask(requests))


def test_a_plan_that_several_options_share_is_trained_once():
    bench = Bench(problem())
    asked = []

    def tell(request):
        asked.append(request)
        bench.tell(request, done(request.plan.sizes["layers.0.ffn", "serial"]))

    table = finish(bench.measure([[candidate(1), candidate(2)], [candidate(1), candidate(5)]], 1.0, ["a", "b"]), tell)
    assert table[..., 0].tolist() == [[1, 2], [1, 5]]
    assert len(asked) == 3


def test_what_is_known_from_an_earlier_stage_is_not_trained_again():
    bench = Bench(problem(trials=10))
    finish(bench.measure([[candidate(1), candidate(2)]], 1.0, ["S1"]), lambda r: bench.tell(r, done(0.5)))
    assert bench.left == 7
    table = finish(bench.measure([[candidate(1), candidate(3)]], 1.0, ["S2"]), lambda r: bench.tell(r, done(0.7)))
    assert bench.left == 6
    assert table.shape == (1, 2, 1)


def test_every_model_is_asked_for_on_every_task_and_each_training_is_a_trial():
    bench = Bench(problem(trials=12, tasks=("", "cola")))
    assert bench.left == 5  # 11 trials after the baseline
    batches = []
    finish(bench.measure([[candidate(1), candidate(2)]], 1.0, ["S1"]), lambda r: bench.tell(r, done(0.5)), batches)
    (asked,) = batches
    assert [(r.task, r.seed, r.label) for r in asked] == [
        ("", 7, "S1 #0"),
        ("cola", 7, "S1 #0, cola"),
        ("", 8, "S1 #1"),
        ("cola", 8, "S1 #1, cola"),
    ]
    assert len({r.key for r in asked}) == 4
    assert bench.left == 3
    assert bench.told == 4


def test_a_model_is_spent_when_every_task_is():
    bench = Bench(problem(tasks=("", "cola")))
    model = bench.request(candidate(1), 1.0, 0, "")
    finish(Bench(problem()).ask([model]), lambda r: None)
    assert not bench.is_spent(model)
    finish(bench.ask([model]), lambda r: bench.tell(r, done(0.5)))
    assert bench.is_spent(model)


def test_several_tasks_give_one_decision_in_which_each_counts_as_much():
    """CoLA's Matthews correlation swings ten times as far as the accuracy of RTE: standardised, neither dominates."""
    bench = Bench(problem(tasks=("", "cola")))
    rng = np.random.default_rng(0)
    shared = rng.normal(size=24)

    def tell(request):
        size, model = request.plan.sizes["layers.0.ffn", "serial"], request.seed - 7
        unit, effect = (0.1, 0.0) if request.task == "cola" else (0.01, 1.0)
        noise = 0.9 * shared[model] + 0.4 * rng.normal()
        bench.tell(request, done(0.5 + unit * (effect * (size == 2) + noise)))

    options = [[candidate(size)] * 24 for size in (1, 2)]
    table = finish(bench.measure(options, 1.0, ["small", "large"]), tell)
    assert table.shape == (2, 24, 2)
    raw = decide(compare(table.mean(axis=2), 0.05, 500, np.random.default_rng(0)), 0.3, 0.05)
    fair = decide(compare(standardise(table), 0.05, 500, np.random.default_rng(0)), 0.3, 0.05)
    assert fair.kept == (1,)
    assert raw.kept == (0,)  # the unit of CoLA hides what RTE shows
