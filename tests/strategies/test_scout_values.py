"""What a level is worth, from the slopes at its gate: exact where the loss is a parabola along the gate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_one_shot import ToyOneShot

from fake_sites import fake_sites
from peftscout.gates import Gates, Modules, Step
from peftscout.space import Choice, Space
from peftscout.strategies.scout_options import MEASURES
from peftscout.strategies.scout_values import OFF, ON, GateSlopes, block_slopes

SIZES = (1, 2, 4)


def modules_of(sizes=SIZES, count: int = 3) -> Modules:
    sites = fake_sites("encoder", layers=4)
    places = [s.id for s in sites.values() if s.kind == "linear" and s.in_features == s.out_features]
    return Modules(Space("small", tuple(Choice.untied(s, "lora", sizes) for s in places[:count]), sites))


def toy_of(modules: Modules, u, best, theta=None) -> ToyOneShot:
    one_shot = ToyOneShot(modules, np.array(u), np.array(best), noise=0.0)
    if theta is not None:
        one_shot.theta = np.broadcast_to(theta, one_shot.theta.shape).copy()
    return one_shot


def gates_at(modules: Modules, levels, probed=None) -> Gates:
    """``levels``: -1 is closed, with all weight on the smallest size."""
    level = np.array(levels)
    return Gates((level >= 0).astype(float), modules.one_hot(np.maximum(level, 0)), probed)


def shown_everything(one_shot: ToyOneShot, memory: float = 1e9) -> GateSlopes:
    """Slopes of every block, off and on, of weights that stand still."""
    modules = one_shot.modules
    slopes = GateSlopes(modules.costs.shape, memory)
    for level in range(-1, modules.costs.shape[1]):
        gates = gates_at(modules, [min(level, n - 1) for n in modules.levels])
        slopes.see(gates, one_shot.step(gates, "train", gate_gradients=True, update_weights=False))
    return slopes


def loss_at(one_shot: ToyOneShot, module: int, level: int) -> float:
    levels = np.full(len(one_shot.modules), -1)
    levels[module] = level
    return one_shot.held_out_loss(gates_at(one_shot.modules, levels), 1)


@pytest.mark.parametrize("theta", [0.1, 0.7, 1.0, 1.6])
def test_the_difference_is_exactly_how_much_lower_the_loss_is_with_the_level(theta: float) -> None:
    modules = modules_of()
    one_shot = toy_of(modules, [1.0, 0.5, 2.0], [1, 2, 4], theta)
    values = shown_everything(one_shot).values("difference")
    for m in range(3):
        without = loss_at(one_shot, m, -1)
        assert values[m] == pytest.approx([without - loss_at(one_shot, m, k) for k in range(3)])


def test_where_training_has_converged_a_removal_is_worth_nothing_and_an_opening_twice_what_it_is() -> None:
    """Why neither end alone will do."""
    one_shot = toy_of(modules_of((1,)), [1.0, 0.5, 2.0], [1, 1, 1])
    one_shot.theta = one_shot.u.copy()
    slopes = shown_everything(one_shot)
    true = 0.5 * one_shot.u[:, :1] ** 2
    assert slopes.values("difference") == pytest.approx(true)
    assert slopes.values("removal") == pytest.approx(np.zeros_like(true))
    assert slopes.values("opening") == pytest.approx(2 * true)


def test_fisher_is_half_the_mean_square_of_the_slope_when_on() -> None:
    slopes = GateSlopes((1, 1), 1e12)
    for slope in (1.0, -3.0):
        seen = Step(0.0, np.array([slope]), np.zeros((1, 1)), np.zeros(1), np.zeros(1))
        slopes.see(Gates(np.ones(1), np.ones((1, 1))), seen)
    assert slopes.values("fisher") == pytest.approx((1 + 9) / 2 / 2)


@given(st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=8, max_size=60))
def test_how_often_a_block_was_on_changes_nothing(levels: list[int]) -> None:
    """Once each block was seen off and on, the value is what it is."""
    modules = modules_of(count=1)
    one_shot = toy_of(modules, [1.0], [2], 0.4)
    slopes = GateSlopes(modules.costs.shape, 7.0)
    for level in [-1, 0, 1, 2, *levels]:
        gates = gates_at(modules, [level])
        slopes.see(gates, one_shot.step(gates, "train", gate_gradients=True, update_weights=False))
    assert slopes.values("difference") == pytest.approx(shown_everything(one_shot).values("difference"))


def test_what_a_module_has_besides_its_units_belongs_to_the_smallest_size() -> None:
    """An adapter's output bias is there at every size; ``Step.on`` holds its slope, ``Step.size`` does not."""
    step = Step(0.0, np.array([-10.0]), np.array([[-2.0, -5.0, -9.0]]), np.zeros(1), np.zeros(1))
    at_level_1 = block_slopes(step, np.array([1]))  # -10 = -5 of the units up to level 1, and -5 of the rest
    assert at_level_1.tolist() == [[-7.0, -3.0, -4.0]]


def test_an_op_without_sizes_has_its_slope_in_its_only_block() -> None:
    step = Step(0.0, np.array([-3.0]), np.zeros((1, 1)), np.zeros(1), np.zeros(1))
    assert block_slopes(step, np.array([0])).tolist() == [[-3.0]]


def test_of_a_closed_module_only_the_smallest_size_is_seen_and_only_where_it_is_probed() -> None:
    modules = modules_of()
    one_shot = toy_of(modules, [1.0, 1.0, 1.0], [1, 2, 4], 0.5)
    slopes = GateSlopes(modules.costs.shape, 10.0)
    gates = gates_at(modules, [1, -1, -1], np.array([True, True, False]))
    slopes.see(gates, one_shot.step(gates, "train", gate_gradients=True, update_weights=False))
    assert slopes.weight[ON].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert slopes.weight[OFF].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_old_slopes_fade() -> None:
    slopes = GateSlopes((1, 1), 5.0)
    for slope in [100.0, *[-1.0] * 60]:
        slopes.see(
            Gates(np.ones(1), np.ones((1, 1))),
            Step(0.0, np.array([slope]), np.zeros((1, 1)), np.zeros(1), np.zeros(1)),
        )
    assert slopes.mean(ON)[0, 0] == pytest.approx(-1.0, abs=1e-2)


def test_saliency_is_the_mean_of_what_a_module_had_at_that_level() -> None:
    slopes = GateSlopes((2, 2), 1e12)
    for level, saliency in ((0, 1.0), (0, 3.0), (1, 8.0)):
        step = Step(0.0, np.zeros(2), np.zeros((2, 2)), np.full(2, saliency), np.zeros(2))
        slopes.see(Gates(np.array([1.0, 0.0]), np.eye(2)[[level, 0]]), step)
    assert slopes.values("saliency") == pytest.approx(np.array([[2.0, 8.0], [0.0, 0.0]]))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_seen(broken: float) -> None:
    slopes = GateSlopes((2, 1), 1e12)
    gates = Gates(np.ones(2), np.ones((2, 1)))
    for slope, saliency in (([-1.0, -2.0], 1.0), ([broken, -2.0], broken)):
        seen = Step(0.0, np.array(slope), np.zeros((2, 1)), np.full(2, saliency), np.zeros(2))
        slopes.see(gates, seen)
    assert slopes.values("removal")[:, 0].tolist() == pytest.approx([1.0, 2.0])
    assert slopes.values("saliency")[:, 0].tolist() == pytest.approx([1.0, 1.0])


def test_what_was_never_seen_is_worth_nothing() -> None:
    for measure in MEASURES:
        assert not GateSlopes((2, 3), 5.0).values(measure).any()


def test_saved_slopes_are_taken_up_as_they_were() -> None:
    slopes = shown_everything(toy_of(modules_of(), [1.0, 0.5, 2.0], [1, 2, 4], 0.3))
    again = GateSlopes((3, 3), 1e9)
    again.load(slopes.state())
    assert np.array_equal(again.values("difference"), slopes.values("difference"))
    slopes.weight += 1
    assert not np.array_equal(again.weight, slopes.weight)
