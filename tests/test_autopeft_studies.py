"""Whole studies with AutoPEFT on a tiny model: killed, stopped at rungs, begun with what another study found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import peftscout
from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.errors import ConfigError, StudyError
from peftscout.outcome import Outcome
from peftscout.preparation import prepare
from peftscout.report import tables
from peftscout.report.progress import Silent
from peftscout.strategies import make_strategy, with_fidelity
from peftscout.study import read_records
from tiny_task import save_tiny_model, write_task

CHOSEN = {
    "budget": "8%",
    "strategy": "autopeft",
    "space": "autopeft",
    "trials": 7,
    "steps": 4,
    "strategy_options": {"initial": 4, "random_starts": 16, "starts": 3},
    "final": {"seeds": 0},
    "training": {"threads": 1, "batch_size": 16, "precision": "fp32"},
}
STOPPING = {
    "fidelity": "early-stop",
    "fidelity_options": {"r_min": 2, "least_plans": 4, "least_correlation": -1, "band_factor": 1e6, "keep_share": 0.3},
    "steps": 6,
    "trials": 9,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("data"), train=80, validation=20)


@pytest.fixture
def study(model, data, tmp_path):
    """Run a study of these settings in a folder of this name."""

    def run(name: str, reporter=None, **changes) -> peftscout.Result:
        mapping = {"model": str(model), "data": {"source": str(data)}, **CHOSEN, **changes}
        return search_config(StudyConfig.from_mapping(mapping), tmp_path / name, reporter or Silent())

    return run


def identity(folder: Path):
    return [
        (r.number, r.stage, r.request, r.request.label, None if r.outcome is None else r.outcome.score)
        for r in read_records(folder)
    ]


class Interrupting(Silent):
    """Interrupts after so many optimiser steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self, done: int, total: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, STOPPING], ids=["full", "early-stop"])
def test_killed_at_any_moment_it_proposes_what_it_would_have_proposed(model, data, tmp_path, changes):
    settings = {"model": str(model), "data": {"source": str(data)}, **CHOSEN, **changes}
    (tmp_path / "study.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "peftscout", "search", "--config", str(tmp_path / "study.yaml"), "--study"]

    def run(name: str, kill_after: float | None) -> bool:
        process = subprocess.Popen(
            [*command, str(tmp_path / name)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if kill_after is not None:
            for line in process.stderr:  # the clock starts with the first trial, not with the imports
                if "search" in line:
                    break
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        return process.returncode == 0

    assert run("whole", None)
    for kill_after in (0.3, 1.0):
        run("killed", kill_after)
    assert run("killed", None)
    assert identity(tmp_path / "killed") == identity(tmp_path / "whole")
    labels = [label for _, _, _, label, _ in identity(tmp_path / "whole")]
    assert "autopeft" in labels  # it came to the surrogate, not only through the design


def test_told_the_ledger_of_an_interrupted_study_the_strategy_asks_next_what_the_study_ran_next(study, model, data):
    whole = study("whole", time=3600)  # with a time limit, plans are asked for one by one
    records = read_records(whole.folder)
    mapping = {"model": str(model), "data": {"source": str(data)}, **CHOSEN}
    problem = prepare(StudyConfig.from_mapping(mapping)).problem
    for told in range(1, len(records)):
        strategy = make_strategy("autopeft", problem, CHOSEN["strategy_options"])
        for record in records[:told]:
            strategy.tell(record.request, Outcome.from_json(record.outcome.to_json()))
        assert list(strategy.ask(1)) == [records[told].request]


def test_the_reference_score_is_that_of_the_majority_class_on_the_search_split(model, data):
    mapping = {"model": str(model), "data": {"source": str(data)}, **CHOSEN}
    prepared = prepare(StudyConfig.from_mapping(mapping))
    assert prepared.problem.reference_score == prepared.task.majority
    assert 0.4 < prepared.problem.reference_score < 0.8
    strategy = make_strategy("autopeft", prepared.problem, {})
    assert strategy.reference_score == prepared.task.majority


# -- stopped at rungs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_are_stopped_at_rungs_and_an_interrupted_search_ends_as_the_one_that_was_not(study, tmp_path):
    whole = study("whole", **STOPPING)
    trials = whole.trials
    stopped = trials[~trials["full"]]
    assert set(stopped["steps"]) == {2}
    halted = stopped["plan"].isin(trials[trials["full"]]["plan"])
    assert (~halted).any()  # stopped for good
    assert set(whole.front["steps"]) == {6}
    assert trials[~trials["full"] & halted]["steps"].sum() + trials[trials["full"]]["steps"].sum() <= 9 * 6 + 2 * 9
    (rung,) = whole.summary["rungs"]
    assert rung["steps"] == 2
    assert rung["plans"] >= 4
    assert -1 <= rung["rank_correlation"] <= 1
    for steps in (8, 7):
        with pytest.raises(KeyboardInterrupt):
            study("cut", Interrupting(steps), **STOPPING)
    cut = study("cut", **STOPPING)
    columns = ["label", "cost", "score", "steps", "seed", "plan"]
    assert cut.trials[columns].equals(trials[columns])


def test_a_study_without_rungs_has_no_rank_correlation(study):
    assert study("s", trials=2).summary["rungs"] == []


# -- begun with what another study found ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_begins_with_what_another_one_observed(study, tmp_path):
    first = study("first")
    second = study("second", from_study=str(first.folder), budget="4%", trials=3)
    facts = second.summary["from_study"]
    assert facts == {
        "study": str(first.folder), "used_as": "observations", "evaluations": 7, "differences": [],
    }  # fmt: skip
    assert all(0 < cost <= second.summary["budget"]["parameters"] for cost in second.trials["cost"])
    new = [t for t in second.summary["trials"][1:] if "from the other study" not in t["label"]]
    assert {t["label"] for t in new} == {"autopeft"}  # there is no design: enough is known
    assert not [t for t in new if t["plan"] in [old["plan"] for old in first.summary["trials"]]]
    known = first.trials[first.trials["cost"] <= second.summary["budget"]["parameters"]]
    assert second.best.score >= known["score"].max()
    again = study("second", from_study=str(first.folder), budget="4%", trials=3)
    assert again.summary == second.summary


@pytest.mark.slow
def test_the_best_that_the_other_study_observed_is_trained_here_once_and_can_be_chosen(study, tmp_path):
    first = study("first")
    heir = study("heir", from_study=str(first.folder), trials=1)
    taken = heir.summary["trials"][1:]
    if first.summary["best"]["trial"] == 0:
        assert taken == []
    else:
        assert [t["plan"] for t in taken] == [first.summary["best"]["plan"]]
        assert taken[0]["label"].endswith(", from the other study")
        assert heir.summary["best"]["plan"] == first.summary["best"]["plan"]
        assert heir.best.score == pytest.approx(first.best.score)
        assert (heir.folder / "trials" / "001" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_study_of_another_task_opens_the_design_and_is_reported_apart(study, model, tmp_path):
    first = study("first")
    other = write_task(tmp_path / "other", kind="regression", train=60, validation=20)
    settings = {**CHOSEN, "trials": 4, "from_study": str(first.folder)}
    second = peftscout.search(model, other, study=tmp_path / "second", progress=False, **settings)
    facts = second.summary["from_study"]
    assert facts["used_as"] == "prior"
    assert any(line.startswith("task.kind") for line in facts["differences"])
    best = max(first.summary["trials"][1:], key=lambda t: t["score"])
    assert second.summary["trials"][1]["plan"] == best["plan"]
    console = tables.report(second)
    assert "were a prior; they are not among the trials" in str(console.renderables[-1])


def test_what_cannot_learn_from_another_study_is_refused_before_anything_is_written(study, tmp_path):
    with pytest.raises(ConfigError, match="from_study: strategy 'random' learns nothing from another study"):
        study("s", strategy="random", strategy_options={}, from_study=str(tmp_path))
    with pytest.raises(StudyError, match="is not a study"):
        study("s", from_study=str(tmp_path / "nowhere"))
    assert not (tmp_path / "s").exists()


def test_the_rungs_and_the_other_study_go_together(study, model, data):
    mapping = {"model": str(model), "data": {"source": str(data)}, **CHOSEN, **STOPPING}
    prepared = prepare(StudyConfig.from_mapping(mapping))
    strategy = with_fidelity(
        prepared.multi_fidelity, lambda p: make_strategy("autopeft", p, {"initial": 4}), prepared.problem
    )
    assert strategy.ask(1)[0].fidelity.steps == 6
