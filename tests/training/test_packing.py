"""Rows that share a sequence: the loss and the gradients of each by itself, and no row sees another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adapted import everything, stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.tasks.sequences import IGNORED, feature_of
from peftscout.training.batches import BatchMaker, padded_width
from peftscout.training.objectives.causal import Completions
from peftscout.training.packing import NO_CACHE, Packing, first_fit, pack
from tiny_models import PAD, VOCABULARY, tiny_model

DECODERS = ("gpt2", "gpt_neox", "llama", "mistral", "qwen3", "qwen3 in windows", "gemma", "phi", "mixtral", "qwen2_moe")
"""Mistral's window is 8 tokens, that of one of Qwen3's two layers 5: shorter than the longest row."""

LENGTHS = (20, 3, 9, 7, 1, 12)
WIDTH = 20
OBJECTIVE = Completions(("neg_loss",))
RAGGED = st.lists(st.integers(1, 40), min_size=1, max_size=40)


def decoder(name: str, **changes: Any):
    if name == "qwen3 in windows":
        return tiny_model("qwen3", "lm", use_sliding_window=True, sliding_window=5, max_window_layers=1, **changes)
    return tiny_model(name, "lm", **changes)


def completions(lengths=LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of about a third of each row and their completions; a row of one token is all completion."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(3, VOCABULARY, length).tolist() for length in lengths]
    return [feature_of(row[: len(row) // 3], row[len(row) // 3 :]) for row in rows]


def padded(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    return BatchMaker(PAD, "right", regression=False)(features, np.zeros(len(features)))


def packed(batch: dict[str, Tensor], lengths=LENGTHS) -> dict[str, Any]:
    packing = pack([lengths], batch["input_ids"].shape[1], len(lengths))
    assert packing is not None
    return {**packing.batch(batch), **NO_CACHE}


@given(RAGGED)
def test_every_row_is_in_one_sequence_and_no_sequence_is_too_long(lengths: list[int]) -> None:
    width = max(lengths)
    filled = first_fit(lengths, width)
    assert sorted(row for sequence in filled for row in sequence) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in sequence) <= width for sequence in filled)
    assert len(filled) == 1 or 2 * sum(lengths) > len(filled) * width, "no two of them would fit into one"


@given(st.lists(RAGGED, min_size=1, max_size=3))
def test_a_packing_holds_each_row_once_in_order_with_positions_from_0(parts: list[list[int]]) -> None:
    width, rows = padded_width(max(map(max, parts))), max(map(len, parts))
    packing = pack(parts, width, rows)
    if packing is None:
        assert max(len(first_fit(lengths, width)) for lengths in parts) >= rows
        return
    padded = torch.arange(len(parts) * rows * width).view(len(parts) * rows, width)
    held = packing.source >= 0
    assert packing.source[held].sort().values.tolist() == [
        padded[part * rows + row, n].item()
        for part, lengths in enumerate(parts)
        for row, length in enumerate(lengths)
        for n in range(length)
    ]
    assert torch.equal(packing.of(padded)[held], packing.source[held])
    assert torch.equal(packing.positions[held], packing.source[held] % width)
    assert not packing.positions[~held].any()
    follows = held[:, 1:] & (packing.positions[:, 1:] > 0)
    assert (packing.source.diff()[follows] == 1).all()
    of_part = packing.source.view(len(parts), -1).clamp(min=0) // (rows * width)
    assert all((own[held.view(len(parts), -1)[n]] == n).all() for n, own in enumerate(of_part))


def test_rows_that_do_not_fit_together_stay_as_they_are() -> None:
    assert pack([[10, 9, 8, 7]], 10, 4) is None
    assert pack([[10, 5, 5, 7]], 10, 4) is not None
    assert pack([[10, 5, 5], [9, 8, 7]], 10, 3) is None, "parts get equally many sequences, and the second needs three"


def test_the_first_token_of_a_row_is_not_learnt_from_the_row_before() -> None:
    batch = padded(completions())
    labels = packed(batch)["labels"]
    starts = packed(batch)["position_ids"] == 0
    assert (labels[starts] == IGNORED).all()
    assert (labels != IGNORED).sum() == (batch["labels"][:, 1:] != IGNORED).sum()


def test_hidden_states_are_packed_as_the_tokens_are() -> None:
    ids = padded(completions())["input_ids"]
    packing = pack([LENGTHS], WIDTH, len(LENGTHS))
    assert packing is not None
    table = torch.randn(VOCABULARY, 4)
    assert torch.equal(packing.of(table[ids]), table[packing.of(ids)])


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    loss = OBJECTIVE.loss(*OBJECTIVE.train(model, batch))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(model: Any, features: list[dict[str, Any]]) -> None:
    batch = padded(features)
    loss, gradients = loss_and_gradients(model, batch)
    packed_loss, packed_gradients = loss_and_gradients(model, packed(batch))
    assert packed_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert gradients.keys() == packed_gradients.keys()
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (packed_gradients[name] - gradient).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODERS)
def test_every_op_gets_the_loss_and_the_gradients_that_it_has_without_packing(name: str, attention: str) -> None:
    model = decoder(name).requires_grad_(False)
    model.set_attn_implementation(attention)
    model_map = ModelMap.from_model(model)
    assert_same_training(stir(tuner.build(model, everything(model_map), model_map)), completions())


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3 in windows", "gpt_neox"])
def test_every_weight_gets_the_gradient_that_it_has_without_packing(name: str) -> None:
    assert_same_training(decoder(name), completions())


def test_blocks_that_are_computed_again_in_the_backward_pass_give_the_same_gradients() -> None:
    model = decoder("llama")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_training(model.train(), completions())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "mistral", "qwen3 in windows", "gemma", "phi"])
def test_other_tokens_in_one_row_change_no_bit_of_any_other(name: str, attention: str) -> None:
    model = decoder(name)
    model.set_attn_implementation(attention)
    packing = pack([LENGTHS], WIDTH, len(LENGTHS))
    assert isinstance(packing, Packing)
    features = completions()
    for changed in range(len(LENGTHS)):
        other = [*features[:changed], completions(seed=1)[changed], *features[changed + 1 :]]
        with torch.no_grad():
            before, after = (model(**packed(padded(rows))).logits for rows in (features, other))
        own = packing.source // WIDTH == changed
        assert torch.equal(before[~own], after[~own])
        assert not torch.allclose(before[own], after[own], atol=1e-2)


def test_with_a_cache_of_keys_rows_would_see_each_other() -> None:
    """If this fails, transformers looks for rows with a cache, too, and `NO_CACHE` may go."""
    model, batch = decoder("llama"), padded(completions())
    plain, _ = loss_and_gradients(model, batch)
    seeing, _ = loss_and_gradients(model, {**packed(batch), "use_cache": True})
    assert abs(seeing - plain) > 1e-2
