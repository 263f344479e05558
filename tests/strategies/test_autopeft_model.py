import dataclasses

import numpy as np
import pytest

from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan
from peftscout.strategies.autopeft_model import Model, Requests, costs_and_scores, on_front, points_of, usable_prior
from peftscout.strategies.autopeft_options import AutoPeftOptions
from peftscout.strategies.base import Problem
from peftscout.surrogate.features import Encoder
from small_spaces import autopeft_space, layerwise_space

SPACE = layerwise_space(3)
FOREIGN = Plan.of({("layers.0.attention.v", "lora"): 2})


def requests(lr_scales=(0.5, 1.0), space=SPACE) -> Requests:
    dearest = space.dearest().cost(space.sites)
    problem = Problem(space.sites, space, Budget(dearest, str(dearest)), FOREIGN, Fidelity(20), 30, 5, tuple(lr_scales))
    return Requests(problem, Encoder(space, tuple(lr_scales)))


def score_of(point: np.ndarray) -> float:
    return 0.5 + 0.05 * float(np.sqrt(point[:-1]).sum()) / len(point) + 0.02 * float(point[-1])


def told(r: Requests, n: int = 12, seed: int = 0, state: State = State.DONE) -> list:
    """``n`` evaluations of random plans."""
    rng = np.random.default_rng(seed)
    out = []
    for vector in r.problem.space.sample_vectors(n, rng):
        vector[[0, -1]] = np.maximum(vector[[0, -1]], 1)  # a size and a switch: the empty plan is never asked for
        point = r.encoder.canonical(np.array([[*vector, rng.integers(len(r.problem.lr_scales))]]))[0]
        request = r.at(point, "")
        cost = request.plan.cost(r.problem.sites)
        outcome = Outcome(state, cost, score_of(point) if state is State.DONE else None, message="x")
        out.append(r.told(request, outcome))
    return out


def test_points_and_requests_are_the_same_thing_in_two_forms():
    r = requests()
    for t in told(r, 30):
        assert t.point is not None
        assert len(t.request.plan)
        assert r.at(t.point, "") == t.request
        np.testing.assert_array_equal(r.point_of(t.request), t.point)


def test_requests_carry_the_problem_s_fidelity_and_seed():
    request = requests().at(np.array([1, 0, 0, 0, 0, 0, 1]), "why")
    assert (request.fidelity, request.seed, request.lr_scale, request.label) == (Fidelity(20), 5, 1.0, "why")


@pytest.mark.parametrize(
    "request_",
    [Evaluate(FOREIGN, Fidelity(20), 5), Evaluate(SPACE.cheapest(), Fidelity(20), 5, lr_scale=7.0)],
    ids=["a plan outside the space", "a learning rate that is not searched"],
)
def test_what_the_space_cannot_express_has_no_point(request_):
    assert requests().point_of(request_) is None


def test_only_full_evaluations_with_a_score_in_the_space_are_learned_from():
    r = requests()
    model = Model(r, AutoPeftOptions())
    good = told(r, 5)
    cheap = dataclasses.replace(good[0].request, fidelity=Fidelity(3))
    short = r.told(cheap, good[0].outcome)
    baseline = r.told(Evaluate(FOREIGN, Fidelity(20), 5), Outcome(State.DONE, 100, 0.9))
    failed = told(r, 2, seed=4, state=State.FAILED)
    assert model.learnable([*good, short, baseline, *failed]) == good


def test_costs_scores_and_points_come_in_the_order_told():
    evaluations = told(requests(), 6)
    costs, scores = costs_and_scores(evaluations)
    assert costs.tolist() == [t.outcome.cost for t in evaluations]
    assert scores.tolist() == [t.outcome.score for t in evaluations]
    np.testing.assert_array_equal(points_of(evaluations)[3], evaluations[3].point)


def test_nothing_told_has_no_costs_and_no_front():
    assert [len(a) for a in costs_and_scores([])] == [0, 0]
    assert on_front([]) == []


def test_the_front_of_what_was_told_rises_with_the_cost():
    chosen = on_front(told(requests(), 25))
    costs, scores = costs_and_scores(chosen)
    assert 1 <= len(chosen) < 25
    assert np.all(np.diff(costs) > 0)
    assert np.all(np.diff(scores) > 0)


@pytest.mark.parametrize("surrogate", ["map", "saas"])
def test_the_acquisition_prefers_plans_that_should_be_better(surrogate):
    r = requests()
    model = Model(r, AutoPeftOptions(surrogate=surrogate))
    acquisition = model.acquisition(told(r, 25), reference_score=0.5)
    unseen = [t for t in told(r, 60, seed=9) if t.point is not None]
    mean, std = acquisition.predict(r.encoder(points_of(unseen)))
    truth = costs_and_scores(unseen)[1]
    assert np.corrcoef(mean, truth)[0, 1] > 0.8
    assert np.all(std > 0)


def test_the_baseline_lifts_the_front_although_the_surrogate_cannot_see_it():
    r = requests()
    model, evaluations = Model(r, AutoPeftOptions()), told(r, 15)
    baseline = r.told(Evaluate(FOREIGN, Fidelity(20), 5), Outcome(State.DONE, 50, 0.95))
    at = points_of(told(r, 20, seed=2))
    inputs = r.encoder(at), np.log10(r.encoder.costs(at).astype(float))
    without = model.acquisition(evaluations, 0.5)(*inputs)
    with_it = model.acquisition([*evaluations, baseline], 0.5)(*inputs)
    assert np.all(with_it <= without)
    assert with_it.max() < without.max()


def test_failures_make_a_surrogate_of_success_and_pruned_runs_do_not():
    r = requests()
    model, evaluations = Model(r, AutoPeftOptions()), told(r, 15)
    assert model.acquisition(evaluations, 0.5).success is None
    pruned = told(r, 3, seed=8, state=State.PRUNED)
    assert model.acquisition([*evaluations, *pruned], 0.5).success is None
    diverged = told(r, 3, seed=8, state=State.DIVERGED)
    success = model.acquisition([*evaluations, *diverged], 0.5).success
    assert success is not None
    assert (
        success.mean_at(r.encoder(points_of(diverged))).mean()
        < success.mean_at(r.encoder(points_of(evaluations))).mean()
    )


def test_one_collapsed_run_does_not_flatten_the_rest():
    """Without the fence its score is most of the variance, and the differences that matter are noise beside it."""
    r = requests((1.0,), autopeft_space(4))
    evaluations = told(r, 30)
    collapsed = r.told(evaluations[0].request, dataclasses.replace(evaluations[0].outcome, score=-20.0))
    unseen = told(r, 60, seed=9)
    truth = costs_and_scores(unseen)[1]

    def error(options: AutoPeftOptions) -> float:
        acquisition = Model(r, options).acquisition([collapsed, *evaluations[1:]], 0.5)
        return float(np.abs(acquisition.predict(r.encoder(points_of(unseen)))[0] - truth).mean())

    assert error(AutoPeftOptions(outlier_fence=3.0)) < 0.5 * error(AutoPeftOptions(outlier_fence=1e9))


def test_a_prior_is_what_another_study_finished_at_its_highest_fidelity_inside_the_space():
    r = requests()
    good = [(t.request, t.outcome) for t in told(r, 4)]
    rung = (dataclasses.replace(good[0][0], fidelity=Fidelity(2)), good[0][1])
    foreign = (Evaluate(FOREIGN, Fidelity(20), 5), Outcome(State.DONE, 50, 0.9))
    failed = [(t.request, t.outcome) for t in told(r, 2, seed=3, state=State.FAILED)]
    kept = usable_prior(r, [rung, foreign, *failed, *good])
    assert [(t.request, t.outcome) for t in kept] == good
    assert usable_prior(r, []) == ()
