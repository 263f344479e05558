"""Ops of one kind as one op with a leading dimension: each gives what it gives alone, and gets its own gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from op_cases import SETTINGS, SIZED, generic, initial, site_for, size_of, tensors_for
from peftscout.ops import OPS, apply, prefix
from peftscout.ops.base import Tensors, linear
from peftscout.ops.stacking import stack

CLOSE = {"rtol": 1e-5, "atol": 1e-5}

Sizes = list[int]
"""Of each op; 0 is one that is absent."""


def ops_of(op: str, sizes: Sizes) -> list[dict[str, Tensor] | None]:
    """Ops at generic points that collect gradients."""
    site = site_for(op, 40, 64)
    return [
        {name: t.requires_grad_() for name, t in generic(op, site, size_of(op, size), seed).items()} if size else None
        for seed, size in enumerate(sizes)
    ]


def rows_of(op: str, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """The x and y of each op, ``[rows, tokens, ...]``."""
    x, y = zip(*(tensors_for(op, site_for(op, 40, 64), seed) for seed in range(count)), strict=True)
    return list(x), list(y)


def joined(op: str, x: list[Tensor], y: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The same with a leading dimension, the rows of each op as one long row of tokens."""
    if op == "prefix":  # queries [rows, heads, tokens, size]
        return torch.stack([each.transpose(0, 1).flatten(1, 2) for each in x]), torch.stack(
            [t.flatten(0, 1) for t in y]
        )
    return torch.stack([each.flatten(0, 1) for each in x]), torch.stack([each.flatten(0, 1) for each in y])


def alone(op: str, params: Tensors | None, x: Tensor, y: Tensor) -> Tensor:
    return y if params is None else apply(OPS[op], params, x, y, SETTINGS)


MIXTURES = st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any)


@settings(max_examples=60)
@given(op=st.sampled_from(tuple(OPS)), sizes=MIXTURES)
def test_each_gives_what_it_gives_alone(op: str, sizes: Sizes) -> None:
    several, (x, y) = ops_of(op, sizes), rows_of(op, len(sizes))
    expected = [alone(op, *each) for each in zip(several, x, y, strict=True)]
    found = apply(OPS[op], stack(OPS[op], several), *joined(op, x, y), SETTINGS)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, **CLOSE)


@settings(max_examples=40)
@given(op=st.sampled_from(tuple(OPS)), sizes=MIXTURES)
def test_each_gets_the_gradient_that_it_gets_alone(op: str, sizes: Sizes) -> None:
    several, (x, y) = ops_of(op, sizes), rows_of(op, len(sizes))
    there = [(name, params[name]) for params in several if params is not None for name in params]
    tensors = [tensor for _, tensor in there]
    expected = torch.autograd.grad(
        sum(alone(op, *each).square().sum() for each in zip(several, x, y, strict=True)), tensors
    )
    found = apply(OPS[op], stack(OPS[op], several), *joined(op, x, y), SETTINGS)
    for gradient, other, (name, tensor) in zip(
        torch.autograd.grad(found.square().sum(), tensors), expected, there, strict=True
    ):
        assert gradient.shape == tensor.shape, name
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("op", OPS)
def test_an_absent_op_adds_exactly_nothing_whatever_the_others_are(op: str) -> None:
    several, (x, y) = ops_of(op, [0, 3, 0]), rows_of(op, 3)
    together_x, together_y = joined(op, x, y)
    found = apply(OPS[op], stack(OPS[op], several), together_x, together_y, SETTINGS)
    assert torch.equal(found[0], together_y[0])
    assert torch.equal(found[2], together_y[2])
    assert not torch.allclose(found[1], together_y[1])


@pytest.mark.parametrize("op", OPS)
def test_fresh_ops_of_any_sizes_change_nothing_at_all(op: str) -> None:
    site = site_for(op, 40, 64)
    several = [initial(op, site, size_of(op, size), seed=size) for size in (2, 5, 1)]
    x, y = joined(op, *rows_of(op, 3))
    assert torch.equal(apply(OPS[op], stack(OPS[op], several), x, y, SETTINGS), y)


@pytest.mark.parametrize("op", OPS)
def test_one_that_is_not_a_number_leaves_the_others_alone(op: str) -> None:
    several, (x, y) = ops_of(op, [2, 4, 3]), rows_of(op, 3)
    healthy = apply(OPS[op], stack(OPS[op], several), *joined(op, x, y), SETTINGS)
    with torch.no_grad():
        for tensor in (several[1] or {}).values():
            tensor.fill_(torch.nan)
    ill = apply(OPS[op], stack(OPS[op], several), *joined(op, x, y), SETTINGS)
    assert torch.equal(ill[0], healthy[0])
    assert torch.equal(ill[2], healthy[2])
    assert ill[1].isnan().any()
    ill.sum().backward()
    assert all(t.grad is not None and t.grad.isfinite().all() for n in (0, 2) for t in (several[n] or {}).values())


@pytest.mark.parametrize("op", SIZED)
def test_matrices_get_one_leading_dimension_and_vectors_two(op: str) -> None:
    several = ops_of(op, [1, 3])
    shapes = OPS[op].shapes(site_for(op, 40, 64), 3)
    for name, tensor in stack(OPS[op], several).items():
        if name == "weights":
            assert tuple(tensor.shape) == (2, 1, 1, 3)
        elif len(shapes[name]) == 1:
            assert tuple(tensor.shape) == (2, 1, *shapes[name])
        else:
            assert tuple(tensor.shape) == (2, *shapes[name])


def test_padded_tokens_of_a_prefix_take_no_attention() -> None:
    several, (x, y) = ops_of("prefix", [1, 6]), rows_of("prefix", 2)
    stacked = dict(stack(prefix, several))
    weights = stacked.pop("weights")
    assert weights.flatten(1).tolist() == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    expected = alone("prefix", several[0], x[0], y[0])
    wrong = apply(prefix, stacked, *joined("prefix", x, y), SETTINGS)[0]
    assert not torch.allclose(wrong.reshape(expected.shape), expected, atol=1e-3)


def test_prefixes_of_one_length_need_no_weights() -> None:
    assert "weights" not in stack(prefix, ops_of("prefix", [3, 3]))


def test_what_was_made_in_an_evaluation_serves_training_too() -> None:
    several, (x, y) = ops_of("prefix", [2, 7]), rows_of("prefix", 2)  # lengths that no other test has
    with torch.inference_mode():
        apply(prefix, stack(prefix, several), *joined("prefix", x, y), SETTINGS)
    apply(prefix, stack(prefix, several), *joined("prefix", x, y), SETTINGS).sum().backward()
    assert several[0] is not None
    assert several[0]["keys"].grad is not None


# -- the product behind it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_batched_product_is_as_many_single_ones(with_bias: bool) -> None:
    x, weight = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    bias = torch.randn(3, 1, 4) if with_bias else None
    expected = [linear(x[k], weight[k], None if bias is None else bias[k, 0]) for k in range(3)]
    torch.testing.assert_close(linear(x, weight, bias), torch.stack(expected))


def test_leading_dimensions_that_differ_are_broadcast() -> None:
    x, weight = torch.randn(3, 5, 8), torch.randn(1, 4, 8)
    torch.testing.assert_close(linear(x, weight), linear(x, weight[0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_gives_the_bits_of_the_way_over_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 8).to(dtype), torch.randn(4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), torch.nn.functional.linear(x.to(weight.dtype), weight))


def test_without_autocast_it_computes_in_the_dtype_of_the_weight() -> None:
    assert linear(torch.randn(5, 8).bfloat16(), torch.randn(4, 8)).dtype == torch.float32
