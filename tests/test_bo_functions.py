"""The synthetic problems of the benchmarks: their fronts are what they say."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import bo_functions
from bo_functions import FLOOR, Function, functions
from peftscout.space import Choice, Space
from peftscout.surrogate.staircase import Staircase, front

PROBLEMS = functions()
LAYERWISE = [name for name in PROBLEMS if not name.endswith("-15")]


def test_there_are_problems_of_15_and_of_at_least_60_variables():
    sizes = [len(f.space.variables) for f in PROBLEMS.values()]
    assert sizes == [15, 15, 15, 60, 60, 72]
    assert PROBLEMS["sweet_spot-15"].space.cardinality() == 5_446_350


@pytest.mark.parametrize("name", PROBLEMS)
def test_scores_of_plans_are_finite_and_the_empty_plan_is_the_floor(name):
    f = PROBLEMS[name]
    vectors = f.space.sample_vectors(300, np.random.default_rng(0))
    assert np.all(np.isfinite(f.score(vectors)))
    assert f.score(0 * vectors[:1])[0] == pytest.approx(FLOOR, abs=0.01)


@pytest.mark.parametrize("name", LAYERWISE)
def test_no_plan_is_above_the_front(name):
    f = PROBLEMS[name]
    staircase = Staircase.of(*f.front_points(), f.reference)
    rng = np.random.default_rng(1)
    dense = f.space.sample_vectors(1000, rng)
    vectors = np.concatenate([dense, dense * (rng.random(dense.shape) < 0.1)])
    vectors = vectors[f.space.costs(vectors) > 0]
    log_costs = np.log10(f.space.costs(vectors).astype(float))
    assert np.all(f.score(vectors) <= staircase(log_costs + 1 / 1000) + 1e-9)


def test_dynamic_programming_gives_the_front_of_enumeration_on_two_layers(monkeypatch):
    monkeypatch.setattr(bo_functions, "LAYERS", 2)
    sites = bo_functions.fake_sites("encoder", 2, 768, 3072, 12, 12)
    choices = [
        Choice.untied(f"layers.{layer}.attention.{p}", "lora", bo_functions.SIZES) for layer in (0, 1) for p in "qv"
    ]
    space = Space("small", tuple(choices), sites)

    def gain(layer: int, sizes: np.ndarray) -> np.ndarray:
        return (1 + layer) * (sizes[:, 0] / (sizes[:, 0] + 3)) + np.sqrt(sizes[:, 1]) / 10 - 0.01 * sizes[:, 0]

    vectors = np.array(list(itertools.product(range(8), repeat=4)))[1:]
    log_costs = np.log10(space.costs(vectors).astype(float))
    scores = bo_functions._layerwise_score(space, gain, 2.0)(vectors)
    best = front(log_costs, scores)
    function = Function("small", space, lambda v: scores, lambda: bo_functions._layerwise_front(space, gain, 2.0))
    exact = Staircase.of(log_costs[best], scores[best], function.reference).area()
    assert function.best_hypervolume == pytest.approx(exact, rel=1e-3)


def test_everything_on_the_front_is_the_whole_hypervolume_and_a_part_is_less():
    f = PROBLEMS["saturating_layer-60"]
    vectors = f.space.sample_vectors(50, np.random.default_rng(0))
    assert 0 < f.share_of_best(vectors[:5]) <= f.share_of_best(vectors) < 1
    assert f.share_of_best(0 * vectors) == 0.0


def test_observations_have_the_noise_that_is_said():
    f = PROBLEMS["few_layers-15"]
    plan = f.space.cheapest()
    rng = np.random.default_rng(0)
    scores = [f.observe(plan, rng) for _ in range(400)]
    assert np.std(scores) == pytest.approx(bo_functions.NOISE, rel=0.15)
    assert np.mean(scores) == pytest.approx(f.score(f.space.encode(plan)[None])[0], abs=0.003)
