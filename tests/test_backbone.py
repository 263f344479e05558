from types import SimpleNamespace

import numpy as np
import pytest
import torch

from peftscout import tuner
from peftscout.backbone import load_backbone, load_config, load_model, quiet_loading
from peftscout.errors import ArchitectureError
from peftscout.plan import Plan
from tiny_models import tiny_model
from tiny_task import save_tiny_model, tiny_tokenizer

CLASSES = SimpleNamespace(kind="classification", labels=("a", "b", "c"))
NUMBERS = SimpleNamespace(
    kind="regression", labels=(), train=SimpleNamespace(references=np.array([1.0, 2.0, 4.5], dtype=np.float32))
)
CHOICES = SimpleNamespace(kind="multiple_choice", labels=("1", "2"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize(("task", "outputs", "auto_class"), [
    (CLASSES, 3, "AutoModelForSequenceClassification"),
    (NUMBERS, 1, "AutoModelForSequenceClassification"),
    (CHOICES, 1, "AutoModelForMultipleChoice"),
])  # fmt: skip
def test_the_head_follows_from_the_task(bert, task, outputs, auto_class):
    backbone = load_backbone(bert, task)
    assert backbone.model.classifier.out_features == outputs
    assert backbone.reference.auto_class == auto_class
    assert backbone.model_map.head == ("classifier",)
    assert not any(p.requires_grad for p in backbone.model.parameters())


@pytest.mark.parametrize(("name", "output"), [("bert", "classifier"), ("roberta", "classifier.out_proj")])
def test_a_regression_starts_at_the_mean_of_the_training_targets_with_every_seed(tmp_path, name, output):
    backbone = load_backbone(str(save_tiny_model(tmp_path, name)), NUMBERS)
    weights = []
    for seed in (0, 1):
        adapted = tuner.build(
            backbone.model, Plan.of({("layers.0.attention.q", "lora"): 1}), backbone.model_map, seed=seed
        )
        first, _, last = output.partition(".")
        head = adapted.get_base_model().get_submodule(f"{first}.modules_to_save.default")
        head = head.get_submodule(last) if last else head
        assert head.bias.tolist() == [2.5]
        weights.append(head.weight.detach().clone())
        tuner.reset(adapted)
    assert not torch.equal(*weights)


def test_the_biases_of_a_classification_start_at_zero_whatever_the_checkpoint_has(bert):
    backbone = load_backbone(bert, CLASSES)
    with torch.no_grad():
        backbone.model.classifier.bias.fill_(7.0)
    adapted = tuner.build(backbone.model, Plan.of({("layers.0.attention.q", "lora"): 1}), backbone.model_map)
    assert adapted.get_base_model().get_submodule("classifier.modules_to_save.default").bias.tolist() == [0.0] * 3


def test_a_head_without_a_bias_does_without(tmp_path):
    backbone = load_backbone(str(save_tiny_model(tmp_path, "llama")), NUMBERS)
    assert backbone.model.score.bias is None


def test_the_reference_loads_the_same_model_elsewhere(bert):
    backbone = load_backbone(bert, CLASSES, seed=5)
    again = load_model(backbone.reference, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(backbone.model.parameters(), again.parameters(), strict=True))
    other = load_model(backbone.reference, seed=6)
    assert not torch.equal(other.classifier.weight, again.classifier.weight)


def test_a_tokenizer_without_padding_gets_one_and_the_model_is_told(tmp_path):
    model = tiny_model("gpt2")
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), CLASSES)
    assert backbone.tokenizer.pad_token_id == backbone.tokenizer.eos_token_id
    assert backbone.model.config.pad_token_id == backbone.tokenizer.pad_token_id
    assert backbone.reference.kwargs["pad_token_id"] == backbone.tokenizer.pad_token_id


def test_rows_are_never_longer_than_the_positions_of_the_model(tmp_path, bert):
    assert load_backbone(bert, CLASSES).max_length == 64
    assert load_backbone(str(save_tiny_model(tmp_path, "roberta")), CLASSES).max_length == 62


def test_a_model_without_a_head_for_the_task_is_refused_by_name(tmp_path):
    folder = str(save_tiny_model(tmp_path, "llama"))
    with pytest.raises(ArchitectureError, match="no AutoModelForMultipleChoice for it"):
        load_backbone(folder, CHOICES)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(ArchitectureError, match="no such folder"):
        load_config(name)


def test_an_unknown_hub_id_is_named():
    with pytest.raises(ArchitectureError, match="nobody/nothing-here"):
        load_config("nobody/nothing-here")


def test_code_that_comes_with_a_model_is_not_run_unless_asked_for(tmp_path):
    marker = tmp_path / "it-ran"
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}')
    (tmp_path / "mine.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import PretrainedConfig\nclass MyConfig(PretrainedConfig): model_type = 'mine'\n"
    )
    with pytest.raises(ArchitectureError, match="--trust-remote-code"):
        load_config(str(tmp_path))
    assert not marker.exists()


def test_weights_that_are_pickled_are_not_loaded(tmp_path):
    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "pytorch_model.bin").write_bytes(
        b"\x80\x04cposix\nsystem\n(S'touch " + str(tmp_path / "x").encode() + b"'\ntR."
    )
    with pytest.raises(ArchitectureError, match="weights cannot be loaded|model"):
        load_backbone(str(tmp_path), CLASSES)
    assert not (tmp_path / "x").exists()


def test_the_verbosity_of_transformers_is_put_back():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_loading():
        assert logging.get_verbosity() == logging.ERROR
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
