"""R3: a ledger that was cut at any byte of its last two records opens, loses only the torn one, and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from figures import record
from peftscout.errors import StudyError
from peftscout.ledger import Ledger, cut_torn_tail
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.seal import sealed

TRIALS = 4


def request(rank: int) -> Evaluate:
    return Evaluate(Plan.of({("layers.0.attention.q", "lora"): rank}), Fidelity(10), 0, 1.0, f"rank {rank}")


def outcome(rank: int) -> Outcome:
    return Outcome(State.DONE, 8 * rank, rank / 10, message='ä\n"')


def write(path: Path, trials: int) -> bytes:
    ledger = Ledger.at(path)
    for rank in range(1, trials + 1):
        ledger.finish(ledger.start(request(rank), "search"), outcome(rank))
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("l") / "ledger.journal", TRIALS)


def start_of_the_last_two(whole: bytes) -> int:
    """Offset of the first byte that belongs to one of the last two trials: each begins with Optuna's own line."""
    lines = whole.splitlines(keepends=True)
    begins = [n for n, line in enumerate(lines) if json.loads(line)["op_code"] == 4]
    assert len(begins) == TRIALS
    return sum(map(len, lines[: begins[-2]]))


def test_cut_at_every_byte_exactly_the_whole_lines_are_left(whole, tmp_path):
    """That what is cut off begins at a line's start is all that there is to see; what opens then is tested below."""
    path, torn = tmp_path / "ledger.journal", 0
    first = start_of_the_last_two(whole)
    for end in range(first, len(whole) + 1):
        path.write_bytes(whole[:end])
        cut_torn_tail(path)
        assert path.read_bytes() == whole[: whole.rfind(b"\n", 0, end) + 1]
        torn += 1
    assert torn > 1000
    record("torn offsets of the ledger tried", torn)


def test_whatever_is_left_opens_with_all_that_finished_and_takes_the_rest(whole, tmp_path):
    """Every number of whole lines, each followed by a part of the next one."""
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n") and n >= start_of_the_last_two(whole) - 1]
    for n, end in enumerate(ends):
        path = tmp_path / f"{n}" / "ledger.journal"
        path.parent.mkdir()
        path.write_bytes(whole[: end + 17])
        ledger = Ledger.at(path)
        done = [r.request for r in ledger.records() if r.outcome is not None]
        told = whole[:end].count(b'"outcome"')
        assert done == [request(rank) for rank in range(1, told + 1)]
        assert told >= TRIALS - 2
        for rank in range(told + 1, TRIALS + 1):
            ledger.finish(ledger.start(request(rank), "search"), outcome(rank))
        again = Ledger.at(path).records()
        assert [(r.number, r.request, r.outcome) for r in again] == [
            (rank - 1, request(rank), outcome(rank)) for rank in range(1, TRIALS + 1)
        ]


def test_a_line_that_is_damaged_in_the_middle_is_named(whole, tmp_path):
    path = tmp_path / "ledger.journal"
    lines = whole.splitlines(keepends=True)
    lines[3] = lines[3][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    for opened in (Ledger.at, Ledger.reading):
        with pytest.raises(StudyError, match=r"ledger\.journal: cannot be opened: line 4 is damaged"):
            opened(path)


def test_a_number_that_changed_is_refused_although_the_line_is_whole(whole, tmp_path):
    path = tmp_path / "ledger.journal"
    assert b'"score":0.2' in whole
    path.write_bytes(whole.replace(b'"score":0.2', b'"score":0.9'))
    with pytest.raises(StudyError, match=r"ledger\.journal.*the record of trial 1 cannot be read: it is not what was"):
        Ledger.at(path)


def test_an_outcome_under_another_number_is_refused(whole, tmp_path):
    path = tmp_path / "ledger.journal"
    lines = whole.splitlines(keepends=True)
    first, second, *_ = (n for n, line in enumerate(lines) if b'"outcome"' in line)
    one, other = (json.loads(lines[n]) for n in (first, second))
    one["user_attr"], other["user_attr"] = other["user_attr"], one["user_attr"]
    for n, line in ((first, one), (second, other)):
        lines[n] = json.dumps(line).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(StudyError, match=r"the record of trial 0 cannot be read"):
        Ledger.at(path)


def test_the_ledger_of_another_study_is_refused(tmp_path):
    path = tmp_path / "ledger.journal"
    Ledger.at(path, of="one")
    assert Ledger.at(path, of="one").records() == []
    for opened in (Ledger.at, Ledger.reading):
        with pytest.raises(StudyError, match="it is the ledger of another study"):
            opened(path, of="other")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_lock_that_a_killed_process_left_on_the_journal_keeps_nobody_waiting(tmp_path, monkeypatch, absolute):
    """Optuna's lock is a link; one that was made through a relative path leads nowhere and was waited for for ever."""
    import time

    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "ledger.journal" if absolute else Path("deep") / "ledger.journal"
    Ledger.at(path)
    Path("deep/ledger.journal.lock").symlink_to(path)
    Path("deep/ledger.journal.lock1234.rename").symlink_to(path)
    began = time.monotonic()
    Ledger.at(path).start(request(1), "search")
    assert time.monotonic() - began < 20
    assert [p.name for p in Path("deep").iterdir()] == ["ledger.journal"]


def test_a_ledger_of_before_there_were_seals_is_read_as_it_is(whole, tmp_path):
    """As the first version wrote it: no seals, no files."""
    path = tmp_path / "ledger.journal"

    def without_seals(found):
        return {key: value for key, value in found.items() if key not in ("seal", "files")}

    lines = [json.dumps(json.loads(line, object_hook=without_seals)) for line in whole.splitlines()]
    path.write_text("\n".join(lines) + "\n")
    assert b'"seal"' not in path.read_bytes()
    assert [(r.request, r.outcome) for r in Ledger.at(path).records()] == [
        (request(rank), outcome(rank)) for rank in range(1, TRIALS + 1)
    ]


def test_a_seal_depends_on_everything_but_the_order_of_keys():
    base = sealed({"a": 1, "b": [1.5, None]}, [3, "x"])
    assert sealed({"b": (1.5, None), "a": 1}, (3, "x"))["seal"] == base["seal"]
    others = [sealed({"a": 2, "b": [1.5, None]}, [3, "x"]), sealed({"a": 1, "b": [1.5, None]}, [4, "x"])]
    assert base["seal"] not in [other["seal"] for other in others]
