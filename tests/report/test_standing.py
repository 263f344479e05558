"""How a study stands."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from study_data import LORA, MIXED, SITES

from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.report.standing import BARS, LONGEST, phase_of, shown, sparkline, standing


def record(number, score, plan=MIXED, stage="search", fidelity=None, ended=True):
    state = State.DONE if score is not None else State.FAILED
    outcome = Outcome(state, plan.cost(SITES), score, seconds=10.0) if ended else None
    return Record(number, stage, Evaluate(plan, fidelity or Fidelity(5), 0), outcome)


RECORDS = [record(0, 0.5, LORA), record(1, 0.4), record(2, None), record(3, 0.7), record(4, None, ended=False)]


def text(*arguments) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(shown(standing(*arguments)))
    return console.file.getvalue()


def test_best_front_and_time_left_follow_from_the_records():
    s = standing(RECORDS, "running", 10)
    assert (s.ended, s.most, s.seconds, s.left) == (4, 10, 40.0, 60.0)
    assert s.best == (0.7, MIXED.cost(SITES))
    assert s.scores == (0.5, 0.5, 0.7)
    assert s.front == (1 if MIXED.cost(SITES) <= LORA.cost(SITES) else 2)


def test_scores_of_the_report_split_and_of_lower_rungs_are_no_part_of_it():
    low = record(1, 0.9, fidelity=Fidelity(2, rungs=(2, 5)))
    s = standing([record(0, 0.5), low, record(2, 0.8, stage="final")], "running", 5)
    assert s.best is not None
    assert s.best[0] == 0.5


def test_of_equal_scores_the_cheaper_plan_is_the_best():
    s = standing([record(0, 0.5, LORA), record(1, 0.5, MIXED)], "running", 5)
    assert s.best == (0.5, min(LORA.cost(SITES), MIXED.cost(SITES)))


def test_a_study_that_has_finished_has_no_time_left_whatever_it_might_have_taken():
    s = standing(RECORDS, "finished", 10)
    assert s.left is None
    assert s.most == s.ended
    assert text(RECORDS, "finished", 10).startswith("finished: 4 evaluations in 0:00:40\nbest in budget 0.7000 with ")


def test_a_study_that_has_just_begun_says_so():
    s = standing([], "running", 10)
    assert (s.best, s.left, s.front, s.scores) == (None, None, 0, ())
    assert text([], "running", 10) == "running: 0 of at most 10 evaluations in 0:00:00\n"
    assert "about 0:01:00 left at most" in text(RECORDS, "running", 10)


def test_the_phase_is_read_from_the_folder(tmp_path):
    assert phase_of(tmp_path) == "stopped"
    (tmp_path / "lock.holder").write_text(f"process {os.getpid()}")
    assert phase_of(tmp_path) == "running"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "lock.holder").write_text(f"process {gone.pid}")
    assert phase_of(tmp_path) == "stopped"
    (tmp_path / "summary.json").write_text("{}")
    assert phase_of(tmp_path) == "finished"


@pytest.mark.parametrize("text", ["", "process", "process 99999999999999999999", "someone else"])
def test_a_damaged_holder_is_nobody(tmp_path, text):
    (tmp_path / "lock.holder").write_text(text)
    assert phase_of(tmp_path) == "stopped"


@given(st.lists(st.floats(-1e6, 1e6), max_size=200))
def test_a_sparkline_is_short_and_shows_the_highest_as_the_highest_bar(values):
    line = sparkline(values)
    assert len(line) == min(len(values), LONGEST)
    assert set(line) <= set(BARS)
    if 1 < len(values) <= LONGEST and max(values) - min(values) > 1e-3:
        assert line[values.index(max(values))] == BARS[-1]
        assert line[values.index(min(values))] == BARS[0]
