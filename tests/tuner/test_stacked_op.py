"""The ops of one leaf for several slots: one product or one by one, and when which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from op_cases import SETTINGS, SIZED, generic, site_for, size_of
from peftscout.cost import SIZELESS
from peftscout.errors import TunerError
from peftscout.ops import OPS, apply
from peftscout.tuner.config import HostedOp
from peftscout.tuner.stacked_op import READ_OUTPUT, Stacked, StackedOp

ROWS, TOKENS, HEADS, HEAD = 2, 5, 4, 3
ON_OUTPUT = tuple(op for op in OPS if op != "prefix")


def stacked_op(op: str, sizes: list[int]) -> StackedOp:
    """The op at one site, of a size in each slot; 0 where a slot lacks it."""
    site = site_for(op, 40, 64)
    hosted = tuple(HostedOp(site, op, size_of(op, size)) if size else None for size in sizes)
    tensors = tuple(generic(op, site, size_of(op, size), seed) if size else None for seed, size in enumerate(sizes))
    return StackedOp(hosted, tensors, SETTINGS)


def rows(slots: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(slots * ROWS, TOKENS, width, generator=torch.Generator().manual_seed(seed))


def queries_and_output(slots: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(slots * ROWS, HEADS, TOKENS, HEAD, generator=generator)
    return queries, torch.randn(slots * ROWS, TOKENS, HEADS, HEAD, generator=generator)


def alone(op: StackedOp, slot: int, x: Tensor, y: Tensor) -> Tensor:
    """What a slot computes by itself on its own rows."""
    params = op.tensors[slot]
    return y if params is None else apply(OPS[op.first.op], params, x, y, SETTINGS)


SIZES = st.lists(st.integers(0, 6), min_size=2, max_size=5).filter(any)


@settings(max_examples=40)
@given(op=st.sampled_from(ON_OUTPUT), sizes=SIZES, padded=st.booleans())
def test_each_slot_computes_on_its_rows_what_it_computes_alone(op: str, sizes: list[int], padded: bool) -> None:
    stack = stacked_op(op, sizes)
    x, y = rows(len(sizes), 40), rows(len(sizes), 64, seed=1)
    source = y if op in READ_OUTPUT else x
    parts = source.chunk(len(sizes)), y.chunk(len(sizes))
    found = stack.together(source, y) if padded else torch.cat(stack.one_by_one(*parts))
    expected = [alone(stack, k, *own) for k, own in enumerate(zip(*parts, strict=True))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-4)


@settings(max_examples=20)
@given(sizes=SIZES, padded=st.booleans())
def test_each_slot_attends_to_its_own_prefix(sizes: list[int], padded: bool) -> None:
    stack, (x, y) = stacked_op("prefix", sizes), queries_and_output(len(sizes))
    parts = x.chunk(len(sizes)), y.chunk(len(sizes))
    found = stack.together(x, y) if padded else torch.cat(stack.one_by_one(*parts))
    expected = [alone(stack, k, *own) for k, own in enumerate(zip(*parts, strict=True))]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-5, atol=1e-4)


@settings(max_examples=20)
@given(mixtures=st.dictionaries(st.sampled_from(ON_OUTPUT), st.lists(st.integers(0, 4), min_size=3, max_size=3)))
def test_a_leaf_applies_its_ops_in_their_order(mixtures: dict[str, list[int]]) -> None:
    ops = [stacked_op(op, mixtures[op]) for op in ON_OUTPUT if any(mixtures.get(op, ()))]
    x, y, entered = rows(3, 40), rows(3, 64, seed=1), rows(3, 40, seed=2)
    expected = []
    for k, (own_x, own_y, own_entered) in enumerate(zip(x.chunk(3), y.chunk(3), entered.chunk(3), strict=True)):
        for op in ops:
            own_y = alone(op, k, own_entered if op.first.op == "parallel" else own_x, own_y)
        expected.append(own_y)
    found = Stacked(ops, 3).forward(x, y, entered)
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("op", ON_OUTPUT)
def test_a_stack_of_one_computes_the_bits_of_the_op_itself(op: str) -> None:
    stack = stacked_op(op, [3])
    x, y = rows(1, 40), rows(1, 64, seed=1)
    assert torch.equal(Stacked([stack], 1).forward(x, y, x), alone(stack, 0, x, y))


def test_tokens_without_a_batch_dimension_are_shared_alike() -> None:
    stack = stacked_op("lora", [2, 4])
    x, y = rows(2, 40), rows(2, 64, seed=1)
    flat = Stacked([stack], 2).forward(x.flatten(0, 1), y.flatten(0, 1), None)
    torch.testing.assert_close(flat.view(y.shape), Stacked([stack], 2).forward(x, y, None), rtol=1e-5, atol=1e-5)


def test_without_ops_the_output_is_handed_on_as_it_is() -> None:
    y = rows(3, 64)
    assert Stacked([], 2).forward(rows(3, 40), y, None) is y
    assert Stacked([stacked_op("lora", [1, 1])], 2).attend_to_prefix(y, y) is y


def test_a_prefix_is_not_applied_to_the_output_of_its_leaf() -> None:
    y = rows(2, 64)
    assert Stacked([stacked_op("prefix", [2, 2])], 2).forward(rows(2, 40), y, None) is y


def test_rows_that_are_no_multiple_of_the_slots_are_refused_with_the_place() -> None:
    with pytest.raises(TunerError, match=r"layers.0.here: lora: 6 rows in model.layers.0.here .* 4 slots"):
        Stacked([stacked_op("lora", [1, 1, 1, 1])], 4).forward(rows(3, 40), rows(3, 64), None)


def test_a_parallel_adapter_whose_sublayer_was_not_entered_is_refused_with_the_place() -> None:
    with pytest.raises(TunerError, match=r"layers.0.here: parallel: nothing went through model.layers.0.q before"):
        Stacked([stacked_op("parallel", [1, 2])], 2).forward(rows(2, 40), rows(2, 64), None)


# -- one product or one by one ----------------------------------------------------------------------------------------


@given(op=st.sampled_from(tuple(OPS)), size=st.integers(1, 40), slots=st.integers(2, 64), tokens=st.integers(1, 10**6))
def test_ops_of_one_size_in_every_slot_are_one_product(op: str, size: int, slots: int, tokens: int) -> None:
    hosted = (HostedOp(site_for(op, 40, 64), op, size_of(op, size)),) * slots
    for device in ("cpu", "cuda", "mps"):
        assert StackedOp(hosted, (None,) * slots, SETTINGS).is_worth_padding(tokens, device)


@given(op=st.sampled_from(tuple(OPS)), size=st.integers(1, 40), tokens=st.integers(1, 10**6))
def test_an_op_of_a_single_slot_is_not_padded_for_the_others(op: str, size: int, tokens: int) -> None:
    assert not stacked_op(op, [0, size, 0]).is_worth_padding(tokens, "cpu")


@given(sizes=SIZES, tokens=st.integers(1, 10**5), device=st.sampled_from(["cpu", "cuda"]))
def test_padding_that_is_not_worth_it_is_not_at_more_tokens_either(sizes: list[int], tokens: int, device: str) -> None:
    op = stacked_op("serial", sizes)
    assert op.is_worth_padding(tokens, device) or not op.is_worth_padding(2 * tokens, device)


@pytest.mark.parametrize("op", SIZED)
def test_one_wide_op_among_narrow_ones_is_padded_at_few_tokens_only(op: str) -> None:
    mixed = stacked_op(op, [1, 1, 1, 64])
    assert mixed.is_worth_padding(16, "cpu")
    assert not mixed.is_worth_padding(16_000, "cpu")


def test_an_accelerator_pads_what_a_cpu_computes_one_by_one() -> None:
    mixed = stacked_op("lora", [1, 1, 1, 64])
    assert not mixed.is_worth_padding(16_000, "cpu")
    assert mixed.is_worth_padding(16_000, "cuda")


@pytest.mark.parametrize("op", sorted(SIZELESS))
def test_an_op_without_a_size_that_few_slots_hold_is_computed_for_those(op: str) -> None:
    assert stacked_op(op, [1] * 8).is_worth_padding(10_000, "cpu")
    assert not stacked_op(op, [1, 1, 0, 0, 0, 0, 0, 0]).is_worth_padding(10_000, "cpu")


@pytest.mark.parametrize(("tokens", "products"), [(16, 1), (100_000, 3)])
def test_the_leaf_goes_by_the_tokens_that_arrive(tokens: int, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: object) -> Tensor:
        calls.append(args)
        return apply(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("peftscout.tuner.stacked_op.apply", counted)
    x, y = torch.zeros(3, tokens, 40), torch.zeros(3, tokens, 64)
    Stacked([stacked_op("lora", [1, 2, 20])], 3).forward(x, y, None)
    assert len(calls) == products
