import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.training.objectives import Classes, Numbers
from peftscout.training.schedule import evaluation_steps, learning_rate_factor, parameter_groups
from peftscout.training.settings import TrainingSettings
from peftscout.training.trial import DivergedError, RandomStream


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1))
def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_the_end(steps, warmup):
    factor = learning_rate_factor(Fidelity(steps), warmup)
    factors = [factor(i) for i in range(steps)]
    rising = max(1, math.ceil(warmup * steps))
    assert all(0 < f <= 1 for f in factors)
    assert factors[min(rising, steps) - 1] == pytest.approx(min(rising, steps) / rising)
    assert all(a < b for a, b in pairwise(factors[:rising]))
    assert all(a > b for a, b in pairwise(factors[rising:]))
    assert factor(steps) <= 1


def test_each_family_has_its_learning_rate_and_only_matrices_decay():
    settings = TrainingSettings({"lora": 1e-3, "bias": 5e-3, "head": 2e-3}, weight_decay=0.1)
    matrix, vector, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    request = Evaluate(Plan.of({}), Fidelity(1), 0, 3.0, op_lr_scales=(("lora", 2.0),))
    groups = parameter_groups({"lora": [matrix], "bias": [vector], "head": [head]}, settings, request.lr_factor)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (pytest.approx(6e-3), 0.1),
        (pytest.approx(15e-3), 0.0),
        (pytest.approx(6e-3), 0.1),
    ]
    assert [len(g["params"]) for g in groups] == [1, 1, 1]


def test_classes_are_the_largest_logits_and_values_are_the_logits():
    logits = torch.tensor([[0.1, 0.9], [2.0, -1.0]])
    assert Classes(("accuracy",)).predictions(logits, torch.zeros(2)).tolist() == [1, 0]
    values = Numbers(("pearson",)).predictions(torch.tensor([[0.5], [1.5]]), torch.zeros(2))
    assert np.allclose(values, [0.5, 1.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_diverged(bad):
    with pytest.raises(DivergedError, match="NaN or infinite"):
        Classes(("accuracy",)).predictions(torch.tensor([[0.0, bad]]), torch.zeros(1))


LADDER = (10, 30, 90)


def test_on_a_ladder_the_rate_stays_up_until_the_last_rung():
    factors = [learning_rate_factor(Fidelity(90, rungs=LADDER), 0.1)(i) for i in range(90)]
    assert factors[8] == pytest.approx(1.0)
    assert factors[9:30] == [1.0] * 21
    assert all(a > b for a, b in pairwise(factors[30:]))
    assert factors[-1] > 0


@pytest.mark.parametrize("steps", LADDER)
def test_the_run_to_a_lower_rung_is_the_beginning_of_the_run_to_the_last(steps):
    lower, whole = (learning_rate_factor(Fidelity(s, rungs=LADDER), 0.06) for s in (steps, 90))
    assert [lower(i) for i in range(steps)] == [whole(i) for i in range(steps)]


def test_a_run_is_scored_at_even_distances_or_at_the_rungs():
    assert evaluation_steps(Fidelity(10), 3) == {4, 7, 10}
    assert evaluation_steps(Fidelity(2), 5) == {1, 2}
    assert evaluation_steps(Fidelity(30, rungs=LADDER), 2) == {10, 30}


@pytest.mark.parametrize(("regression", "shape"), [(True, (6, 1)), (False, (6, 3))])
def test_the_loss_is_that_of_the_models_own_head(regression, shape):
    from transformers import AutoModelForSequenceClassification

    from tiny_models import tiny_config

    config = tiny_config("bert")
    config.num_labels = shape[1]
    config.problem_type = "regression" if regression else "single_label_classification"
    model = AutoModelForSequenceClassification.from_config(config)
    ids = torch.randint(3, 90, (6, 5))
    labels = torch.randn(6) if regression else torch.randint(0, 3, (6,))
    out = model(input_ids=ids, labels=labels)
    assert torch.equal((Numbers if regression else Classes)(()).loss(out.logits, labels), out.loss)


def test_the_random_stream_of_a_seed_is_that_after_manual_seed_and_seeding_leaves_torch_alone():
    torch.manual_seed(5)
    expected = torch.rand(4)
    before = torch.get_rng_state()
    stream = RandomStream.seeded(5)
    assert torch.equal(torch.get_rng_state(), before)
    RandomStream.of(stream.tensors()).enter()
    assert torch.equal(torch.rand(4), expected)
