from __future__ import annotations

import numpy as np
import pytest
import torch

from peftscout.strategies.adam import Adam


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_it_steps_as_torch_does(decoupled: bool, weight_decay: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 2))
    parameter = torch.tensor(values, requires_grad=True)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs = kind([parameter], lr=0.05, betas=(0.5, 0.99), weight_decay=weight_decay)
    ours = Adam((3, 2), 0.05, (0.5, 0.99), weight_decay, decoupled)
    for _ in range(6):
        gradient = rng.standard_normal((3, 2))
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        values = ours.step(values, gradient)
    assert values == pytest.approx(parameter.detach().numpy(), rel=1e-6)


def test_the_rate_factor_scales_the_step() -> None:
    whole = Adam((2,), 0.1).step(np.zeros(2), np.array([1.0, -2.0]))
    half = Adam((2,), 0.1).step(np.zeros(2), np.array([1.0, -2.0]), rate_factor=0.5)
    assert half == pytest.approx(whole / 2)


def test_a_restored_state_goes_on_as_the_original() -> None:
    rng = np.random.default_rng(0)
    adam, values = Adam((4,), 0.1), np.zeros(4)
    for _ in range(3):
        values = adam.step(values, rng.standard_normal(4))
    other = Adam((4,), 0.1)
    other.load("x", adam.state("x"))
    gradient = rng.standard_normal(4)
    assert np.array_equal(adam.step(values, gradient), other.step(values, gradient))


def test_a_restored_state_is_a_copy() -> None:
    adam = Adam((1,), 0.1)
    adam.step(np.zeros(1), np.ones(1))
    state = {name: array.copy() for name, array in adam.state("x").items()}
    other = Adam((1,), 0.1)
    other.load("x", state)
    state["x.mean"][:] = 99.0
    assert np.array_equal(other.state("x")["x.mean"], adam.state("x")["x.mean"])
