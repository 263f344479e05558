from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from adapted import stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.training.activation_cache import ActivationCache
from peftscout.training.activation_file import Entry
from peftscout.training.activation_key import sequence_lengths
from peftscout.training.batches import BatchMaker
from peftscout.training.device import Device
from peftscout.training.entrance_check import find_entrance
from peftscout.training.frozen_prefix import (
    Entrance,
    FrozenPrefix,
    entered_at,
    frozen_prefix,
    prefix_activations,
    run_prefix,
)
from prefix_cases import LAYERS, LEFT_PADDED, ONE_STACK, deep_model, padded, prefix_of, ragged_rows, tuned_from
from tiny_models import PAD, tiny_model

KEY = "0" * 64
DEPTHS = range(1, LAYERS + 1)
SIDES = [(name, "right") for name in ONE_STACK] + [(name, "left") for name in LEFT_PADDED]


# --- which blocks are frozen -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert_map() -> ModelMap:
    return ModelMap.from_model(deep_model("bert"))


@pytest.mark.parametrize("depth", [1, 2])
def test_the_prefix_are_the_blocks_below_the_lowest_tuned_one(bert_map: ModelMap, depth: int) -> None:
    plan = Plan.of({("layers.2.ffn.down", "lora"): 2, (f"layers.{depth}.attention.q", "lora"): 1})
    prefix = frozen_prefix(plan, bert_map)
    assert prefix == FrozenPrefix("layers", bert_map.blocks["layers"][:depth])
    assert prefix.depth == depth


def test_a_plan_for_the_first_block_leaves_no_prefix(bert_map: ModelMap) -> None:
    plan = Plan.of({("layers.0.ffn.down", "bias"): 1, ("layers.2.ffn.down", "bias"): 1})
    assert frozen_prefix(plan, bert_map) is None


def test_an_empty_plan_freezes_every_block(bert_map: ModelMap) -> None:
    prefix = frozen_prefix(Plan.of({}), bert_map)
    assert prefix is not None
    assert prefix.blocks == bert_map.blocks["layers"]


def test_the_final_norm_lies_above_the_last_block() -> None:
    model_map = ModelMap.from_model(deep_model("llama"))
    norm = next(site.id for site in model_map.sites.values() if site.layer is None)
    prefix = frozen_prefix(Plan.of({(norm, "norm"): 1}), model_map)
    assert prefix is not None
    assert prefix.depth == LAYERS


def test_of_an_encoder_and_a_decoder_the_prefix_is_the_encoders() -> None:
    model_map = ModelMap.from_model(deep_model("t5"))
    for plan, depth in (
        ({("decoder.0.attention.q", "lora"): 1}, 3),
        ({("decoder.0.attention.q", "lora"): 1, ("encoder.2.attention.q", "lora"): 1}, 2),
    ):
        prefix = frozen_prefix(Plan.of(plan), model_map)
        assert prefix is not None
        assert (prefix.stack, prefix.depth) == ("encoder", depth)
    assert frozen_prefix(Plan.of({("encoder.0.attention.q", "lora"): 1}), model_map) is None


def test_stacks_of_other_names_have_no_prefix(bert_map: ModelMap) -> None:
    blocks = {"text": ("text.0", "text.1"), "vision": ("vision.0",)}
    assert frozen_prefix(Plan.of({}), SimpleNamespace(blocks=blocks, sites={})) is None  # type: ignore[arg-type]


# --- what leaves the prefix ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_STACK)
def test_the_prefix_gives_the_models_own_hidden_states(name: str) -> None:
    model = deep_model(name)
    batch = padded(ragged_rows())
    hidden = model(**batch, output_hidden_states=True).hidden_states
    for depth in range(1, LAYERS):  # the last of them is taken after the final norm
        found = run_prefix(model, prefix_of(ModelMap.from_model(model), depth), batch)
        assert torch.equal(found, hidden[depth])
        assert not found.requires_grad


def test_the_blocks_above_the_prefix_do_not_run() -> None:
    model = deep_model("bert")
    model_map = ModelMap.from_model(model)
    model.get_submodule(model_map.blocks["layers"][1]).forward = None  # would fail when called
    assert run_prefix(model, prefix_of(model_map, 1), padded(ragged_rows())).shape == (6, 12, 32)


def test_the_prefix_runs_without_dropout_and_leaves_every_mode_as_it_was() -> None:
    model = deep_model("bert", hidden_dropout_prob=0.5)
    model_map = ModelMap.from_model(model)
    batch = padded(ragged_rows())
    quiet = run_prefix(model, prefix_of(model_map, 2), batch)
    model.train()
    model.bert.embeddings.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    assert torch.equal(run_prefix(model, prefix_of(model_map, 2), batch), quiet)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_the_prefix_of_an_adapted_model_is_that_of_the_bare_one() -> None:
    model = deep_model("gpt2")
    model_map = ModelMap.from_model(model)
    batch = padded(ragged_rows())
    bare = run_prefix(model, prefix_of(model_map, 2), batch)
    adapted = stir(tuner.build(model, tuned_from(model_map, 2), model_map))
    assert torch.equal(run_prefix(adapted, prefix_of(model_map, 2), batch), bare)


def test_a_pass_that_misses_the_prefix_is_an_error() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)

        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    with pytest.raises(RuntimeError, match="unused: the forward pass did not come through it"):
        run_prefix(Detour(), FrozenPrefix("layers", ("unused",)), {"input_ids": torch.zeros(1, 1)})


# --- the same losses and gradients -----------------------------------------------------------------------------------


def loss_and_gradients(model: PeftModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**batch, labels=torch.arange(len(batch["input_ids"])) % 2).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return loss.detach(), gradients


def stored(model: Any, prefix: FrozenPrefix, folder: Path, side: str = "right", **how: Any) -> Entry:
    """The rows' activations through the disk, computed in batches of two: in other company than in the test's batch."""
    rows = ragged_rows()
    maker = BatchMaker(PAD, side, regression=False)
    batches = prefix_activations(model, prefix, rows, maker, Device(), batch_size=2)
    entry = ActivationCache(folder, 10**7).build(
        KEY, sequence_lengths(rows), batches, left_padded=side == "left", **how
    )
    assert isinstance(entry, Entry), entry
    return entry


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert expected
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("name", "side"), SIDES)
def test_losses_and_gradients_are_those_of_the_plain_pass(name: str, side: str, depth: int, tmp_path: Path) -> None:
    model = deep_model(name)
    model_map = ModelMap.from_model(model)
    plan = tuned_from(model_map, depth)
    prefix = frozen_prefix(plan, model_map)
    assert prefix is not None
    assert prefix.depth == depth
    batch = padded(ragged_rows(), side, extra=3)
    entrance = find_entrance(model, prefix, batch)
    assert isinstance(entrance, Entrance), entrance
    exact = stored(model, prefix, tmp_path / "exact", side)
    short = stored(model, prefix, tmp_path / "short", side, store_as=torch.float16)
    adapted = stir(tuner.build(model, plan, model_map)).train()
    loss, gradients = loss_and_gradients(adapted, batch)
    for entry, of_loss, of_gradients in ((exact, 1e-6, 1e-5), (short, 1e-3, 1e-3)):
        hidden = entry.batch(range(6), batch["input_ids"].shape[1], left_padded=side == "left")
        assert hidden.dtype == torch.float32
        with entered_at(adapted, entrance, hidden):
            found, found_gradients = loss_and_gradients(adapted, batch)
        assert abs(found - loss) <= of_loss * max(1.0, abs(float(loss)))
        assert_close(found_gradients, gradients, of_gradients)


def test_the_whole_encoder_is_the_prefix_of_a_plan_for_the_decoder(tmp_path: Path) -> None:
    model = deep_model("t5")
    model_map = ModelMap.from_model(model)
    sites = model_map.sites
    plan = Plan.of({k: v for k, v in tuned_from(model_map, 0).sizes.items() if sites[k[0]].stack == "decoder"})
    prefix = frozen_prefix(plan, model_map)
    assert prefix is not None
    assert prefix.depth == LAYERS
    batch = padded(ragged_rows(), extra=2)
    entrance = find_entrance(model, prefix, batch)
    assert entrance == Entrance(prefix, items=3)
    entry = stored(model, prefix, tmp_path)
    adapted = stir(tuner.build(model, plan, model_map)).train()
    loss, gradients = loss_and_gradients(adapted, batch)
    with entered_at(adapted, entrance, entry.batch(range(6), 14)):
        found, found_gradients = loss_and_gradients(adapted, batch)
    assert abs(found - loss) <= 1e-6
    assert_close(found_gradients, gradients, 1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ONE_STACK)
def test_in_bf16_the_same_company_gives_the_same_bits(name: str, attention: str) -> None:
    model = deep_model(name)
    model.set_attn_implementation(attention)
    prefix = prefix_of(ModelMap.from_model(model), 2)
    batch = padded(ragged_rows(), extra=1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        entrance = find_entrance(model, prefix, batch)
        assert isinstance(entrance, Entrance), entrance
        hidden = run_prefix(model, prefix, batch) * batch["attention_mask"][..., None]
        plain = model(**batch).logits
        with entered_at(model, entrance, hidden):
            assert torch.equal(model(**batch).logits, plain)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_choices_of_a_row_are_sequences_of_their_own(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, "multiple_choice", num_hidden_layers=LAYERS).requires_grad_(False)
    model_map = ModelMap.from_model(model)
    rows = ragged_rows(lengths=(5, 3, 8), choices=2)
    maker = BatchMaker(PAD, "right", regression=False)
    prefix = prefix_of(model_map, 2)
    batch = maker(rows.features, rows.references)
    entrance = find_entrance(model, prefix, batch)
    assert isinstance(entrance, Entrance), entrance
    batches = prefix_activations(model, prefix, rows, maker, Device(), batch_size=2)
    entry = ActivationCache(tmp_path, 10**6).build(KEY, sequence_lengths(rows), batches)
    assert isinstance(entry, Entry), entry
    order = [2, 0, 1]
    batch = maker([rows.features[i] for i in order], rows.references[order])
    with torch.no_grad():
        plain = model(**batch).logits
        with entered_at(model, entrance, entry.batch(order, batch["input_ids"].shape[-1])):
            found = model(**batch).logits
    assert found.shape == (3, 2)
    assert torch.allclose(found, plain, atol=1e-5)


def test_many_steps_of_training_end_where_the_plain_ones_do(tmp_path: Path) -> None:
    def trained(entrance: Entrance | None) -> list[float]:
        model = deep_model("bert")
        model_map = ModelMap.from_model(model)
        adapted = tuner.build(model, tuned_from(model_map, 2), model_map, seed=1).train()
        entry = stored(model, prefix_of(model_map, 2), tmp_path) if entrance else None
        optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-3)
        batch = padded(ragged_rows())
        losses = []
        for _ in range(8):
            if entrance and entry:
                with entered_at(adapted, entrance, entry.batch(range(6), 12)):
                    loss, _ = loss_and_gradients(adapted, batch)
            else:
                loss, _ = loss_and_gradients(adapted, batch)
            optimizer.step()
            losses.append(float(loss))
        return losses

    model = deep_model("bert")
    entrance = find_entrance(model, prefix_of(ModelMap.from_model(model), 2), padded(ragged_rows()))
    assert isinstance(entrance, Entrance)
    plain, found = trained(None), trained(entrance)
    assert plain[-1] < plain[0]
    assert np.allclose(plain, found, rtol=1e-5)


# --- no trace, no wrong use ------------------------------------------------------------------------------------------


def marks(model: nn.Module) -> dict[str, Any]:
    """All that could be left on a model: attributes of every module, hooks, modes."""
    return {
        name: (
            sorted(vars(module)),
            [len(hooks) for key, hooks in vars(module).items() if key.endswith("hooks")],
            module.training,
            "forward" in vars(module),
        )
        for name, module in model.named_modules()
    }


@pytest.fixture
def bert() -> Iterator[tuple[Any, Entrance, dict[str, Tensor], Tensor]]:
    """(model, entrance at block 2, batch, activations); whatever a test does, the model must come out untouched."""
    model = deep_model("bert")
    before = marks(model), tuner.fingerprint(model)
    prefix = prefix_of(ModelMap.from_model(model), 2)
    batch = padded(ragged_rows())
    entrance = find_entrance(model, prefix, batch)
    assert isinstance(entrance, Entrance)
    yield model, entrance, batch, run_prefix(model, prefix, batch)
    assert (marks(model), tuner.fingerprint(model)) == before


def test_a_pass_leaves_no_trace(bert: tuple[Any, Entrance, dict[str, Tensor], Tensor]) -> None:
    model, entrance, batch, hidden = bert
    with torch.no_grad(), entered_at(model, entrance, hidden):
        assert "forward" in vars(model.bert.encoder.layer[0])
        model(**batch)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_failing_pass_leaves_no_trace(bert: tuple[Any, Entrance, dict[str, Tensor], Tensor]) -> None:
    model, entrance, _, hidden = bert
    with pytest.raises(ZeroDivisionError), entered_at(model, entrance, hidden):
        _ = 1 / 0


def test_a_forward_of_the_instance_is_given_back(bert: tuple[Any, Entrance, dict[str, Tensor], Tensor]) -> None:
    model, entrance, batch, hidden = bert
    block = model.bert.encoder.layer[0]
    own = block.forward
    block.forward = own
    try:
        with torch.no_grad(), entered_at(model, entrance, hidden):
            model(**batch)
        assert vars(block)["forward"] == own
    finally:
        del block.forward


def test_activations_of_another_batch_are_refused(bert: tuple[Any, Entrance, dict[str, Tensor], Tensor]) -> None:
    model, entrance, batch, hidden = bert
    with (
        pytest.raises(RuntimeError, match=r"activations \(5, 12, 32\) supplied for a batch of \(6, 12, 32\)"),
        entered_at(model, entrance, hidden[:5]),
    ):
        model(**batch)


@pytest.mark.parametrize("passes", [0, 2])
def test_activations_are_for_one_pass(bert: tuple[Any, Entrance, dict[str, Tensor], Tensor], passes: int) -> None:
    model, entrance, batch, hidden = bert
    with (
        pytest.raises(RuntimeError, match=f"ran {passes} times in what should be one forward pass"),
        torch.no_grad(),
        entered_at(model, entrance, hidden),
    ):
        _ = [model(**batch) for _ in range(passes)]


def test_a_tuple_is_returned_where_blocks_return_one() -> None:
    hidden = torch.zeros(1)
    prefix = FrozenPrefix("layers", ("block",))
    assert Entrance(prefix, None).returned(hidden) is hidden
    assert Entrance(prefix, 1).returned(hidden) == (hidden,)
    assert Entrance(prefix, 3).returned(hidden) == (hidden, None, None)


def test_every_row_is_computed_once_and_always_in_the_same_company() -> None:
    model = deep_model("bert")
    prefix = prefix_of(ModelMap.from_model(model), 1)
    maker = BatchMaker(PAD, "right", regression=False)
    rows = ragged_rows()
    first, again = (list(prefix_activations(model, prefix, rows, maker, Device(), batch_size=4)) for _ in range(2))
    assert sorted(np.concatenate([indices for indices, _ in first])) == list(range(6))
    assert [len(indices) for indices, _ in first] == [4, 2]
    for (indices, hidden), (indices_again, hidden_again) in zip(first, again, strict=True):
        assert indices.tolist() == indices_again.tolist()
        assert torch.equal(hidden, hidden_again)


def test_no_context_is_left_open_between_batches() -> None:
    model = deep_model("bert")
    prefix = prefix_of(ModelMap.from_model(model), 1)
    device = SimpleNamespace(put=lambda batch: batch, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    maker = BatchMaker(PAD, "right", regression=False)
    batches = prefix_activations(model, prefix, ragged_rows(), maker, device, batch_size=2)  # type: ignore[arg-type]
    next(batches)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
