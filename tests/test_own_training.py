"""A user's own training function: what it gets, what may come back, and the worked example in examples/."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

import peftscout
from peftscout.errors import ConfigError, StudyError
from peftscout.training.own_training import Candidate
from tiny_task import save_tiny_model, write_task

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_task(tmp_path_factory.mktemp("data"), train=80, validation=20))


def search(model, data, study, evaluate, **options):
    fixed = {"budget": "5%", "steps": 3, "trials": 2, "final": {"seeds": 0}, "progress": False}
    return peftscout.search(model, data, study=study, evaluate=evaluate, **{**fixed, **options})


def test_the_function_gets_a_built_plan_and_its_score_decides(model, data, tmp_path):
    seen: list[Candidate] = []

    def mine(candidate: Candidate) -> dict[str, float]:
        trained = sum(p.numel() for p in candidate.model.parameters() if p.requires_grad)
        assert trained > 0
        assert candidate.steps == 3
        assert len(candidate.train) == 60 or len(candidate.train) > 0
        seen.append(candidate)
        return {"mine": float(len(seen)), "other": 0.0}

    result = search(model, data, tmp_path / "s", mine)
    assert [t["score"] for t in result.summary["trials"]] == [1.0, 2.0]
    assert result.best.score == 2.0
    with pytest.raises(Exception, match="locked"):
        _ = seen[0].task.report.texts
    search(model, data, tmp_path / "s", mine)
    assert len(seen) == 2, "a finished study is read, not run again"


def test_what_is_no_score_fails_the_trial_with_its_reason_and_nan_has_diverged(model, data, tmp_path):
    answers = iter([0.5, "good", math.nan, {}])
    result = search(model, data, tmp_path / "s", lambda candidate: next(answers), trials=4)
    assert [t["state"] for t in result.summary["trials"]] == ["done", "failed", "diverged", "failed"]


def test_a_function_that_changes_the_backbone_is_found_out(model, data, tmp_path):
    def spoils(candidate: Candidate) -> float:
        frozen = next(p for p in candidate.model.parameters() if not p.requires_grad)
        with torch.no_grad():
            frozen.add_(1)
        return 1.0

    with pytest.raises(peftscout.PeftscoutError, match="the backbone was changed"):
        search(model, data, tmp_path / "s", spoils)


def other_training(candidate: Candidate) -> float:
    return 0.1


def test_a_study_is_not_continued_with_another_function(model, data, tmp_path):
    search(model, data, tmp_path / "s", lambda candidate: 0.5)
    with pytest.raises(StudyError, match="own_training"):
        search(model, data, tmp_path / "s", other_training)


def test_rungs_are_refused_because_the_training_cannot_be_stopped(model, data, tmp_path):
    with pytest.raises(ConfigError, match="fidelity halving: stops and resumes trainings"):
        search(model, data, tmp_path / "s", other_training, fidelity="halving")


@pytest.mark.slow
def test_the_example_with_trainer_searches_compares_and_exports(model, data, tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("own_training_example", ROOT / "examples" / "own_training.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.main(model, data, str(tmp_path / "s"))
    assert result.verdict in capsys.readouterr().out
    assert {t["state"] for t in result.summary["trials"]} == {"done"}
    header = json.loads((tmp_path / "s" / "study.json").read_text())
    assert header["model"]["own_training"] == "own_training_example.train_with_trainer"
    assert result.summary["final"] is not None
    assert result.export(tmp_path / "out").difference < 1e-4
