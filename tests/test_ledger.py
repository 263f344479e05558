import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from peftscout.errors import StudyError
from peftscout.ledger import Ledger, cut_torn_tail
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan


def request(rank: int, seed: int = 0) -> Evaluate:
    return Evaluate(Plan.of({("layers.0.attention.q", "lora"): rank}), Fidelity(10), seed, 1.0, f"rank {rank}")


def outcome(score: float | None) -> Outcome:
    return Outcome(State.DONE, 8, score) if score is not None else Outcome(State.DIVERGED, 8, message="NaN")


@pytest.fixture(params=["journal", "database"])
def place(request, tmp_path):
    return tmp_path / "ledger.journal" if request.param == "journal" else f"sqlite:///{tmp_path}/ledger.db"


def test_what_was_written_is_read_back_by_the_next_process(place):
    ledger = Ledger.at(place)
    for i, score in enumerate([0.5, None]):
        number = ledger.start(request(i + 1), "search")
        assert number == i
        ledger.finish(number, outcome(score))
    ledger.start(request(3), "final")
    again = Ledger.at(place)
    assert again.records() == ledger.records()
    assert [(r.number, r.stage, r.outcome) for r in again.records()] == [
        (0, "search", outcome(0.5)),
        (1, "search", outcome(None)),
        (2, "final", None),
    ]
    assert again.records()[0].request == request(1)
    assert again.records()[0].request.label == "rank 1"


def test_a_finished_request_is_recalled_and_a_running_one_is_not(place):
    ledger = Ledger.at(place)
    ledger.finish(ledger.start(request(1), "search"), outcome(0.5))
    ledger.start(request(2), "search")
    assert ledger.recall(request(1)).outcome == outcome(0.5)
    assert ledger.recall(request(1, seed=9)) is None
    assert ledger.recall(request(2)) is None


def test_an_interrupted_request_keeps_its_number(place):
    Ledger.at(place).start(request(1), "search")
    ledger = Ledger.at(place)
    assert ledger.start(request(1), "search") == 0
    assert ledger.start(request(2), "search") == 1


def test_a_crash_between_outcome_and_state_is_completed_on_opening(place):
    ledger = Ledger.at(place)
    number = ledger.start(request(1), "search")
    trial = ledger._study.get_trials()[number]
    optuna.trial.Trial(ledger._study, trial._trial_id).set_user_attr("outcome", outcome(0.25).to_json())
    again = Ledger.at(place)
    assert again.records()[0].outcome == outcome(0.25)
    assert again._study.get_trials()[0].state is optuna.trial.TrialState.COMPLETE


def test_a_crash_before_the_request_was_written_frees_the_number(place):
    ledger = Ledger.at(place)
    ledger._study.ask()
    again = Ledger.at(place)
    assert again.records() == []
    assert again.start(request(1), "search") == 0


def test_optuna_alone_reads_scores_costs_and_plans(place, tmp_path):
    ledger = Ledger.at(place)
    ledger.finish(ledger.start(request(4), "search"), outcome(0.75))
    storage = (
        place
        if isinstance(place, str)
        else optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(place)))
    )
    study = optuna.load_study(storage=storage, study_name="peftscout")
    assert study.best_value == 0.75
    assert study.best_trial.user_attrs["plan"] == "layers.0.attention.q: lora 4"
    assert study.best_trial.user_attrs["cost"] == 8


def test_reading_does_not_need_the_ledger_to_be_free_and_changes_nothing(place):
    ledger = Ledger.at(place)
    ledger.start(request(1), "search")
    assert [r.outcome for r in Ledger.reading(place).records()] == [None]


def test_a_ledger_that_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(StudyError, match="cannot be opened"):
        Ledger.reading(f"sqlite:///{tmp_path}/none/ledger.db")


def test_a_torn_last_record_is_cut_off_at_every_byte_and_the_journal_goes_on(tmp_path):
    whole = tmp_path / "whole.journal"
    ledger = Ledger.at(whole)
    ledger.finish(ledger.start(request(1), "search"), outcome(0.5))
    complete = whole.read_bytes()
    ledger.finish(ledger.start(request(2), "search"), outcome(0.6))
    data = whole.read_bytes()
    for end in range(len(complete), len(data), 37):
        torn = tmp_path / f"{end}.journal"
        torn.write_bytes(data[:end])
        opened = Ledger.at(torn)
        assert opened.recall(request(1)).outcome == outcome(0.5)
        if opened.recall(request(2)) is None:
            opened.finish(opened.start(request(2), "search"), outcome(0.6))
        assert Ledger.at(torn).recall(request(2)).outcome == outcome(0.6)
        assert len(Ledger.at(torn).records()) == 2


def test_what_is_cut_off_is_kept_beside_the_journal(tmp_path):
    path = tmp_path / "ledger.journal"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    cut_torn_tail(path)
    assert path.read_bytes() == b'{"a": 1}\n'
    assert path.with_name("ledger.journal.torn").read_bytes() == b'{"b": \n'
    cut_torn_tail(path)
    assert path.read_bytes() == b'{"a": 1}\n'


def test_a_last_line_of_zeros_after_a_power_cut_is_cut_off(tmp_path):
    path = tmp_path / "ledger.journal"
    path.write_bytes(b'{"a": 1}\n' + bytes(20) + b"\n")
    cut_torn_tail(path)
    assert path.read_bytes() == b'{"a": 1}\n'


@pytest.mark.slow
def test_a_process_killed_while_it_writes_loses_nothing_that_finished(tmp_path):
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger import outcome, request
from peftscout.ledger import Ledger
ledger = Ledger.at(Path(sys.argv[1]))
for rank in range(1, 1000):
    if ledger.recall(request(rank)) is None:
        ledger.finish(ledger.start(request(rank), "search"), outcome(rank / 1000))
        print(rank, flush=True)
"""
    place = tmp_path / "ledger.journal"
    here = str(Path(__file__).parent)
    last = 0
    for lines in (3, 5, 7):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(place), here], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(lines):
                last = int(process.stdout.readline())
            process.kill()
        records = Ledger.at(place).records()
        finished = [r for r in records if r.outcome is not None]
        assert len(finished) >= last
        assert [r.number for r in records] == list(range(len(records)))
        assert all(r.request == request(i + 1) for i, r in enumerate(records))


def test_the_journal_holds_plain_json_lines(tmp_path):
    ledger = Ledger.at(tmp_path / "l.journal")
    ledger.finish(ledger.start(request(1), "search"), outcome(0.5))
    assert all(json.loads(line) for line in (tmp_path / "l.journal").read_text().splitlines())


def test_an_outcome_is_written_in_one_piece_and_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    ledger = Ledger.at(tmp_path / "ledger.journal")
    number = ledger.start(request(1), "search", 0)
    written = []
    append = JournalFileBackend.append_logs
    monkeypatch.setattr(JournalFileBackend, "append_logs", lambda self, logs: written.append(len(logs)))
    ledger.start(request(2), "search")
    monkeypatch.setattr(ledger, "_tell", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ledger.finish(number, outcome(0.5))
    assert written == [1]
    monkeypatch.undo()
    assert Ledger.at(tmp_path / "ledger.journal").records()[0].outcome is None
    monkeypatch.setattr(
        JournalFileBackend, "append_logs", lambda self, logs: written.append(len(logs)) or append(self, logs)
    )
    again = Ledger.at(tmp_path / "ledger.journal")
    del written[:]
    again.finish(number, outcome(0.5))
    assert written == [4]
    assert Ledger.at(tmp_path / "ledger.journal").records() == again.records()


def test_many_records_are_found_by_their_request_and_not_by_going_through_them(tmp_path):
    ledger = Ledger.at(tmp_path / "ledger.journal")
    for rank in range(1, 6):
        ledger.finish(ledger.start(request(rank), "search"), outcome(0.1 * rank))
    ledger.records = lambda: 1 / 0  # type: ignore[method-assign]
    assert ledger.recall(request(3)).number == 2
    assert ledger.recall(request(9)) is None
    assert ledger.start(request(9), "tune") == 5
    assert ledger.start(request(9), "tune") == 5
    assert ledger.start(request(9), "final") == 6
