import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fake_headers import header
from peftscout.config import StudyConfig
from peftscout.errors import StudyError
from peftscout.header import Change
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.study import Study, is_made_by_trials, read_changes, read_header, read_records, read_summary, write_json

HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from fake_headers import header
from peftscout.study import Study
with Study(Path(sys.argv[1]), header()):
    print("in", flush=True)
    time.sleep(60)
"""
PLAN = Plan.of({("layers.0.attention.q", "lora"): 2})


def test_the_same_header_opens_a_study_again(tmp_path):
    with Study(tmp_path / "s", header()):
        pass
    with Study(tmp_path / "s", header()) as study:
        assert study.ledger.records() == []
    assert read_header(tmp_path / "s") == header()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (header(training={"clip": 2.0}), "config.training.clip: 1.0 -> 2.0"),
        (header({"kind": "regression"}), "data.kind: 'classification' -> 'regression'"),
        (replace(header(), model={**header().model, "fingerprint": "xyz"}), "model.fingerprint: 'f' -> 'xyz'"),
        (replace(header(), versions={"torch": "3"}), "versions.torch: None -> '3'"),
        (replace(header(), arithmetic={"dtype": "bf16", "attention": None}), "arithmetic.dtype: 'fp32' -> 'bf16'"),
        (header(trials=30), "config.trials: 12 -> 30"),
    ],
)
def test_anything_else_is_refused_with_the_difference(tmp_path, change, line):
    with Study(tmp_path / "s", header()):
        pass
    before = (tmp_path / "s" / "study.json").read_bytes()
    with pytest.raises(StudyError, match="made with something else") as error, Study(tmp_path / "s", change):
        pass
    assert line in str(error.value)
    assert (tmp_path / "s" / "study.json").read_bytes() == before


# -- changes that are asked for --------------------------------------------------------------------------------------


def accepting(folder, changed):
    return Study(folder, changed, accept_change=True)


def one_outcome(study, seed=0):
    request = Evaluate(PLAN, Fidelity(10), seed)
    number = study.ledger.start(request, "search")
    study.fresh_trial_folder(number, PLAN)
    study.finish(number, Outcome(State.DONE, 2, 0.5, steps=10))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (replace(header(), versions={"torch": "3"}), "versions.torch: None -> '3'"),
        (replace(header(), arithmetic={"dtype": "bf16", "attention": None}), "arithmetic.dtype: 'fp32' -> 'bf16'"),
        (header(trials=30), "config.trials: 12 -> 30"),
        (header(strategy="random"), "config.strategy: 'auto' -> 'random'"),
    ],
)
def test_a_change_that_is_accepted_is_recorded_and_its_outcomes_stay(tmp_path, change, line):
    folder = tmp_path / "s"
    with Study(folder, header()) as study:
        one_outcome(study)
        study.write_summary({"schema": 1, "best": 1})
    (folder / "search").mkdir()
    with accepting(folder, change) as study:
        assert study.changes == (Change(1, (line,)),)
        assert [r.number for r in study.ledger.records()] == [0]
        one_outcome(study, seed=1)
        study.write_summary({"schema": 1, "best": 2})
    assert read_changes(folder) == (Change(1, (line,)),)
    assert (read_header(folder), len(read_records(folder)), read_summary(folder)["best"]) == (change, 2, 2)
    assert json.loads((folder / "summary.before-change-1.json").read_text())["best"] == 1
    assert (folder / "search").exists() == ("strategy" not in line)  # another strategy has another supernet
    with Study(folder, change) as study:  # from now on it is made with this
        assert len(study.changes) == 1
    with pytest.raises(StudyError, match="made with something else"), Study(folder, header()):
        pass


def test_each_accepted_change_is_kept_with_the_evaluations_before_it(tmp_path):
    folder = tmp_path / "s"
    with Study(folder, header()) as study:
        one_outcome(study)
    with accepting(folder, header(trials=30)) as study:
        one_outcome(study, seed=1)
        study.write_summary({"schema": 1})
    with accepting(folder, header(trials=60)) as study:
        told = [str(change) for change in study.changes]
    assert told == [
        "after 1 evaluations this study went on with something else: config.trials: 12 -> 30",
        "after 2 evaluations this study went on with something else: config.trials: 30 -> 60",
    ]
    assert {p.name for p in folder.glob("*.before*")} == {"summary.before-change-2.json"}


def test_without_a_difference_there_is_nothing_to_accept(tmp_path):
    with accepting(tmp_path / "s", header()) as study:
        assert study.changes == ()
    before = (tmp_path / "s" / "study.json").read_bytes()
    with accepting(tmp_path / "s", header()):
        pass
    assert (tmp_path / "s" / "study.json").read_bytes() == before


OTHER_ROWS = {name: {"rows": 8, "sha256": name * 11} for name in ("train", "search", "report")}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (header({"splits": OTHER_ROWS}), "data.splits.report.sha256: "),
        (header({"labels": ["yes", "no"]}), "data.labels: "),
        (replace(header(), model={**header().model, "fingerprint": "xyz"}), "model.fingerprint: 'f' -> 'xyz'"),
        (header(training={"batch_size": 8}), "training.batch_size: 32 -> 8"),
        (header(dtype="bfloat16"), "dtype: None -> 'bfloat16'"),
        (header(model="n", seed=1), "model: 'm' -> 'n'"),
        (header(also=[{"source": "cb", "max_length": 9}]), "also.max_length: [] -> [9]"),
        (header(from_study="other"), "from_study: None -> 'other'"),
    ],
)
def test_a_change_that_would_make_scores_false_is_refused_whoever_asks(tmp_path, change, line):
    folder = tmp_path / "s"
    with Study(folder, header()) as study:
        one_outcome(study)
        study.write_summary({"schema": 1})
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}
    with pytest.raises(StudyError, match="Scores of before would not be those of this study") as error:
        accepting(folder, change).__enter__()
    assert line in str(error.value)
    assert f"--from-study {folder}" in str(error.value)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.parametrize("part", ["data", "model"])
def test_a_header_that_does_not_say_what_scores_depend_on_allows_no_change(tmp_path, part):
    with Study(tmp_path / "s", replace(header(), **{part: {}})):
        pass
    with pytest.raises(StudyError, match="the header does not say it"):
        accepting(tmp_path / "s", header()).__enter__()


def test_data_that_moved_but_have_the_same_rows_may_be_accepted(tmp_path):
    with Study(tmp_path / "s", header({"files": {"train": {"name": "a.csv"}}})):
        pass
    moved = header({"files": {"train": {"name": "b.csv"}}}, data={"source": "elsewhere"})
    with accepting(tmp_path / "s", moved) as study:
        assert len(study.changes[0].differences) == 2


def test_a_study_that_another_process_holds_is_not_changed(tmp_path):
    with (
        Study(tmp_path / "s", header()),
        pytest.raises(StudyError, match="is working in it"),
        accepting(tmp_path / "s", header(trials=30)),
    ):
        pass
    assert read_changes(tmp_path / "s") == ()


def test_two_processes_cannot_work_in_one_study(tmp_path):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD,
            str(tmp_path / "s"),
            str(Path(__file__).parent),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(StudyError, match=f"process {holder.pid} is working in it"), Study(tmp_path / "s", header()):
            pass
    finally:
        holder.kill()
        holder.wait()
    with Study(tmp_path / "s", header()):  # a dead holder is taken over
        pass


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StudyError, match="not empty and not a study"), Study(tmp_path, header()):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_study_folder(tmp_path):
    (tmp_path / "s").write_text("")
    with pytest.raises(StudyError, match="is a file"), Study(tmp_path / "s", header()):
        pass


def test_what_an_interrupted_trial_left_is_cleared_before_it_runs_again(tmp_path):
    with Study(tmp_path / "s", header()) as study:
        (study.fresh_trial_folder(0, PLAN) / "half").write_text("written")
        folder = study.fresh_trial_folder(0, PLAN)
    assert [p.name for p in folder.iterdir()] == ["plan.json"]
    assert Plan.from_json(json.loads((folder / "plan.json").read_text())) == PLAN


def test_an_outcome_is_on_disk_before_the_ledger_says_finished(tmp_path):
    with Study(tmp_path / "s", header()) as study:
        number = study.ledger.start(Evaluate(PLAN, Fidelity(1), 0), "search")
        study.fresh_trial_folder(number, PLAN)
        study.finish(number, Outcome(State.DONE, 3, 0.5))
        assert json.loads((study.trial_folder(number) / "outcome.json").read_text())["score"] == 0.5
        assert [r.outcome.score for r in read_records(tmp_path / "s")] == [0.5]


@pytest.mark.parametrize("begun", [None, b"", b'{"op_code":0,"worker_id":"'])
def test_a_study_that_was_killed_before_its_ledger_had_a_line_has_no_records_yet(tmp_path, begun):
    with Study(tmp_path / "s", header()):
        pass
    journal = tmp_path / "s" / "ledger.journal"
    journal.unlink()
    if begun is not None:
        journal.write_bytes(begun)
    assert read_records(tmp_path / "s") == []
    with Study(tmp_path / "s", header()) as study:
        assert study.ledger.records() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}'])
def test_a_damaged_header_is_named(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(StudyError, match="study.json"):
        read_header(tmp_path)


def test_an_unfinished_study_has_no_summary_yet(tmp_path):
    with pytest.raises(StudyError, match="is not a study"):
        read_summary(tmp_path)
    with Study(tmp_path / "s", header()):
        pass
    with pytest.raises(StudyError, match="run the same search again"):
        read_summary(tmp_path / "s")
    (tmp_path / "s" / "summary.json").write_text("{")
    with pytest.raises(StudyError, match="cannot be read"):
        read_summary(tmp_path / "s")


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_failure_while_opening_gives_the_lock_back(tmp_path):
    with Study(tmp_path / "s", header()):
        pass
    with pytest.raises(StudyError), Study(tmp_path / "s", replace(header(), versions={"torch": "9"})):
        pass
    with Study(tmp_path / "s", header()):
        pass


def test_an_option_that_there_was_not_when_a_study_began_is_no_difference_while_it_is_as_by_default(tmp_path):
    config = StudyConfig.from_mapping({"model": "m", "budget": 5, "data": {"source": "rte"}})
    with Study(tmp_path / "s", replace(header(), config=config.deciding())):
        pass
    said = json.loads((tmp_path / "s" / "study.json").read_text())
    del said["config"]["fidelity"], said["seal"]
    write_json(tmp_path / "s" / "study.json", said)
    with Study(tmp_path / "s", replace(header(), config=config.deciding())):
        pass
    other = {**config.deciding(), "fidelity": "halving"}
    with (
        pytest.raises(StudyError, match="config.fidelity: 'full' -> 'halving'"),
        Study(tmp_path / "s", replace(header(), config=other)),
    ):
        pass


@pytest.mark.parametrize("holder", ["process 1", f"process {2**22}", "", "\x00"])
def test_who_is_said_to_hold_a_study_does_not_hold_it_when_nobody_does(tmp_path, holder):
    """After a crash the note names a process that is gone, or another one that has got its number since."""
    with Study(tmp_path / "s", header()):
        pass
    (tmp_path / "s" / "lock.holder").write_text(holder)
    (tmp_path / "s" / "lock").touch()
    with Study(tmp_path / "s", header()) as study:
        assert study.ledger.records() == []
        assert (tmp_path / "s" / "lock.holder").read_text() == f"process {os.getpid()}"


def test_what_a_try_made_is_moved_into_the_trial_and_other_tries_are_gone(tmp_path):
    with Study(tmp_path / "s", header()) as study:
        folder = study.fresh_trial_folder(0, Plan.of({("layers.0.attention.q", "lora"): 1}))
        for attempt in ("a", "b"):
            (folder / f"attempt-{attempt}" / "adapter").mkdir(parents=True)
            (folder / f"attempt-{attempt}" / "adapter" / "adapter_config.json").write_text(attempt)
        study.accept(0, folder / "attempt-b", {"predictions.safetensors": b"123"})
    assert (folder / "adapter" / "adapter_config.json").read_text() == "b"
    assert (folder / "predictions.safetensors").read_bytes() == b"123"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter", "plan.json", "predictions.safetensors"]


@pytest.mark.parametrize("name", ["../study.json", "/tmp/x.json", "adapter/../../x.json", "x.bin", "x.pt", "x", ".pkl"])
def test_no_file_of_a_worker_leaves_its_trial_or_is_of_an_unknown_kind(tmp_path, name):
    assert not is_made_by_trials(name)
    with Study(tmp_path / "s", header()) as study:
        folder = study.fresh_trial_folder(0, Plan.of({("layers.0.attention.q", "lora"): 1}))
        before = (tmp_path / "s" / "study.json").read_text()
        with pytest.raises(StudyError, match="a worker sent what no trial makes"):
            study.accept(0, folder / "attempt-a", {name: b"{}"})
        assert (tmp_path / "s" / "study.json").read_text() == before
        assert sorted(path.name for path in folder.iterdir()) == ["plan.json"]
