"""Ledgers in a database: one writer at a time, on a real PostgreSQL where there is one, and in SQLite everywhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from peftscout.database import WriteLock, database_url, shown
from peftscout.errors import StudyError
from peftscout.header import Header
from peftscout.ledger import Ledger
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.study import Study, read_records

BIN = [Path(p).parent for p in (shutil.which("initdb"), shutil.which("postgres")) if p]
HOLD = """
import sys
from pathlib import Path
from test_database import request
from peftscout.outcome import Outcome, State
from peftscout.header import Header
from peftscout.study import Study
with Study(Path(sys.argv[1]), Header({}, {}, {}, {}), sys.argv[2]) as study:
    study.fresh_trial_folder(study.ledger.start(request(1), "search", 0), request(1).plan)
    study.finish(0, Outcome(State.DONE, 8, 0.5))
    study.ledger.start(request(2), "search", 1)
    print("here", flush=True)
    sys.stdin.read()
"""


def request(rank: int) -> Evaluate:
    return Evaluate(Plan.of({("layers.0.attention.q", "lora"): rank}), Fidelity(10), 0)


def binaries() -> Path | None:
    """The folder of initdb and postgres: of Debian's packages, or on the path."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *BIN]
    return next((place for place in places if (place / "initdb").exists() and (place / "postgres").exists()), None)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL that was started for these tests, in a folder of its own, on a socket and no port."""
    programs = binaries()
    if programs is None:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'peftscout[postgresql]'")
    nobody = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # sockets have short paths; root's own folders are closed to others
    try:
        if nobody:
            shutil.chown(folder, "nobody", "nogroup")
        data = str(folder / "data")
        initdb = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "peft",
            "--auth=trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
        ]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/", **nobody)
        options = ["-k", str(folder), "-h", "", "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([programs / "postgres", "-D", data, *options], stderr=log, cwd="/", **nobody)
        try:
            url = f"postgresql://peft:secret@/postgres?host={folder}"
            wait_for(url, server)
            yield url
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(url: str, server: subprocess.Popen) -> None:
    import time

    engine = sqlalchemy.create_engine(database_url(url))
    for _ in range(200):
        try:
            engine.connect().close()
            engine.dispose()
            return
        except sqlalchemy.exc.OperationalError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request, tmp_path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db" if request.param == "sqlite" else request.getfixturevalue("postgresql")


@pytest.fixture
def study_name(request) -> str:
    """One database holds the ledgers of many studies, by the names of their folders."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]


def test_a_ledger_is_read_back_by_the_next_process(storage, study_name):
    ledger = Ledger.at(storage, name=study_name)
    ledger.finish(ledger.start(request(1), "search", 0), Outcome(State.DONE, 8, 0.5))
    ledger.finish(ledger.start(request(2), "search", 1), Outcome(State.FAILED, 16, message="on purpose"))
    ledger.start(request(3), "tune")
    for again in (Ledger.at(storage, name=study_name), Ledger.reading(storage, name=study_name)):
        assert again.records() == ledger.records()


def test_two_drivers_on_one_ledger_are_kept_apart_and_a_dead_one_is_taken_over(storage, study_name, tmp_path):
    """The second is on another machine: the folders are not the same, only the database is."""
    here, there = tmp_path / "here" / study_name, tmp_path / "there" / study_name
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(here), storage],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "here\n"
        who = f"process {holder.pid}" if storage.startswith("postgresql") else "another process"
        with pytest.raises(StudyError, match=f"{who} is working on it") as refused:
            Study(there, Header({}, {}, {}, {}), storage).__enter__()
        assert "secret" not in str(refused.value)
        with Study(tmp_path / "other" / "another-study", Header({}, {}, {}, {}), storage):
            pass  # another ledger in the same database is free
    finally:
        holder.kill()
        holder.communicate()
    with Study(here, Header({}, {}, {}, {}), storage) as study:
        assert [(r.request, r.told, r.outcome and r.outcome.score) for r in study.ledger.records()] == [
            (request(1), 0, 0.5), (request(2), 1, None)
        ]  # fmt: skip
        assert study.ledger.start(request(2), "search", 1) == 1
    assert [r.number for r in read_records(here, storage)] == [0, 1]


def test_a_driver_whose_lock_went_with_its_connection_writes_nothing_more(postgresql, study_name, tmp_path):
    with Study(tmp_path / study_name, Header({}, {}, {}, {}), postgresql) as study:
        number = study.ledger.start(request(1), "search")
        study.fresh_trial_folder(number, request(1).plan)
        engine = sqlalchemy.create_engine(database_url(postgresql))
        with engine.connect() as other:
            pid = other.execute(sqlalchemy.text("SELECT pid FROM pg_locks WHERE locktype = 'advisory'")).scalar()
            other.execute(sqlalchemy.text(f"SELECT pg_terminate_backend({pid})"))
        engine.dispose()
        with pytest.raises(StudyError, match="the connection that holds its lock broke"):
            study.finish(number, Outcome(State.DONE, 8, 0.5))
        assert Ledger.reading(postgresql, name=study_name).records()[0].outcome is None


def test_a_lock_is_given_back(storage, study_name):
    for _ in range(2):
        with WriteLock(storage, study_name) as lock:
            lock.check()
            with pytest.raises(StudyError, match="is working on it"), WriteLock(storage, study_name):
                pass


def test_a_database_that_is_not_there_is_said_without_the_password(tmp_path):
    with pytest.raises(StudyError, match=r"me:\*\*\*@/none.*cannot be opened") as refused:
        WriteLock(f"postgresql://me:secret@/none?host={tmp_path}", "s").__enter__()
    assert "secret" not in str(refused.value)
    with pytest.raises(StudyError, match="there is no folder"):
        WriteLock(f"sqlite:///{tmp_path}/none/ledger.db", "s").__enter__()


@pytest.mark.parametrize("storage", ["ledger.db", "", "postgres@host/x"])
def test_what_is_no_url_is_refused(storage):
    with pytest.raises(StudyError, match="write it as a URL"):
        database_url(storage)


def test_a_database_that_cannot_lock_is_refused():
    lock = WriteLock("postgresql://me@host/x", "s")
    lock._url = sqlalchemy.engine.make_url("oracle://me@host/x")
    with pytest.raises(StudyError, match="use PostgreSQL or MySQL"):
        lock._take(None, "me")


@pytest.mark.parametrize(("answer", "free"), [(1, True), (0, False), (None, False)])
def test_mysql_is_locked_by_name(answer, free):
    class Fake:
        """A connection to a MySQL that answers GET_LOCK."""

        def execute(self, statement, values):
            assert "GET_LOCK" in str(statement)
            assert len(values["name"]) <= 64
            return self

        def scalar(self):
            return answer

    lock = WriteLock("mysql+pymysql://me@host/x", "s")
    if free:
        lock._take(Fake(), "me")
        return
    with pytest.raises(StudyError, match="another process is working on it"):
        lock._take(Fake(), "me")


def test_passwords_are_not_shown():
    assert "secret" not in shown("postgresql://me:secret@host/x")
    assert database_url("postgresql+psycopg://me:secret@host/x").password == "secret"
