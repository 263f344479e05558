"""`check_built` and `check_gradients` find what went wrong, name it, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapted import batch_of, everything, labelled, logits, stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.plan import Plan
from peftscout.tuner.layer import PeftscoutLayer
from tiny_models import tiny_model


def adapted_bert(only: tuple[str, ...] | None = None) -> tuple[PeftModel, Plan]:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=only)
    return tuner.build(model, plan, model_map), plan


def first_layer(model: nn.Module) -> PeftscoutLayer:
    return next(m for m in model.modules() if isinstance(m, PeftscoutLayer))


def test_a_missing_placement_is_named() -> None:
    adapted, plan = adapted_bert()
    more = Plan.of({**plan.sizes, ("layers.0.attention.q", "lora"): plan.sizes["layers.0.attention.q", "lora"] + 1})
    with pytest.raises(TunerError, match=r"layers\.0\.attention\.q: lora of size 3 was asked for, 2 was built"):
        tuner.check_built(adapted, more)


def test_a_placement_too_many_is_named() -> None:
    adapted, plan = adapted_bert()
    fewer = Plan.of({key: size for key, size in plan.sizes.items() if key != ("layers.1.ffn", "parallel")})
    with pytest.raises(TunerError, match=r"layers\.1\.ffn: parallel of size 0 was asked for"):
        tuner.check_built(adapted, fewer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: setattr(m.get_base_model().bert.pooler.dense.weight, "requires_grad", True),
            "pooler.*backbone would",
        ),
        (
            lambda m: next(iter(first_layer(m).parameters_of("default", "lora").values())).requires_grad_(False),
            "trains",
        ),
    ],
)
def test_wrong_flags_are_found(change: Callable[[PeftModel], Any], message: str) -> None:
    adapted, plan = adapted_bert()
    change(adapted)
    with pytest.raises(TunerError, match=message):
        tuner.check_built(adapted, plan)


def test_a_wrapper_at_the_wrong_place_is_found() -> None:
    adapted, plan = adapted_bert()
    layer = adapted.get_base_model().bert.encoder.layer
    layer[0].attention.self.query, layer[1].attention.self.query = (
        layer[1].attention.self.query,
        layer[0].attention.self.query,
    )
    with pytest.raises(TunerError, match=r"sits at bert\.encoder\.layer\.0.* instead of bert\.encoder\.layer\.1"):
        tuner.check_built(adapted, plan)


def test_the_gradient_check_changes_nothing() -> None:
    adapted, plan = adapted_bert()
    adapted.train()
    batch = labelled(batch_of())
    adapted(**batch).loss.backward()
    state = tuner.trainable_state(adapted)
    grads = {key: p.grad for key, p in adapted.named_parameters()}
    modes = [m.training for m in adapted.modules()]
    outputs, random = logits(adapted, batch), torch.get_rng_state()
    tuner.check_gradients(adapted, plan, batch)
    after = tuner.trainable_state(adapted)
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert all(p.grad is grads[key] for key, p in adapted.named_parameters())
    assert [m.training for m in adapted.modules()] == modes
    assert torch.equal(logits(adapted, batch), outputs)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_gradient_check_passes_on_a_trained_model_and_without_labels() -> None:
    adapted, plan = adapted_bert()
    tuner.check_gradients(stir(adapted), plan, batch_of())


def test_the_gradient_check_works_inside_no_grad() -> None:
    adapted, plan = adapted_bert()
    with torch.no_grad():
        tuner.check_gradients(adapted, plan, batch_of())


def test_a_unit_that_is_off_for_the_whole_batch_is_no_fault_of_its_place() -> None:
    adapted, plan = adapted_bert(only=("serial", "parallel"))
    with torch.no_grad():
        for key, p in adapted.named_parameters():
            if key.endswith(("serial_d.default", "parallel_d.default")):
                p.fill_(-100.0)
    tuner.check_gradients(adapted, plan, batch_of())


def test_a_prefix_that_the_attention_ignores_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As T5's in some versions of transformers, which did not go through the attention interface."""
    adapted, plan = adapted_bert(only=("prefix",))
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "peftscout_sdpa", plain)
    with pytest.raises(
        TunerError, match=r"layers\.0\.attention: prefix: no gradient reaches keys.*silently inert.*transformers 5\."
    ):
        tuner.check_gradients(adapted, plan, batch_of())


def test_a_detached_place_is_named() -> None:
    adapted, plan = adapted_bert(only=("lora",))

    def cut(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.detach()

    hook = adapted.get_base_model().bert.encoder.layer[1].intermediate.dense.register_forward_hook(cut)
    with pytest.raises(TunerError, match=r"layers\.\d\.[a-z.]*: lora: no gradient reaches A"):
        tuner.check_gradients(adapted, plan, batch_of())
    hook.remove()
    tuner.check_gradients(adapted, plan, batch_of())


def test_a_failed_gradient_check_leaves_no_trace_either(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, plan = adapted_bert(only=("prefix",))
    state = tuner.trainable_state(adapted)
    monkeypatch.setitem(AttentionInterface._global_mapping, "peftscout_sdpa", ALL_ATTENTION_FUNCTIONS["sdpa"])
    with pytest.raises(TunerError):
        tuner.check_gradients(adapted, plan, batch_of())
    after = tuner.trainable_state(adapted)
    assert all(torch.equal(state[key], after[key]) for key in state)
    assert all(p.grad is None for p in adapted.parameters())


def test_a_bias_on_the_keys_passes_though_softmax_does_not_feel_it() -> None:
    adapted, plan = adapted_bert(only=("bias",))
    assert ("layers.0.attention.k", "bias") in plan.sizes
    tuner.check_gradients(adapted, plan, batch_of())


def test_a_snapshot_brings_the_best_state_back() -> None:
    adapted, _ = adapted_bert()
    batch = batch_of()
    stir(adapted)
    best, expected = tuner.trainable_state(adapted), logits(adapted, batch)
    stir(adapted, seed=1)
    assert not torch.allclose(logits(adapted, batch), expected, atol=1e-3)
    tuner.load_trainable_state(adapted, best)
    assert torch.equal(logits(adapted, batch), expected)
    assert any("classifier" in key for key in best)


def test_a_snapshot_of_another_plan_is_refused_and_nothing_is_written() -> None:
    adapted, _ = adapted_bert()
    other, _ = adapted_bert(only=("lora",))
    before = tuner.trainable_state(other)
    with pytest.raises(TunerError, match="is in only one of the state and the model"):
        tuner.load_trainable_state(other, tuner.trainable_state(adapted))
    wrong = {key: torch.ones(1) for key in before}
    with pytest.raises(TunerError, match=r"\(1,\) in the state"):
        tuner.load_trainable_state(other, wrong)
    assert all(torch.equal(before[key], value) for key, value in tuner.trainable_state(other).items())


def test_parameters_are_grouped_by_op_in_canonical_order_with_the_head_last() -> None:
    adapted, plan = adapted_bert()
    groups = tuner.parameters_by_op(adapted)
    assert tuple(groups) == (*plan.ops, "head")
    grouped = [id(p) for group in groups.values() for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in adapted.parameters() if p.requires_grad}
