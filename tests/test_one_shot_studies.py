"""Whole studies with differentiable strategies on tiny models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import peftscout
from peftscout.errors import SpaceError
from peftscout.study import read_records
from peftscout.training.initial_states import InitialStates
from peftscout.training.kept_search import KeptSearch
from tiny_task import save_tiny_model, tiny_tokenizer, write_task

QUICK = {
    "trials": 3,
    "steps": 8,
    "final": {"seeds": 0},
    "progress": False,
    "strategy_options": {"keep_every": 3},
    "training": {"batch_size": 8, "threads": 1},
}
SCOUT = {**QUICK, "strategy_options": {"keep_every": 3, "steps": 6, "ranking_rows": 16}}
PAIRS = (("bipeft", "bipeft-s1"), ("bipeft", "bipeft-s2"), ("s3delta", "s3delta-m"), ("s3delta", "lora"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("data"), train=80, validation=20)


def end_every_text(folder: Path) -> None:
    """T5 classifies at the end of a text, so its tokenizer must write one."""
    tokenizer = tiny_tokenizer()
    end = ("[SEP]", tokenizer.sep_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=[end])
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": tokenizer.sep_token_id}))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny_model(tmp_path_factory.mktemp(name), name)
            if name == "t5":
                end_every_text(made[name])
        return made[name]

    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5", "llama", "gpt2"])
@pytest.mark.parametrize(("strategy", "space"), PAIRS)
def test_a_study_searches_on_a_supernet_and_evaluates_the_result(models, data, tmp_path, name, strategy, space):
    result = peftscout.search(
        models(name), data, budget="5%", study=tmp_path / "s", strategy=strategy, space=space, **QUICK
    )
    baseline, found, *alternatives = result.summary["trials"]
    assert baseline["label"].startswith("uniform LoRA")
    assert found["label"] == strategy
    assert all(t["label"] == f"{strategy}, alternative" for t in alternatives)
    assert all(t["state"] == "done" for t in (found, *alternatives))
    assert all(0 < t["cost"] <= result.summary["budget"]["parameters"] for t in (found, *alternatives))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5", "llama", "gpt2"])
@pytest.mark.parametrize("space", ["all", "lora", "bipeft-s2"])
def test_scout_ranks_plans_on_a_supernet_and_trains_the_first_from_fresh_and_from_its_weights(
    models, data, tmp_path, name, space
):
    result = peftscout.search(
        models(name), data, budget="5%", study=tmp_path / "s", strategy="scout", space=space, **{**SCOUT, "trials": 4}
    )
    baseline, *checks = read_records(tmp_path / "s")
    assert baseline.request.label.startswith("uniform LoRA")
    assert len(checks) == 3
    assert all(r.outcome.done for r in checks)
    assert all(0 < r.outcome.cost <= result.summary["budget"]["parameters"] for r in checks)
    plans = [r.request.plan for r in checks if r.request.plan != baseline.request.plan]
    assert plans[0] in [r.request.plan for r in checks if r.request.initial]
    spent = result.summary["spent"]["supernet"]
    assert spent["steps"] == 6
    ranking = 14 * 1 + 5 * 2  # batches at most: candidates by a third of 16 rows, the better ones by all, eight a batch
    assert 6 < spent["passes"] <= 6 + ranking / 3
    events = [json.loads(line) for line in (tmp_path / "s" / "search" / "events.jsonl").read_text().splitlines()]
    losses = [entry["held_out_loss"] for entry in events[-1]["ranking"]]
    assert len(set(losses)) > 1


def test_where_scouts_supernet_diverges_uniform_lora_is_the_result_and_it_is_said(models, data, tmp_path, capsys):
    options = {**SCOUT["strategy_options"], "lr_scale": 1e30}
    result = peftscout.search(
        models("bert"), data, budget="5%", study=tmp_path / "s", strategy="scout", space="lora",
        **{**SCOUT, "strategy_options": options, "progress": True},
    )  # fmt: skip
    (baseline,) = read_records(tmp_path / "s")
    assert result.best.plan == baseline.request.plan
    assert "scout trains no plan: the supernet's loss is" in " ".join(capsys.readouterr().err.split())


def test_the_state_of_the_search_is_kept_in_the_study_as_safetensors_and_json(models, data, tmp_path):
    where = {"budget": "2%", "study": tmp_path / "s", "strategy": "s3delta", "space": "s3delta-l"}
    first = peftscout.search(models("bert"), data, **where, **QUICK)
    names = {p.suffix for p in (tmp_path / "s" / "search").iterdir()}
    assert names == {".safetensors", ".json", ".jsonl"}
    events = (tmp_path / "s" / "search" / "events.jsonl").read_text().splitlines()
    event = json.loads(events[-1])
    assert event["iteration"] == 8
    assert event["expected_size"] == pytest.approx(event["budget"], rel=1e-5)
    before = (tmp_path / "s" / "search" / "kept.json").read_bytes()
    again = peftscout.search(models("bert"), data, **where, **QUICK)
    assert again.summary == first.summary
    assert (tmp_path / "s" / "search" / "kept.json").read_bytes() == before


def test_a_space_with_switches_is_refused_before_any_training(models, data, tmp_path):
    with pytest.raises(SpaceError, match="switch"):
        peftscout.search(
            models("bert"), data, budget="5%", study=tmp_path / "s", strategy="bipeft", space="autopeft", **QUICK
        )
    assert read_records(tmp_path / "s") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_search_without_a_strategy_scouts_and_then_refines(models, data, tmp_path, name):
    settings = {**QUICK, "trials": 7, "strategy_options": {"scout": {"steps": 6, "checks": 3}}}
    result = peftscout.search(models(name), data, budget="5%", study=tmp_path / "s", **settings)
    assert result.summary["strategy"] == "auto"
    assert result.trials["state"].eq("done").all()
    labels = [t["label"] for t in result.summary["trials"] if t["stage"] == "search"]
    assert labels[0].startswith("uniform LoRA")
    assert all(label.startswith(("scout", "uniform")) for label in labels[1:4])
    assert [label.startswith("autopeft") for label in labels[4:]] == [True] * 3
    assert 0 < result.summary["spent"]["supernet"]["steps"] <= 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "space"), [("bipeft", "bipeft-s1"), ("s3delta", "s3delta-m"), ("scout", "all"), ("auto", "all")]
)
def test_killed_at_any_moment_a_search_ends_with_the_same_state_and_trials(models, data, tmp_path, strategy, space):
    options = {"keep_every": 2, "steps": 20}
    if strategy == "bipeft":
        options |= {"threshold": 0.1, "warmup": 0.1}
    if strategy == "auto":
        options = {"scout": options | {"checks": 2}}
    trials = "6" if strategy == "auto" else "3"
    arguments = [
        sys.executable, "-m", "peftscout", "search", str(models("bert")), "--budget", "5%", "--data", str(data),
        "--strategy", strategy, "--space", space, "--trials", trials, "--steps", "4", "--final-seeds", "0",
        "--set", f"strategy_options={json.dumps(options)}", "--set", "training.threads=1",
    ]  # fmt: skip

    def run(study: Path, kill_after: float | None) -> None:
        process = subprocess.Popen(
            [*arguments, "--study", str(study)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if kill_after is not None:
            for line in process.stderr:  # the clock starts with the baseline's end, not with the imports
                if "search 0:" in line and "parameters" not in line:
                    break
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors

    run(tmp_path / "whole", None)
    for kill_after in (0.3, 0.8, 1.5):
        run(tmp_path / "killed", kill_after)
    run(tmp_path / "killed", None)

    def identity(folder: Path):
        return [(r.number, r.stage, r.request, r.outcome.score) for r in read_records(folder)]

    assert identity(tmp_path / "killed") == identity(tmp_path / "whole")
    whole, killed = KeptSearch(tmp_path / "whole" / "search").load(), KeptSearch(tmp_path / "killed" / "search").load()
    assert whole is not None
    assert killed is not None
    for _, facts, _ in (whole, killed):
        assert facts.pop("seconds") > 0
    assert whole[1:] == killed[1:]
    assert all(np.array_equal(whole[0][name], killed[0][name]) for name in whole[0])


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "space"), [("bipeft", "bipeft-s1"), ("s3delta", "s3delta-m")])
def test_a_warm_start_goes_on_from_the_supernet_also_when_it_was_interrupted(
    models, data, tmp_path, monkeypatch, strategy, space
):
    options = {**QUICK, "strategy_options": {"keep_every": 3, "warm_start": True, "learning_rate": 0.01}}
    where = {"budget": "5%", "strategy": strategy, "space": space}
    whole = peftscout.search(models("bert"), data, study=tmp_path / "whole", **where, **options)
    baseline, *found = read_records(tmp_path / "whole")
    assert baseline.request.initial == ""
    assert all(r.request.initial for r in found)
    spent = whole.summary["spent"]["supernet"]
    assert spent["steps"] == 8
    assert spent["passes"] >= (8 if strategy == "bipeft" else 40)
    assert 0 < spent["seconds"] < whole.summary["spent"]["seconds"]

    def interrupted(self, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(InitialStates, "load", interrupted)
        with pytest.raises(KeyboardInterrupt):
            peftscout.search(models("bert"), data, study=tmp_path / "cut", **where, **options)
    for state in (tmp_path / "cut" / "cache" / "initial").iterdir():
        state.unlink()  # a cache may be emptied
    peftscout.search(models("bert"), data, study=tmp_path / "cut", **where, **options)
    finished = [r for r in read_records(tmp_path / "cut") if r.outcome is not None]
    assert [(r.request, r.outcome.score) for r in finished] == [
        (r.request, r.outcome.score) for r in (baseline, *found)
    ]
