"""What trackers are told, and that a wrong one is refused before any time is spent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import peftscout
from peftscout import tracking
from peftscout.errors import ConfigError
from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.tracking import check_trackers, flat, scalars
from tiny_task import save_tiny_model, write_task

REQUEST = Evaluate(Plan.of({("layers.0.attention.q", "lora"): 1}), Fidelity(3), seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return str(write_task(tmp_path_factory.mktemp("data"), train=80, validation=20))


def search(model, data, study, **options):
    fixed = {"budget": "5%", "steps": 3, "trials": 3, "final": {"seeds": 0}, "progress": False}
    return peftscout.search(model, data, study=study, **{**fixed, **options})


def written(folder: Path) -> dict[str, dict[int, float]]:
    """Everything that TensorBoard finds below ``folder``: tag -> value by step."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: the extra track"
    )
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents*")):
        events = accumulator.EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


def test_tensorboard_gets_scores_costs_and_the_best_so_far_by_trial_and_a_second_call_adds_nothing(
    model, data, tmp_path
):
    pytest.importorskip("tensorboard", reason="needs tensorboard: the extra track")
    result = search(model, data, tmp_path / "s", report_to="tensorboard")
    found = written(tmp_path / "s" / "tracking")
    trials = result.trials.set_index("number")
    assert found["search/score"] == pytest.approx(dict(trials["score"]))
    assert found["search/cost"] == dict(trials["cost"])
    assert found["best_in_budget"] == pytest.approx(dict(trials["score"].cummax()))
    assert list((tmp_path / "s" / "tracking").rglob("hparams.yml")), "the configuration is kept, too"

    search(model, data, tmp_path / "s", report_to=["tensorboard", "tensorboard"])
    assert written(tmp_path / "s" / "tracking") == found


def test_an_unknown_tracker_is_refused_with_the_nearest_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"report_to 'tensorbord': not known.*tensorboard.*there are"):
        search("no-such-model", "no-such-data", tmp_path / "s", report_to="tensorbord")
    assert not (tmp_path / "s").exists()


def test_a_tracker_without_its_package_is_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ConfigError, match=r"pip install trackio"):
        search("no-such-model", "no-such-data", tmp_path / "s", report_to="trackio")
    with pytest.raises(ConfigError, match=r"pip install 'peftscout\[track\]'"):
        check_trackers(["tensorboard"])
    assert not (tmp_path / "s").exists()


def test_the_command_line_passes_trackers_on_and_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    from peftscout.cli import main

    command = ["peftscout", "search", "m", "--budget", "1%", "--data", "d", "--report-to", "wandbb"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    assert "wandb" in capsys.readouterr().err


def test_nothing_is_told_where_no_tracker_is_asked_for(model, data, tmp_path):
    search(model, data, tmp_path / "s", trials=1)
    assert not (tmp_path / "s" / "tracking").exists()


@pytest.mark.parametrize("names", [[], ["tensorboard"]])
def test_repetitions_are_dropped(names, monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    assert check_trackers([*names, *names]) == tuple(names)


def test_an_evaluation_without_a_score_has_a_cost_but_no_score():
    failed = Record(3, "tune", REQUEST, Outcome(State.FAILED, 64, seconds=1.5, message="on purpose"))
    assert scalars(failed, 0.5) == {"best_in_budget": 0.5, "tune/cost": 64, "tune/seconds": 1.5}
    assert scalars(failed, None) == {"tune/cost": 64, "tune/seconds": 1.5}
    assert scalars(Record(3, "search", REQUEST, None), None) == {}


def test_a_configuration_is_told_flat_and_without_what_is_not_given():
    config = {"model": "m", "training": {"batch_size": 3, "threads": None, "rates": {"lora": 0.1}}, "lr_scales": [1.0]}
    assert flat(config) == {"model": "m", "training.batch_size": 3, "training.rates.lora": 0.1, "lr_scales": "[1.0]"}
