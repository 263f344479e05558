"""Several adapters at work at once: `add`, random streams, heads and dropouts by slot, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapted import batch_of, logits
from peftscout import tuner
from peftscout.errors import PlanError, TunerError
from peftscout.ops import OpSettings
from peftscout.plan import Plan
from peftscout.tuner import building
from peftscout.tuner import layer as layers
from peftscout.tuner.building import add, wrappers
from peftscout.tuner.slots import TOGETHER, Slots, Stream
from stacks import FAMILIES, assert_near, assert_same, mixture, prepared, stir, together

CPU = torch.device("cpu")


@contextmanager
def two(family: str, **changes: object) -> Iterator[Any]:
    """A model with two adapters, ``first`` (active) and ``second``, at generic points."""
    model, model_map = prepared(family, **changes)
    adapted = tuner.build(model, mixture(model_map, 0), model_map, seed=0, adapter_name="first")
    add(adapted, mixture(model_map, 1), model_map, seed=1, adapter_name="second")
    for n, name in enumerate(("first", "second")):
        stir(tuner.parameters_by_op(adapted, name), seed=n)
    adapted.eval()
    try:
        yield adapted
    finally:
        tuner.reset(adapted)


def streams() -> list[Stream]:
    return [Stream(3, CPU), Stream(4, CPU)]


# -- add --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "roberta"])
def test_an_added_adapter_starts_from_what_the_builder_gives_it(family: str) -> None:
    model, model_map = prepared(family)
    first, second = mixture(model_map, 0), mixture(model_map, 1)
    expected = tuner.trainable_state(tuner.build(model, second, model_map, seed=1, adapter_name="second"))
    model, model_map = prepared(family)
    adapted = tuner.build(model, first, model_map, seed=0, adapter_name="first")
    before = tuner.trainable_state(adapted)
    add(adapted, second, model_map, seed=1, adapter_name="second")
    assert_same(tuner.trainable_state(adapted, "second"), expected)
    assert_same(tuner.trainable_state(adapted), before)
    assert adapted.active_adapters == ["first"]
    assert all(p.requires_grad for group in tuner.parameters_by_op(adapted, "second").values() for p in group)


def test_an_added_adapter_is_active_once_it_is_set() -> None:
    with two("bert") as adapted:
        outputs = {}
        for name in ("first", "second", "first"):
            adapted.set_adapter(name)
            outputs.setdefault(name, []).append(logits(adapted, batch_of()))
        assert torch.equal(*outputs["first"])
        assert not torch.allclose(outputs["first"][0], outputs["second"][0], atol=1e-3)


def test_a_name_that_is_taken_is_refused() -> None:
    model, model_map = prepared("bert")
    adapted = tuner.build(model, Plan(), model_map, adapter_name="first")
    with pytest.raises(TunerError, match="already is an adapter 'first'"):
        add(adapted, Plan(), model_map, adapter_name="first")


def test_a_plan_that_does_not_fit_is_refused_before_the_model_is_touched() -> None:
    model, model_map = prepared("bert")
    adapted = tuner.build(model, mixture(model_map, 0), model_map, adapter_name="first")
    names = dict(adapted.named_parameters()).keys()
    with pytest.raises(PlanError, match="no such site"):
        add(adapted, Plan.of({("layers.9.attention.q", "lora"): 1}), model_map, adapter_name="second")
    assert dict(adapted.named_parameters()).keys() == names


@pytest.mark.parametrize("where", ["_initialise_heads", "generator_for"])
def test_an_adapter_that_cannot_be_added_leaves_the_others_as_they_were(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, model_map = prepared("bert")
    adapted = tuner.build(model, mixture(model_map, 0), model_map, adapter_name="first")
    stir(tuner.parameters_by_op(adapted))
    before, expected = tuner.trainable_state(adapted), logits(adapted, batch_of())

    def fails(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(building if where == "_initialise_heads" else layers, where, fails)
    with pytest.raises(MemoryError):
        add(adapted, mixture(model_map, 1, 0.8), model_map, adapter_name="second")
    assert list(adapted.peft_config) == ["first"]
    assert not any("second" in name for name, _ in adapted.named_parameters())
    assert_same(tuner.trainable_state(adapted), before)
    assert torch.equal(logits(adapted, batch_of()), expected)


def test_settings_of_an_added_adapter_are_its_own() -> None:
    model, model_map = prepared("bert")
    plan = Plan.of({("layers.0.attention.q", "lora"): 2})
    adapted = tuner.build(model, plan, model_map, adapter_name="first")
    add(adapted, plan, model_map, settings=OpSettings(lora_scale=5.0), adapter_name="second")
    (_, layer), *_ = wrappers(adapted)
    assert (layer.settings["first"].lora_scale, layer.settings["second"].lora_scale) == (1.0, 5.0)


# -- streams ----------------------------------------------------------------------------------------------------------


def test_a_stream_goes_on_where_it_was_left_and_leaves_the_outer_one_alone() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = torch.rand(6)
        torch.manual_seed(11)
        outer = torch.rand(4)
        torch.manual_seed(11)
        stream, found, between = Stream(3, CPU), [], []
        for _ in range(2):
            with stream:
                found.append(torch.rand(3))
            between.append(torch.rand(2))
    assert torch.equal(torch.cat(found), expected)
    assert torch.equal(torch.cat(between), outer)


def test_what_fails_inside_a_stream_puts_the_outer_one_back() -> None:
    outer = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="negative"), Stream(0, CPU):
        torch.rand(2, -1)
    assert torch.equal(torch.get_rng_state(), outer)


# -- slots ------------------------------------------------------------------------------------------------------------


def test_rows_go_to_the_adapters_in_the_order_in_which_they_are_installed() -> None:
    with two("bert") as adapted, closing(Slots(adapted)) as slots:
        expected = {}
        for name in ("first", "second"):
            adapted.set_adapter(name)
            expected[name] = logits(adapted, batch_of())
        for order in (("first", "second"), ("second", "first"), ("second", "second", "first")):
            slots.install(order, [Stream(0, CPU) for _ in order])
            found = logits(adapted, together([batch_of()] * len(order)))
            assert_near(found.chunk(len(order)), [expected[name] for name in order], 1e-5)


def test_suspended_the_active_adapter_computes_all_rows() -> None:
    with two("llama") as adapted:
        expected = logits(adapted, batch_of())
        with closing(Slots(adapted)) as slots:
            slots.install(("first", "second"), streams())
            slots.suspend()
            adapted.set_adapter("first")
            assert torch.equal(logits(adapted, batch_of()), expected)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_every_slot_draws_its_masks_from_its_own_stream(family: str) -> None:
    with two(family, classifier_dropout=0.5) as adapted, closing(Slots(adapted)) as slots:
        base = adapted.get_base_model()
        adapted.train()
        getattr(base, base.base_model_prefix).eval()
        batch = batch_of()
        expected = []
        for seed, name in ((3, "first"), (4, "second")):
            adapted.set_adapter(name)
            with Stream(seed, CPU):
                expected += [logits(adapted, batch) for _ in range(2)]
        slots.install(("first", "second"), streams())
        outer = torch.get_rng_state()
        found = [out.chunk(2) for out in (logits(adapted, together([batch, batch])) for _ in range(2))]
        assert torch.equal(torch.get_rng_state(), outer)
        assert_near([found[0][0], found[1][0], found[0][1], found[1][1]], expected, 1e-5)
        assert not torch.allclose(found[0][0], found[1][0])


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_whoever_wraps_a_head_for_a_while_wraps_that_of_all_slots(family: str) -> None:
    with two(family) as adapted, closing(Slots(adapted)) as slots:
        slots.install(("first", "second"), streams())
        batch = together([batch_of()] * 2)
        plain, head = logits(adapted, batch), adapted.get_base_model().classifier
        for _ in range(2):
            forward = head.forward
            head.forward = lambda x, forward=forward: 2 * forward(x)
            assert torch.equal(logits(adapted, batch), 2 * plain)
            del head.forward
            assert torch.equal(logits(adapted, batch), plain)


def test_heads_of_all_slots_add_no_tensors() -> None:
    with two("bert") as adapted:
        names = [name for name, _ in adapted.named_parameters()]
        with closing(Slots(adapted)):
            assert [name for name, _ in adapted.named_parameters()] == names


def test_closed_nothing_of_them_is_left() -> None:
    with two("bert", classifier_dropout=0.5) as adapted:
        expected, base = logits(adapted, batch_of()), adapted.get_base_model()
        slots = Slots(adapted)
        slots.install(("first", "second"), streams())
        assert "forward" in vars(base.dropout)
        slots.close()
        assert "forward" not in vars(base.dropout)
        assert TOGETHER not in base.classifier.modules_to_save
        assert all(layer.stacked is None for _, layer in wrappers(adapted))
        adapted.set_adapter("first")
        assert torch.equal(logits(adapted, batch_of()), expected)
        assert not adapted._forward_pre_hooks


@pytest.mark.parametrize("given", ["positional", "keyword"])
def test_rows_that_cannot_be_shared_are_refused_before_the_pass(given: str) -> None:
    with two("bert") as adapted, closing(Slots(adapted)) as slots:
        slots.install(("first", "second"), streams())
        batch = batch_of(rows=3)
        entered: list[Tensor] = []
        embeddings = adapted.get_base_model().get_submodule("bert.embeddings")
        hook = embeddings.register_forward_hook(lambda *_: entered.append(torch.empty(0)))
        with pytest.raises(TunerError, match="3 rows cannot be shared by 2 slots"):
            adapted(batch["input_ids"]) if given == "positional" else adapted(**batch)
        hook.remove()
        assert not entered


def test_dropout_inside_the_backbone_is_not_touched() -> None:
    with two("bert", hidden_dropout_prob=0.1) as adapted, closing(Slots(adapted)):
        inside = [m for m in adapted.get_base_model().bert.modules() if isinstance(m, nn.Dropout)]
        assert inside
        assert not any("forward" in vars(module) for module in inside)
