"""Kinds that write, through the evaluator: they learn, and neither shortcuts nor stacks change what comes out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from peftscout.backbone import load_backbone
from peftscout.errors import ArchitectureError
from peftscout.gates import Gates, WeightTraining
from peftscout.outcome import Evaluate, Fidelity, State
from peftscout.plan import Plan
from peftscout.space import Choice, Space
from peftscout.tasks import compute_metrics, encode, load_task
from peftscout.training.evaluator import EncodedTask, Evaluator
from peftscout.training.forward import Forward
from peftscout.training.one_shot import one_shot_factory
from peftscout.training.scoring import evaluate
from peftscout.training.settings import TrainingSettings
from peftscout.training.stack_evaluator import capacity, evaluate_together
from tiny_models import tiny_model
from tiny_task import save_tiny_model, save_tiny_writer, tiny_tokenizer, write_task, write_texts

RATES = dict.fromkeys(
    ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix", "head"), 1e-2
)
CASES = {
    "t5 labels": ("t5", "labels_as_text", "classes"),
    "bart labels": ("bart", "labels_as_text", "classes"),
    "t5 texts": ("t5", "text_to_text", "prompts"),
    "bart texts": ("bart", "text_to_text", "prompts"),
    "llama completions": ("llama", "causal_lm", "prompts"),
    "gpt2 stories": ("gpt2", "causal_lm", "stories"),
    "llama chats": ("llama", "causal_lm", "chats"),
    "llama choices": ("llama", "choice_likelihood", "choices"),
    "bert tags": ("bert", "token_classification", "tags"),
    "bert answers": ("bert", "question_answering", "answers"),
}


@pytest.fixture(scope="module", params=CASES)
def make(request, tmp_path_factory):
    name, kind, rows = CASES[request.param]
    folder = tmp_path_factory.mktemp("data")
    size = {"train": 60, "validation": 24}
    data = write_task(folder, **size) if rows == "classes" else write_texts(folder, rows, **size)
    save = save_tiny_model if name == "bert" else save_tiny_writer
    model = save(tmp_path_factory.mktemp("model"), name)
    task = load_task(data, kind=kind)

    def make(folder: Path | None = None, note=print, **changes) -> Evaluator:
        backbone = load_backbone(str(model), task)
        train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
        settings = replace(TrainingSettings(RATES, batch_size=16), **changes)
        return Evaluator(backbone, EncodedTask(task, train, search), settings, folder=folder, note=note)

    return make


def plans(evaluator: Evaluator) -> list[Plan]:
    """One plan for all blocks, two for the last block of the model only: those leave a frozen prefix."""
    sites = evaluator.backbone.model_map.sites
    queries = [s.id for s in sites.values() if s.role in ("q", "qkv")]
    down = [s.id for s in sites.values() if s.role == "down"]
    return [
        Plan.of({(queries[0], "lora"): 2, (queries[-1], "lora"): 2, (down[-1], "scale"): 1}),
        Plan.of({(down[-1], "lora"): 3}),
        Plan.of({(queries[-1], "lora"): 1, (down[-1], "lora"): 2}),
    ]


def test_shortcuts_and_stacks_change_nothing(make, tmp_path):
    plain, fast = make(shortcuts=False), make(tmp_path)
    for own in (plans(plain)[:1], plans(plain)[1:]):
        requests = [Evaluate(plan, Fidelity(4), seed) for seed, plan in enumerate(own)]
        expected = [plain(request) for request in requests]
        for outcomes in ([fast(request) for request in requests], evaluate_together(fast, requests)):
            for ours, theirs in zip(outcomes, expected, strict=True):
                assert ours.state is State.DONE, ours.message
                assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-4)
                assert [c[1] for c in ours.curve] == pytest.approx([c[1] for c in theirs.curve], rel=1e-4)
    assert fast.stacks


def test_training_lowers_the_loss_and_predictions_give_the_metrics_again(make):
    evaluator = make()
    plan, seen = plans(evaluator)[0], {}

    def after(model):
        seen["predictions"] = evaluator.predict(model, evaluator.data.search)

    longer = evaluator(Evaluate(plan, Fidelity(30), 0), after=after)
    assert longer.curve[-1][1] < longer.curve[0][1]
    again = compute_metrics(evaluator.objective.metrics, seen["predictions"], evaluator.data.search.references)
    assert again == pytest.approx({name: longer.metrics[name] for name in again}, rel=1e-5)
    assert np.isfinite(longer.score)


def test_a_decoder_is_padded_where_nothing_sees_it(tmp_path):
    model = save_tiny_writer(tmp_path / "m", "gpt2")
    tokenizer = tiny_tokenizer(writes=True)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(model)
    task = load_task(write_texts(tmp_path / "d", "stories", train=40), kind="causal_lm")
    backbone = load_backbone(str(model), task)
    train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
    evaluator = Evaluator(backbone, EncodedTask(task, train, search), TrainingSettings(RATES, batch_size=4))
    batch = evaluator.make_batch(train.features[:4], train.references[:4])
    together = evaluator.objective.score(backbone.model, batch)[0]
    for n in range(4):
        alone = evaluator.make_batch(train.features[n : n + 1], train.references[n : n + 1])
        assert torch.allclose(evaluator.objective.score(backbone.model, alone)[0], together[n : n + 1], rtol=1e-4)


def test_stacks_are_off_where_texts_are_generated_and_it_is_said(tmp_path, monkeypatch):
    from peftscout.tasks import metrics
    from peftscout.training import objectives

    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    same = lambda p, t: [float(a == b) for a, b in zip(p, t, strict=True)]  # noqa: E731
    monkeypatch.setattr(objectives, "rouge_columns", lambda p, t: dict.fromkeys(objectives.ROUGE, same(p, t)))
    data = write_texts(tmp_path / "d", "prompts", train=30, validation=10)
    task = load_task(data, kind="text_to_text", metric="rougeL")
    backbone = load_backbone(str(save_tiny_writer(tmp_path / "m", "t5")), task)
    train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
    notes: list[str] = []
    settings = TrainingSettings(RATES, batch_size=8)
    evaluator = Evaluator(
        backbone, EncodedTask(task, train, search), settings, folder=tmp_path / "f", note=notes.append
    )
    assert capacity(evaluator) == 1
    assert len(notes) == 2
    outcome = evaluator(Evaluate(plans(evaluator)[0], Fidelity(2), 0))
    assert outcome.state is State.DONE, outcome.message
    assert list(outcome.metrics) == ["rougeL", "exact_match", "token_accuracy", "neg_loss", "loss"]


def test_a_model_whose_decoder_has_no_beginning_is_refused(tmp_path):
    model = save_tiny_writer(tmp_path / "m", "t5")
    broken = tiny_model("t5", head="lm")
    broken.config.decoder_start_token_id = None
    broken.generation_config.decoder_start_token_id = None
    broken.save_pretrained(model)
    task = load_task(write_texts(tmp_path / "d", "prompts", train=30), kind="text_to_text")
    with pytest.raises(ArchitectureError, match="names no decoder_start_token_id"):
        load_backbone(str(model), task)


def test_a_supernet_passes_both_halves_at_once_as_it_does_apart(make, tmp_path, monkeypatch):
    evaluator = make(batch_size=8)
    sites = evaluator.backbone.model_map.sites
    choices = [Choice.untied(s.id, "lora", (1, 2)) for s in sites.values() if s.role in ("q", "qkv", "down")]
    training = WeightTraining(steps=9, learning_rate=None, weight_decay=0.0, clip=2.0, seed=3, saliency=False)
    with one_shot_factory(evaluator, Space("lora", tuple(choices), sites), tmp_path)(training) as one_shot:
        modules = one_shot.modules
        gates = Gates(np.full(len(modules), 0.7), modules.one_hot(modules.levels - 1))
        for _ in range(2):
            one_shot.step(gates, "train", gate_gradients=False, update_weights=True)
        batch, first = one_shot._rows.draw_both()
        parts = [{k: t[part] for k, t in batch.items()} for part in (slice(None, first), slice(first, None))]
        monkeypatch.setattr(one_shot._rows, "draw_both", lambda: (batch, first))
        monkeypatch.setattr(one_shot._rows, "draw", lambda split: parts[("train", "validation").index(split)])
        trained = one_shot.step(gates, "train", gate_gradients=False, update_weights=False)
        seen = one_shot.step(gates, "validation", gate_gradients=True, update_weights=False)
        together = one_shot.split(gates, gates)
        assert [step.loss for step in together] == pytest.approx([trained.loss, seen.loss], rel=1e-4)
        assert together[1].on == pytest.approx(seen.on, rel=1e-3, abs=1e-5)
        assert seen.on.any()


STARTS = ("Once upon a time, there was a little", "One day, a small", "In a big house lived a happy")


def stories(rows: int, seed: int = 0) -> list[dict[str, str]]:
    """Children's stories of a fixed pattern, which a model of such stories can get better at."""
    rng = np.random.default_rng(seed)
    names, beasts = ("Lily", "Tom", "Ben", "Sue"), ("cat", "dog", "bird", "bear")
    things = ("ball", "tree", "toy", "cake")
    pick = lambda words: str(rng.choice(words))  # noqa: E731
    return [
        {
            "prompt": f"{pick(STARTS)} {pick(beasts)} named {pick(names)}.",
            "completion": f"{pick(names)} saw a {pick(things)} and said: I like the {pick(things)} very much!",
        }
        for _ in range(rows)
    ]


@pytest.mark.slow
def test_the_real_llama_gets_better_at_stories_than_it_was(tmp_path, shared_models):
    path = shared_models / "stories260k-llama"
    task = load_task(folder_of_stories(tmp_path), kind="causal_lm")
    backbone = load_backbone(str(path), task)
    train, search = (encode(split, backbone.tokenizer, max_length=64) for split in (task.train, task.search))
    assert backbone.tokenizer.decode(train[0]["input_ids"]).startswith("<s>")
    settings = TrainingSettings({**RATES, "lora": 3e-3}, batch_size=16)
    evaluator = Evaluator(backbone, EncodedTask(task, train, search), settings)
    frozen = evaluate(Forward(backbone.model, evaluator.make_batch, evaluator.device), search, evaluator.objective, 32)
    queries = [s for s in backbone.model_map.sites if s.endswith((".q", ".v"))]
    outcome = evaluator(Evaluate(Plan.of(dict.fromkeys(((s, "lora") for s in queries), 2)), Fidelity(20), 0))
    assert outcome.state is State.DONE, outcome.message
    assert 0.5 < frozen["loss"] < 6, "a pretrained model knows such words; uniform is 6.2"
    assert outcome.score > -frozen["loss"] + 0.2


def folder_of_stories(folder: Path) -> Path:
    for split, rows in (("train", stories(160)), ("validation", stories(40, seed=1))):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder
