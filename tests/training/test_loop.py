import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from peftscout.training.loop import DivergedError, Predictor, parameter_groups, warmup_then_decay
from peftscout.training.settings import TrainingSettings


@given(steps=st.integers(1, 500), warmup=st.floats(0, 1))
def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_the_end(steps, warmup):
    factors = [warmup_then_decay(steps, warmup)(i) for i in range(steps)]
    rising = max(1, math.ceil(warmup * steps))
    assert all(0 < f <= 1 for f in factors)
    assert factors[min(rising, steps) - 1] == pytest.approx(min(rising, steps) / rising)
    assert all(a < b for a, b in pairwise(factors[:rising]))
    assert all(a > b for a, b in pairwise(factors[rising:]))
    assert warmup_then_decay(steps, warmup)(steps) <= 1


def test_each_family_has_its_learning_rate_and_only_matrices_decay():
    settings = TrainingSettings({"lora": 1e-3, "bias": 5e-3, "head": 2e-3}, weight_decay=0.1)
    matrix, vector, head = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, 2))
    groups = parameter_groups({"lora": [matrix], "bias": [vector], "head": [head]}, settings, 3.0)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (pytest.approx(3e-3), 0.1),
        (pytest.approx(15e-3), 0.0),
        (pytest.approx(6e-3), 0.1),
    ]
    assert [len(g["params"]) for g in groups] == [1, 1, 1]


def test_classes_are_the_largest_logits_and_values_are_the_logits():
    logits = torch.tensor([[0.1, 0.9], [2.0, -1.0]])
    assert Predictor(("accuracy",), regression=False).predictions(logits).tolist() == [1, 0]
    values = Predictor(("pearson",), regression=True).predictions(torch.tensor([[0.5], [1.5]]))
    assert np.allclose(values, [0.5, 1.5])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_diverged(bad):
    with pytest.raises(DivergedError, match="NaN or infinite"):
        Predictor(("accuracy",), regression=False).predictions(torch.tensor([[0.0, bad]]))
