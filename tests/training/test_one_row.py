"""The last block cut down to one row: the same logits and gradients, for less, and no trace after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, FalconConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapted import everything, logits, stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.ops import parallel
from peftscout.plan import Plan
from peftscout.stacked import stacked
from peftscout.training.one_row import last_block, one_row, padding_token, row_index
from peftscout.training.one_row_check import find_one_row
from peftscout.tuner.backbone_state import BackboneState
from pooled_heads import POOLED, both, last_attended, outcome, pooling, ragged
from tiny_models import EOS, PAD, tiny_model

EVERY_OP = ("lora", "bias", "scale", "norm", "serial", "parallel", "prefix", "lowrank_adapter")


def adapted_model(name: str, plan: Plan | None = None, **changes: object) -> tuple[Any, ModelMap]:
    """A stirred model with ``plan`` (everything), in float64: what is equal in it is the same function."""
    model = tiny_model(name, "sequence", **changes)
    model_map = ModelMap.from_model(model)
    return stir(tuner.build(model, plan or everything(model_map), model_map)).double(), model_map


def assert_same(
    plain: tuple[Tensor, dict[str, Tensor]], cut: tuple[Tensor, dict[str, Tensor]], tolerance: float = 1e-12
) -> None:
    assert (plain[0] - cut[0]).abs().max() <= tolerance * plain[0].abs().max()
    assert plain[1].keys() == cut[1].keys()
    largest = max(gradient.abs().max() for gradient in plain[1].values())
    for name, gradient in plain[1].items():
        assert (gradient - cut[1][name]).abs().max() <= tolerance * largest, name


# --- the same function -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", POOLED)
def test_logits_and_gradients_are_the_same_with_every_op_at_every_site(name: str, side: str, attention: str) -> None:
    model, model_map = adapted_model(name, attn_implementation=attention)
    tolerance = 1e-12
    if (attention, side) == ("eager", "left"):  # Llama's softmax in float32 is NaN where a float64 mask hides all keys
        model, tolerance = model.float(), 2e-6
    plain, cut = both(model, model_map, POOLED[name], ragged(side))
    assert_same(plain, cut, tolerance)
    assert len(plain[1]) > 50


@pytest.mark.parametrize("op", EVERY_OP)
@pytest.mark.parametrize("name", ["bert", "gpt2", "qwen3"])
def test_each_op_alone_in_the_last_block_is_the_same(name: str, op: str) -> None:
    model_map = ModelMap.from_model(tiny_model(name, "sequence"))
    placed = everything(model_map, only=(op,)).sizes.items()
    plan = Plan.of({key: size for key, size in placed if model_map.sites[key[0]].layer == 1})
    model, _ = adapted_model(name, plan)
    plain, cut = both(model, model_map, POOLED[name], ragged())
    assert_same(plain, cut)
    assert any(f"peftscout_{op}" in parameter for parameter in plain[1])


@pytest.mark.parametrize("name", POOLED)
def test_in_single_precision_only_rounding_is_left(name: str) -> None:
    model, model_map = adapted_model(name)
    plain, cut = both(model.float(), model_map, POOLED[name], ragged())
    assert_same(plain, cut, 2e-6)


@pytest.mark.parametrize("name", POOLED)
def test_the_bare_model_can_be_cut_too(name: str) -> None:
    model = tiny_model(name, "sequence").double()
    model_map = ModelMap.from_model(model)
    assert_same(*both(model, model_map, POOLED[name], ragged()))


@pytest.mark.parametrize("name", POOLED)
def test_batches_of_any_shape_may_follow_each_other(name: str) -> None:
    model, model_map = adapted_model(name)
    batches = [ragged(), ragged(lengths=(5,)), ragged("left", (2, 12)), ragged(lengths=(1,)), ragged(lengths=(6, 6))]
    expected = [logits(model, batch) for batch in batches]
    with one_row(model, model_map, POOLED[name]):
        found = [logits(model, batch) for batch in batches]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", POOLED)
def test_a_batch_without_a_mask_is_all_text(name: str) -> None:
    model, model_map = adapted_model(name)
    assert_same(*both(model, model_map, POOLED[name], {"input_ids": ragged(lengths=(7, 7))["input_ids"]}))


def test_a_causal_model_that_reads_the_first_position_sees_nothing_after_it() -> None:
    model = pooling(lambda hidden, ids, mask: hidden[:, 0], "llama").double()
    model_map = ModelMap.from_model(model)
    for lengths in ((6, 6), (6, 3)):  # without padding, SDPA gets no mask at all
        assert_same(*both(model, model_map, "first", ragged(lengths=lengths)))


def test_the_last_position_that_is_attended_to_may_hold_a_padding_token() -> None:
    model = pooling(last_attended, "llama").double()
    model_map = ModelMap.from_model(model)
    batch = ragged()
    batch["input_ids"][batch["input_ids"] == EOS] = PAD
    assert_same(*both(model, model_map, "last", batch))
    (expected, _), (wrong, _) = both(model, model_map, "last_not_pad", batch)
    assert not torch.allclose(expected, wrong, atol=1e-3)


def test_every_choice_of_a_question_is_read_at_its_own_row() -> None:
    model = tiny_model("bert", "multiple_choice").double()
    model_map = ModelMap.from_model(model)
    batch = {name: tensor.view(2, 3, -1) for name, tensor in ragged(lengths=(9, 4, 7, 2, 9, 5)).items()}
    plain, cut = both(model, model_map, "first", batch)
    assert plain[0].shape == (2, 3)
    assert_same(plain, cut)


def test_a_block_that_adds_in_place_takes_a_parallel_adapter_on_a_fused_projection() -> None:
    config = FalconConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=PAD)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model_map = ModelMap.from_model(model)
    plan = everything(model_map)
    assert ("layers.1.attention", "parallel") in plan.sizes
    adapted = stir(tuner.build(model, plan, model_map)).double()
    assert_same(*both(adapted, model_map, "last_not_pad", ragged()))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_stack_of_plans_is_cut_as_one(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    plans = [everything(model_map, only=only) for only in (None, ("parallel", "bias"), ("lora", "prefix"))]
    with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
        with torch.no_grad():
            for number, parameter in enumerate(p for p in stack.model.parameters() if p.requires_grad):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        rows = {key: tensor.repeat(3, 1) for key, tensor in ragged().items()}
        plain, cut = both(stack.model, model_map, POOLED[name], rows)
    assert_same(plain, cut, 2e-6)
    assert plain[0].shape == (9, 2)


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_bf16_autocast_stays_as_close_as_bf16_is(name: str) -> None:
    model, model_map = adapted_model(name, attn_implementation="eager")
    model.float()
    exact, _ = outcome(model, ragged())
    with torch.autocast("cpu", torch.bfloat16):
        plain, cut = both(model, model_map, POOLED[name], ragged())
    noise = (plain[0] - exact).abs().max()
    assert 0 < noise < 0.2 * exact.abs().max()
    assert (cut[0] - exact).abs().max() < 2 * noise
    assert plain[1].keys() == cut[1].keys()


def test_dropout_below_the_last_block_draws_the_same_masks() -> None:
    model, model_map = adapted_model("bert", hidden_dropout_prob=0.3)
    model.train()
    for module in model.get_base_model().bert.encoder.layer[-1].modules():
        module.training = False
    plain, cut = both(model, model_map, "first", ragged())
    assert_same(plain, cut)
    assert not torch.equal(plain[0], outcome(model, ragged())[0])


def test_dropout_in_the_last_block_is_allowed_and_the_gradient_reaches_everything() -> None:
    model, model_map = adapted_model("bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    plain, cut = both(model.train(), model_map, "first", ragged())
    assert torch.isfinite(cut[0]).all()
    assert plain[1].keys() == cut[1].keys()


def test_two_forward_passes_may_come_before_their_backward_passes() -> None:
    model, model_map = adapted_model("llama")
    batches = ragged(), ragged("left", (3, 8, 5), seed=1)
    expected = [outcome(model, batch) for batch in batches]
    model.zero_grad()
    with one_row(model, model_map, "last_not_pad"):
        found = [model(**batch).logits for batch in batches]
        sum(logits.logsumexp(-1).sum() for logits in found).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            both_passes = expected[0][1][name] + expected[1][1][name]
            torch.testing.assert_close(parameter.grad, both_passes, rtol=1e-5, atol=1e-6)  # norms compute in float32


def test_gradient_checkpointing_is_refused() -> None:
    model = tiny_model("llama", "sequence")
    model_map = ModelMap.from_model(model)
    model.activation_checkpointing_enable()
    with pytest.raises(TunerError, match="gradient checkpointing"), one_row(model, model_map, "last_not_pad"):
        raise AssertionError
    reading = find_one_row(model, model_map, ragged())
    assert reading.position is None
    assert reading.reason.startswith("TunerError: gradient checkpointing computes blocks again")


# --- for less --------------------------------------------------------------------------------------------------------


def lengths_seen(model: Any, model_map: ModelMap, name: str) -> dict[str, set[int]]:
    """How many positions enter each projection: id of the site -> numbers seen, with one row."""
    seen: dict[str, set[int]] = {}
    handles = []
    for site in model_map.sites.values():
        if site.kind == "linear":
            leaf = model.get_base_model().get_submodule(site.module)
            leaf = getattr(leaf, "base_layer", leaf)

            def note(module: nn.Module, args: tuple[Tensor, ...], site_id: str = site.id) -> None:
                seen.setdefault(site_id, set()).add(args[0].shape[1])

            handles.append(leaf.register_forward_pre_hook(note))
    with one_row(model, model_map, POOLED[name]):
        logits(model, ragged())
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", POOLED)
def test_only_keys_and_values_of_the_last_block_see_more_than_one_row(name: str) -> None:
    model, model_map = adapted_model(name)
    seen = lengths_seen(model, model_map, name)
    whole = {"layers.1.attention.k", "layers.1.attention.v", "layers.1.attention.qkv"}
    assert all(seen[site] == {9} for site in seen if site.startswith("layers.0.") or site in whole)
    assert all(seen[site] == {1} for site in seen if site.startswith("layers.1.") and site not in whole)


@pytest.mark.parametrize("name", POOLED)
def test_the_attention_of_the_last_block_gets_one_query(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, model_map = adapted_model(name)
    queries = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        queries.append(query.shape[2])
        return sdpa(module, query, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
    with one_row(model, model_map, POOLED[name]):
        logits(model, ragged())
    assert queries == [9, 1]


def test_a_parallel_adapter_on_a_fused_projection_computes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, model_map = adapted_model("gpt2")
    rows = []
    delta = parallel.delta

    def spy(params: Any, x: Tensor, y: Tensor, settings: Any) -> Tensor:
        rows.append((x.shape[1], y.shape[1]))
        return delta(params, x, y, settings)

    monkeypatch.setattr(parallel, "delta", spy)
    with one_row(model, model_map, "last_not_pad"):
        logits(model, ragged())
    assert rows == [(9, 9), (9, 9), (1, 1), (1, 1)]  # attention and FFN, block by block


def test_rows_enter_products_contiguous() -> None:
    """torch multiplies a slice of [B, S, H] with a copy of the weight for every text."""
    model, model_map = adapted_model("bert")
    entering = []
    block = model.get_base_model().bert.encoder.layer[-1]
    for module in (block.attention.self.query, block.attention.output.dense, block.intermediate.dense):
        leaf = getattr(module, "base_layer", module)
        leaf.register_forward_pre_hook(lambda module, args: entering.append(args[0].is_contiguous()))
    with one_row(model, model_map, "first"):
        logits(model, ragged())
    assert entering == [True] * 3


# --- no trace --------------------------------------------------------------------------------------------------------


def picture(model: Any) -> tuple[Any, ...]:
    """Whatever a context could leave on a model."""
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    options = {
        name: [len(value) for key, value in sorted(vars(module).items()) if "hooks" in key and value is not None]
        for name, module in model.named_modules()
    }
    state = BackboneState.of(model)
    return attributes, options, state.hooks, state.training, state.requires_grad, model.config._attn_implementation


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", POOLED)
def test_nothing_is_left_on_the_backbone(name: str, attention: str) -> None:
    model = tiny_model(name, "sequence", attn_implementation=attention)
    model_map = ModelMap.from_model(model)
    before, hashed = picture(model), tuner.fingerprint(model)
    expected = logits(model, ragged())
    plan = everything(model_map, only=("lora", "parallel"))  # without a prefix nobody else switches the attention
    adapted = tuner.build(model, plan, model_map)
    with one_row(adapted, model_map, POOLED[name]):
        assert model.config._attn_implementation == f"peftscout_{attention}"
        outcome(adapted, ragged())
    assert model.config._attn_implementation == attention
    tuner.reset(adapted)
    assert picture(model) == before
    assert tuner.fingerprint(model) == hashed
    assert torch.equal(logits(model, ragged()), expected)


def test_nothing_is_left_after_an_error_inside() -> None:
    model = tiny_model("llama", "sequence")
    before = picture(model)
    with pytest.raises(KeyboardInterrupt), one_row(model, ModelMap.from_model(model), "last"):
        raise KeyboardInterrupt
    assert picture(model) == before


def test_an_attention_that_is_ours_already_stays_so() -> None:
    model, model_map = adapted_model("bert")
    assert model.config._attn_implementation == "peftscout_sdpa"
    with one_row(model, model_map, "first"):
        logits(model, ragged())
    assert model.config._attn_implementation == "peftscout_sdpa"


def test_every_position_holds_the_one_row_inside_and_its_own_after() -> None:
    model, model_map = adapted_model("bert")
    backbone = model.get_base_model().bert
    with one_row(model, model_map, "first"):
        inside = backbone(**ragged()).last_hidden_state
    after = backbone(**ragged()).last_hidden_state
    assert inside.shape == after.shape
    assert torch.equal(inside, inside[:, :1].expand_as(inside))
    torch.testing.assert_close(inside[:, 0], after[:, 0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[:, 0], after[:, 1], atol=1e-2)


# --- which row -------------------------------------------------------------------------------------------------------


def test_the_rows_of_a_padded_batch() -> None:
    right, left = ragged(), ragged("left")
    assert row_index("first", right, PAD) is None
    assert row_index("last", right, PAD).tolist() == [8, 3, 6]
    assert row_index("last", left, PAD).tolist() == [8, 8, 8]
    assert row_index("last_not_pad", left, EOS).tolist() == [7, 7, 7]
    assert row_index("last_not_pad", right, EOS).tolist() == [7, 8, 8]  # as transformers: any token but this one
    assert row_index("last", {"input_ids": right["input_ids"]}, PAD).tolist() == [8, 8, 8]


def test_a_batch_that_does_not_tell_its_last_position_is_refused() -> None:
    with pytest.raises(TunerError, match="a batch of inputs_embeds does not tell its last position"):
        row_index("last", {"inputs_embeds": torch.zeros(1, 2, 3)}, PAD)
    with pytest.raises(TunerError, match="no keywords does not tell its last_not_pad position"):
        row_index("last_not_pad", {}, PAD)
    model = tiny_model("llama", "sequence")
    with one_row(model, ModelMap.from_model(model), "last"), pytest.raises(TunerError, match="no keywords"):
        model(ragged()["input_ids"])


def test_the_last_block_is_that_of_the_only_stack() -> None:
    assert last_block(ModelMap.from_model(tiny_model("gpt2"))) == (1, "h.1")
    t5 = ModelMap.from_model(tiny_model("t5"))
    with pytest.raises(TunerError, match=r"2 stacks of blocks \(encoder, decoder\), not one"):
        last_block(t5)
    with pytest.raises(TunerError, match="2 stacks"), one_row(tiny_model("t5"), t5, "first"):
        raise AssertionError


def test_the_padding_token_is_that_of_the_config() -> None:
    assert padding_token(tiny_model("llama")) == PAD
    assert padding_token(tiny_model("llama", pad_token_id=None)) is None
