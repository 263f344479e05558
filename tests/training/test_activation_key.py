from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.training.activation_key import activation_key, backbone_digest, rows_digest, sequence_lengths
from peftscout.training.arithmetic import FP32, Arithmetic
from peftscout.training.frozen_prefix import FrozenPrefix
from prefix_cases import deep_model, ragged_rows

PREFIX = FrozenPrefix("layers", ("encoder.0", "encoder.1"))
FACTS: dict[str, Any] = {
    "backbone": "b", "prefix": PREFIX, "rows": "r", "arithmetic": FP32, "attention": "sdpa",
    "device": torch.device("cpu"), "batch_size": 32, "stored": None,
}  # fmt: skip


def test_a_key_is_a_file_name_and_the_same_every_time() -> None:
    found = activation_key(**FACTS)
    assert found == activation_key(**FACTS)
    assert len(found) == 64
    assert set(found) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("backbone", "c"),
        ("prefix", FrozenPrefix("layers", ("encoder.0",))),
        ("prefix", FrozenPrefix("encoder", PREFIX.blocks)),
        ("rows", "s"),
        ("arithmetic", Arithmetic("bf16")),
        ("attention", "eager"),
        ("batch_size", 64),
        ("stored", torch.float16),
    ],
)
def test_whatever_decides_the_activations_decides_the_key(name: str, value: Any) -> None:
    assert activation_key(**{**FACTS, name: value}) != activation_key(**FACTS)


def test_other_libraries_and_other_processors_have_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = activation_key(**FACTS)
    with monkeypatch.context() as patch:
        patch.setattr("peftscout.training.activation_key.version", lambda name: "0")
        assert activation_key(**FACTS) != before
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ENIAC")
        assert activation_key(**FACTS) != before
    assert activation_key(**FACTS) == before


# --- the backbone ----------------------------------------------------------------------------------------------------

HEAD = ("classifier",)


def test_equal_models_have_one_digest_wherever_they_come_from() -> None:
    one, other = deep_model("bert"), deep_model("bert")
    other.config._name_or_path = "/elsewhere"
    assert backbone_digest(one, HEAD) == backbone_digest(other, HEAD)


def test_one_changed_weight_changes_the_digest() -> None:
    model = deep_model("bert")
    before = backbone_digest(model, HEAD)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[3, 5] += 1e-6
    assert backbone_digest(model, HEAD) != before


def test_a_changed_buffer_changes_the_digest() -> None:
    model = deep_model("bert")
    before = backbone_digest(model, HEAD)
    model.bert.embeddings.position_ids[0, 0] += 1
    assert backbone_digest(model, HEAD) != before


def test_another_dtype_changes_the_digest() -> None:
    model = deep_model("bert")
    before = backbone_digest(model, HEAD)
    assert backbone_digest(model.to(torch.bfloat16), HEAD) != before


def test_what_only_the_config_says_changes_the_digest() -> None:
    before = backbone_digest(deep_model("bert"), HEAD)
    assert backbone_digest(deep_model("bert", hidden_act="relu"), HEAD) != before
    assert backbone_digest(deep_model("bert", layer_norm_eps=1e-6), HEAD) != before


def test_the_head_does_not_count() -> None:
    model = deep_model("bert")
    before = backbone_digest(model, HEAD)
    with torch.no_grad():
        model.classifier.weight += 1
    assert backbone_digest(model, HEAD) == before
    assert backbone_digest(model, ()) != before


def test_a_trial_leaves_the_digest_as_it_was() -> None:
    model = deep_model("bert")
    model_map = ModelMap.from_model(model)
    before = backbone_digest(model, model_map.head)
    tuner.reset(tuner.build(model, Plan.of({("layers.2.attention.q", "lora"): 2}), model_map))
    assert backbone_digest(model, model_map.head) == before


# --- the rows --------------------------------------------------------------------------------------------------------


def test_equal_rows_have_one_digest_whatever_their_references() -> None:
    rows = ragged_rows()
    other = dataclasses.replace(ragged_rows(), references=np.zeros(6), truncated=3)
    assert rows_digest(rows) == rows_digest(other)


@pytest.mark.parametrize("choices", [0, 2])
@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_one_changed_token_changes_the_digest(name: str, choices: int) -> None:
    rows = ragged_rows(choices=choices)
    before = rows_digest(rows)
    sequence = rows.features[3][name][-1] if choices else rows.features[3][name]
    sequence[1] += 1
    assert rows_digest(rows) != before


def test_a_further_input_changes_the_digest() -> None:
    rows = ragged_rows()
    before = rows_digest(rows)
    for feature in rows.features:
        feature["token_type_ids"] = [0] * len(feature["input_ids"])
    assert rows_digest(rows) != before


def test_order_number_and_borders_of_rows_count() -> None:
    rows = ragged_rows((4, 4))
    digests = {rows_digest(rows), rows_digest(rows.subset([1, 0])), rows_digest(rows.subset([0]))}
    moved = ragged_rows((4, 4))
    for name in moved.features[0]:  # the same tokens one after the other, cut at another place
        first, second = moved.features[0][name], moved.features[1][name]
        second.insert(0, first.pop())
    assert len(digests | {rows_digest(moved)}) == 4


def test_choices_are_not_rows() -> None:
    chosen = ragged_rows((4, 5), choices=2)
    flat = [{name: feature[name][c] for name in feature} for feature in chosen.features for c in range(2)]
    rows = dataclasses.replace(chosen, features=flat, lengths=np.array([4, 5, 5, 6]), references=np.zeros(4))
    assert rows_digest(rows) != rows_digest(chosen)


def test_no_rows_have_a_digest_too() -> None:
    assert rows_digest(ragged_rows().subset([])) != rows_digest(ragged_rows())


def test_lengths_are_those_of_every_sequence() -> None:
    assert sequence_lengths(ragged_rows((4, 7))).tolist() == [[4], [7]]
    assert sequence_lengths(ragged_rows((4, 7), choices=3)).tolist() == [[4, 5, 6], [7, 8, 9]]
