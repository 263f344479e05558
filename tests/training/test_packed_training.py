"""Trials with rows that share sequences: the course that they take without, in fewer positions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import OPTConfig, OPTForCausalLM

from peftscout.backbone import load_backbone
from peftscout.config import StudyConfig, override
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.tasks import encode, load_task
from peftscout.training import shortcuts
from peftscout.training.evaluator import EncodedTask, Evaluator
from peftscout.training.packing_check import why_not_packed
from peftscout.training.settings import TrainingSettings
from peftscout.training.stack_evaluator import evaluate_together
from tiny_models import tiny_config
from tiny_task import FILLERS, save_tiny_writer, tiny_tokenizer

RATES = dict.fromkeys(
    ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix", "head"), 1e-2
)
LOWEST = Plan.of(
    {("layers.0.attention.q", "lora"): 2, ("layers.1.ffn", "serial"): 2, ("layers.1.attention", "prefix"): 2}
)
UPPER = [
    Plan.of({("layers.1.ffn.down", "lora"): 3}),
    Plan.of({("layers.1.attention", "prefix"): 2, ("layers.1.ffn.down", "lora"): 2}),
]


def write_stories(folder: Path, longest: int = 28, rows: int = 60) -> Path:
    """Texts of very different lengths, three of four short."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        words = [int(rng.integers(2, 7) if n % 4 else rng.integers(12, longest)) for n in range(rows)]
        texts = [" ".join(rng.choice(FILLERS, size=count)) for count in words]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_stories(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save_tiny_writer(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def make(llama, data):
    task = load_task(data, kind="causal_lm")

    def make(folder: Path | None = None, note=print, model: Path = llama, **changes) -> Evaluator:
        backbone = load_backbone(str(model), task)
        train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
        settings = replace(TrainingSettings(RATES, batch_size=24), **changes)
        return Evaluator(backbone, EncodedTask(task, train, search), settings, folder=folder, note=note)

    return make


def assert_same_course(ours: Outcome, theirs: Outcome) -> None:
    assert ours.state is theirs.state is State.DONE, ours.message
    assert [loss for _, loss, _ in ours.curve] == pytest.approx([loss for _, loss, _ in theirs.curve], rel=1e-5)
    assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-5)
    assert (ours.steps, ours.passes, ours.real_tokens) == (theirs.steps, theirs.passes, theirs.real_tokens)


@pytest.mark.parametrize("plan", [LOWEST, *UPPER], ids=["all blocks", "upper block", "upper prefix"])
def test_packing_computes_fewer_positions_and_learns_the_same(make, tmp_path, plan) -> None:
    """The upper plans are entered with stored activations, which are put where their rows are."""
    request = Evaluate(plan, Fidelity(12), 0)
    notes: list[str] = []
    packed = make(tmp_path, notes.append)(request)
    plain = make(packing=False)(request)
    assert_same_course(packed, plain)
    assert packed.tokens < 0.8 * plain.tokens
    assert not [note for note in notes if "packed" in note]
    assert (tmp_path / "activations").exists() == (plan is not LOWEST)


@pytest.mark.parametrize(("seeds", "stored"), [((0, 0), True), ((0, 0), False), ((0, 1), True)])
def test_plans_in_a_stack_pack_as_they_do_alone(make, tmp_path, seeds, stored) -> None:
    requests = [Evaluate(plan, Fidelity(6), seed) for plan, seed in zip(UPPER, seeds, strict=True)]
    evaluator = make(tmp_path, **({} if stored else {"cache_bytes": 0}))
    together = evaluate_together(evaluator, requests)
    assert evaluator.stacks
    alone, plain = make(), make(packing=False)
    for ours, request in zip(together, requests, strict=True):
        own = alone(request)
        assert ours.tokens == own.tokens
        assert_same_course(own, plain(request))
        assert [c[1] for c in ours.curve] == pytest.approx([c[1] for c in own.curve], rel=1e-4)
        assert ours.metrics["loss"] == pytest.approx(own.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "changes", [{"packing": False}, {"shortcuts": False}, {"backbone_dropout": "paper"}, {"backbone_dropout": "above"}]
)
def test_nothing_is_packed_where_that_is_switched_off_or_the_backbone_is_random(make, monkeypatch, changes) -> None:
    monkeypatch.setattr(shortcuts, "why_not_packed", None)
    assert make(**changes)(Evaluate(LOWEST, Fidelity(2), 0)).state is State.DONE


def test_the_test_is_made_until_every_kind_of_module_was_there_when_it_held(make, monkeypatch) -> None:
    tested = []

    def find(model, ids):
        tested.append(len(ids))
        return why_not_packed(model, ids)

    monkeypatch.setattr(shortcuts, "why_not_packed", find)
    evaluator, counts = make(), []
    q, down = ("layers.1.attention.q", "lora"), ("layers.0.ffn.down", "scale")
    for sizes in ({q: 1}, {down: 1}, {q: 2, down: 1}, {("layers.0.ffn", "parallel"): 1}):
        assert evaluator(Evaluate(Plan.of(sizes), Fidelity(2), 0)).done
        counts.append(len(tested))
    assert counts == [1, 2, 2, 3]
    assert set(tested) == {evaluator.data.train.lengths.max()}


def test_a_model_that_mixes_packed_rows_is_trained_without_and_it_is_said_once(make, tmp_path) -> None:
    small = {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "init_std": 0.2, "dropout": 0.0}
    sizes = {name: getattr(tiny_config("llama"), name) for name in ("hidden_size", "num_attention_heads", "vocab_size")}
    OPTForCausalLM(OPTConfig(**sizes, **small, num_hidden_layers=2, pad_token_id=0)).save_pretrained(tmp_path / "opt")
    tiny_tokenizer(writes=True).save_pretrained(tmp_path / "opt")
    notes: list[str] = []
    evaluator = make(note=notes.append, model=tmp_path / "opt")
    plan = Plan.of({("layers.0.attention.q", "lora"): 2})
    outcomes = [evaluator(Evaluate(plan, Fidelity(6), 0)) for _ in range(2)]
    plain = make(model=tmp_path / "opt", shortcuts=False)(Evaluate(plan, Fidelity(6), 0))
    assert_same_course(outcomes[0], plain)
    assert outcomes[1].tokens == plain.tokens
    said = [note for note in notes if note.startswith("rows are padded, not packed: ")]
    assert len(said) == 1
    assert "differ from those of each by itself" in said[0]


def test_it_is_on_unless_switched_off() -> None:
    data = {"model": "m", "budget": "1%", "data": {"source": "d"}}
    assert StudyConfig.from_mapping(data).training.packing
    assert not StudyConfig.from_mapping(override(data, ["training.packing=off"])).training.packing
