import os

import pytest

import peftscout
from peftscout.api import default_folder, read_plan, study_status
from peftscout.config import StudyConfig
from peftscout.errors import PlanError, StudyError
from peftscout.ledger import Ledger
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.study import write_json

PLAN = Plan.of({("layers.0.attention.q", "lora"): 2})
OTHER = Plan.of({("layers.0.attention.v", "lora"): 1})


def config(**changes) -> StudyConfig:
    return StudyConfig.from_mapping({"model": "org/some-model", "budget": "1%", "data": {"source": "rte"}, **changes})


def trial(number, stage, cost, score, plan=PLAN, state="done"):
    return {"number": number, "stage": stage, "cost": cost, "score": score, "state": state, "plan": plan.to_json()}


def result(tmp_path, trials) -> peftscout.Result:
    best = {"plan": PLAN.to_json(), "cost": 4, "score": 0.9}
    return peftscout.Result(tmp_path, {"trials": trials, "best": best, "verdict": "fine"})


def test_equal_configurations_meet_in_one_folder_and_different_ones_never_do():
    assert default_folder(config()) == default_folder(config())
    assert default_folder(config()) != default_folder(config(seed=1))
    assert default_folder(config()).name.startswith("some-model-rte-")


@pytest.mark.parametrize("model", ["../../etc/passwd", "a b/ü!", "/", "x" * 40])
def test_the_folder_of_a_study_stays_below_studies_whatever_the_model_is_called(model):
    folder = default_folder(config(model=model))
    assert folder.parts[0] == "studies"
    assert len(folder.parts) == 2
    assert ".." not in folder.parts


def test_the_front_of_a_result_leaves_out_final_and_failed_trials(tmp_path):
    r = result(
        tmp_path,
        [
            trial(0, "search", 10, 0.7),
            trial(1, "search", 4, 0.6, OTHER),
            trial(2, "search", 12, 0.65),
            trial(3, "search", 1, None, state="diverged"),
            trial(4, "tune", 10, 0.8),
            trial(5, "final", 2, 0.99),
        ],
    )
    assert list(r.front["number"]) == [1, 4]
    assert r.front["plan"].iloc[0] == OTHER


def test_a_result_reads_like_its_verdict(tmp_path):
    r = result(tmp_path, [trial(0, "search", 10, 0.7)])
    assert str(r) == r.verdict == "fine"
    assert r.best.plan == PLAN
    assert (r.best.cost, r.best.score) == (4, 0.9)


def test_a_plan_is_read_from_a_trial_or_from_a_summary(tmp_path):
    write_json(tmp_path / "plan.json", PLAN.to_json())
    write_json(tmp_path / "summary.json", {"best": {"plan": OTHER.to_json()}})
    assert read_plan(tmp_path / "plan.json") == PLAN
    assert read_plan(tmp_path / "summary.json") == OTHER


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", StudyError, "cannot be read"),
        ("[]", PlanError, "a plan is a JSON object"),
        ('{"best": {}}', PlanError, "a plan is a JSON object"),
        ('{"schema": 1, "placements": [["a", "lora", 0]]}', PlanError, "whole numbers from 1"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, text, error, message):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(error, match=message):
        read_plan(tmp_path / "plan.json")


def test_a_plan_that_is_nowhere_is_looked_for_among_the_published_ones(tmp_path):
    with pytest.raises(StudyError, match="no such file, nor a published plan; there are s4-model, s4-3b-model"):
        read_plan(tmp_path / "nothing.json")


def test_the_status_of_a_running_study_can_be_read_beside_it(tmp_path):
    write_json(tmp_path / "study.json", {"schema": 1, "config": {}, "data": {}, "model": {}, "versions": {}})
    assert study_status(tmp_path) == []
    ledger = Ledger.at(tmp_path / "ledger.journal")
    done = Evaluate(PLAN, Fidelity(5), 0, label="first")
    ledger.finish(ledger.start(done, "search"), Outcome(State.DONE, 64, 0.5, seconds=1.5))
    ledger.start(Evaluate(OTHER, Fidelity(5), 0, label="second"), "search")
    (tmp_path / "lock.holder").write_text(f"process {os.getpid()}")
    rows = study_status(tmp_path)
    assert [(r["label"], r["state"], r["score"]) for r in rows] == [("first", "done", 0.5), ("second", "running", None)]
    (tmp_path / "lock.holder").unlink()
    assert [row["state"] for row in study_status(tmp_path)] == ["done", "interrupted"], "nobody works on it any more"


def test_the_status_of_a_study_is_read_from_the_database_that_holds_its_ledger(tmp_path):
    storage, folder = f"sqlite:///{tmp_path}/ledger.db", tmp_path / "mine"
    folder.mkdir()
    write_json(
        folder / "study.json",
        {"schema": 1, "config": {"storage": storage}, "data": {}, "model": {}, "versions": {}},
    )
    ledger = Ledger.at(storage, name="mine")
    ledger.start(Evaluate(PLAN, Fidelity(5), 0, label="first"), "search")
    assert [row["label"] for row in study_status(folder)] == ["first"]


def test_the_public_names_are_there_and_nothing_else():
    assert sorted(peftscout.__all__) == peftscout.__all__
    for name in peftscout.__all__:
        assert getattr(peftscout, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        peftscout.serach  # noqa: B018
    assert set(dir(peftscout)) == {*peftscout.__all__, "__version__"}
