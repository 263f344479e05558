"""The contract that every op keeps, at any site and size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from op_cases import SETTINGS, SIZED, generic, initial, site_for, size_of, tensors_for
from peftscout import cost
from peftscout.ops import OPS, Gate, apply, generator_for
from peftscout.ops.base import Tensors


def test_the_ops_and_their_order_are_those_that_are_priced() -> None:
    assert tuple(OPS) == cost.OPS


@given(
    op=st.sampled_from(tuple(OPS)),
    in_features=st.integers(1, 200),
    out_features=st.integers(1, 200),
    has_bias=st.booleans(),
    size=st.integers(1, 40),
)
def test_the_elements_of_the_tensors_are_the_price(
    op: str, in_features: int, out_features: int, has_bias: bool, size: int
) -> None:
    site, size = site_for(op, in_features, out_features, has_bias), size_of(op, size)
    shapes = OPS[op].shapes(site, size)
    assert sum(math.prod(shape) for shape in shapes.values()) == cost.price(site, op).at(size)


@pytest.mark.parametrize(
    ("op", "size", "count"),
    [("lora", 1, 2048), ("lora", 8, 16384), ("serial", 1, 3073), ("parallel", 8, 17416), ("lowrank_adapter", 1, 3168)],
)
def test_counts_of_t5_large_are_those_of_the_papers(op: str, size: int, count: int) -> None:
    shapes = OPS[op].shapes(site_for(op, 1024, 1024), size)
    assert sum(math.prod(shape) for shape in shapes.values()) == count


@pytest.mark.parametrize("op", OPS)
def test_a_fresh_op_changes_nothing_at_all(op: str) -> None:
    site = site_for(op)
    x, y = tensors_for(op, site)
    assert torch.equal(apply(OPS[op], initial(op, site, size_of(op, 3)), x, y, SETTINGS), y)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_delta_is_proportional_to_the_outer_tensors_and_a_gate_is_a_factor_on_it(op: str, has_bias: bool) -> None:
    site = site_for(op, has_bias=has_bias)
    x, y = tensors_for(op, site)
    params, factor = generic(op, site, size_of(op, 3)), torch.tensor(-0.37)
    delta = OPS[op].delta(params, x, y, SETTINGS)
    outer = {name: factor * t if name in OPS[op].OUTER else t for name, t in params.items()}
    expected = (factor * delta).expand_as(y)
    torch.testing.assert_close(OPS[op].delta(outer, x, y, SETTINGS).expand_as(y), expected, rtol=1e-4, atol=1e-5)
    gated = apply(OPS[op], params, x, y, SETTINGS, Gate(factor))
    torch.testing.assert_close(gated, y + expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", OPS)
def test_a_moved_op_changes_its_output(op: str) -> None:
    site = site_for(op)
    x, y = tensors_for(op, site)
    assert not torch.allclose(apply(OPS[op], generic(op, site), x, y, SETTINGS), y)


@pytest.mark.parametrize("op", OPS)
def test_the_gradient_reaches_every_tensor_at_the_latest_in_the_second_step(op: str) -> None:
    site = site_for(op)
    x, y = tensors_for(op, site)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    params = {name: t.requires_grad_() for name, t in initial(op, site, size_of(op, 3)).items()}
    optimiser = torch.optim.SGD(params.values(), lr=0.1)
    for _ in range(3):  # lowrank_adapter: U2, u first, the rest from the second step on
        optimiser.zero_grad()
        (apply(OPS[op], params, x, y, SETTINGS) - target).square().mean().backward()
        optimiser.step()
    assert all(p.grad is not None and p.grad.any() for p in params.values())


@pytest.mark.parametrize("op", OPS)
def test_a_few_steps_bring_the_output_nearer_to_a_target(op: str) -> None:
    site = site_for(op)
    x, y = tensors_for(op, site)
    target = y * 1.3 + 0.5
    params = {name: t.requires_grad_() for name, t in initial(op, site, size_of(op, 3)).items()}
    optimiser = torch.optim.Adam(params.values(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = (apply(OPS[op], params, x, y, SETTINGS) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@settings(max_examples=40)
@given(op=st.sampled_from(SIZED), large=st.integers(2, 8), data=st.data())
def test_a_shrunk_op_has_the_shapes_of_the_small_op(op: str, large: int, data: st.DataObject) -> None:
    site, small = site_for(op, 40, 64), data.draw(st.integers(1, large))
    shrunk = OPS[op].shrink(generic(op, site, large), small)
    assert {name: tuple(t.shape) for name, t in shrunk.items()} == OPS[op].shapes(site, small)


@pytest.mark.parametrize("op", [op for op in SIZED if op != "prefix"])
def test_a_shrunk_op_is_the_large_one_with_its_other_units_silent(op: str) -> None:
    site, large, small = site_for(op, 40, 64), 5, 2
    x, y = tensors_for(op, site)
    params = generic(op, site, large)
    shrunk = OPS[op].shrink(params, small)
    silent = {name: torch.zeros_like(t) for name, t in params.items()}
    for name, part in OPS[op].shrink(silent, small).items():
        part.copy_(shrunk[name])
    expected = apply(OPS[op], silent, x, y, SETTINGS)
    torch.testing.assert_close(apply(OPS[op], shrunk, x, y, SETTINGS), expected)


@pytest.mark.parametrize("op", OPS)
def test_shrinking_gives_views_so_that_training_the_small_op_trains_the_large_one(op: str) -> None:
    params = generic(op, site_for(op), size_of(op, 4))
    shrunk = OPS[op].shrink(params, size_of(op, 2))
    for name, part in shrunk.items():
        part.fill_(7.0)
        assert (params[name] == 7.0).any()


@pytest.mark.parametrize("op", OPS)
def test_parameters_with_a_leading_dimension_are_as_many_single_ops(op: str) -> None:
    site, k = site_for(op), 3
    singles = [generic(op, site, size_of(op, 2), seed) for seed in range(k)]
    inputs = [tensors_for(op, site, seed) for seed in range(k)]
    expected = torch.stack([apply(OPS[op], p, x, y, SETTINGS) for p, (x, y) in zip(singles, inputs, strict=True)])
    x, y = (torch.stack(parts) for parts in zip(*inputs, strict=True))
    stacked = {name: torch.stack([p[name] for p in singles])[:, None] for name in singles[0]}  # [K, 1, ...]
    vectors = {name for name, t in stacked.items() if t.dim() == 3}
    stacked = {name: t[:, None] if name in vectors else t for name, t in stacked.items()}
    torch.testing.assert_close(apply(OPS[op], stacked, x, y, SETTINGS), expected)


@pytest.mark.parametrize("op", OPS)
def test_the_output_keeps_the_dtype_of_the_backbone(op: str) -> None:
    site = site_for(op)
    x, y = (t.bfloat16() for t in tensors_for(op, site))
    result = apply(OPS[op], generic(op, site, size_of(op, 2)), x, y, SETTINGS)
    assert result.dtype == torch.bfloat16
    exact = apply(OPS[op], generic(op, site, size_of(op, 2)), x.float(), y.float(), SETTINGS)
    torch.testing.assert_close(result.float(), exact, rtol=0.01, atol=0.01)  # rounded once, at the end


@pytest.mark.parametrize("op", OPS)
def test_parameters_of_the_dtype_of_the_backbone_work_too(op: str) -> None:
    site = site_for(op)
    x, y = (t.bfloat16() for t in tensors_for(op, site))
    params: Tensors = {name: t.bfloat16() for name, t in generic(op, site, size_of(op, 2)).items()}
    assert apply(OPS[op], params, x, y, SETTINGS).dtype == torch.bfloat16


@pytest.mark.parametrize("op", ["lora", "serial", "parallel", "lowrank_adapter", "prefix"])
def test_the_start_depends_on_seed_site_and_op_and_on_nothing_else(op: str) -> None:
    site = site_for(op)
    shapes = OPS[op].shapes(site, 3)
    torch.manual_seed(1)
    first = OPS[op].init(shapes, generator_for(0, site.id, op))
    torch.manual_seed(2)
    again = OPS[op].init(shapes, generator_for(0, site.id, op))
    others = [
        OPS[op].init(shapes, generator_for(1, site.id, op)),
        OPS[op].init(shapes, generator_for(0, "elsewhere", op)),
        OPS[op].init(shapes, generator_for(0, site.id, "another")),
    ]
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in others:
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_initialising_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    for op in OPS:
        initial(op, site_for(op))
    assert torch.equal(before, torch.get_rng_state())
