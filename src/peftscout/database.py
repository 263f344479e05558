"""The database of a ledger: which driver opens it, and the right to write, which one process has at a time.

The right is a lock of the database itself, held by a connection: it ends with the process that has it, however that
ends, and nobody has to guess from a clock whether a holder is alive.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy
from filelock import FileLock, Timeout
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from peftscout.errors import StudyError

_HOLDER = sqlalchemy.text(
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
    "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 "
    "AND ((l.classid::bigint << 32) | l.objid::bigint) = :key"
)


def database_url(storage: str) -> URL:
    """Return the URL of a database; ``postgresql://`` means the driver that is installed.

    Raises:
        StudyError: when it is no URL.
    """
    try:
        url = make_url(storage)
    except ArgumentError:
        raise StudyError(f"storage {storage!r}: write it as a URL: postgresql://user@host/database") from None
    if url.drivername == "postgresql" and find_spec("psycopg2") is None:
        return url.set(drivername="postgresql+psycopg")
    return url


def shown(storage: str) -> str:
    """Return the URL without its password, for people."""
    return database_url(storage).render_as_string(hide_password=True)


class WriteLock:
    """The right to write the ledger of one name in one database. A context manager.

    Args:
        storage: URL of the database: PostgreSQL, MySQL, MariaDB, or SQLite on a disk of this machine.
        name: of the ledger.

    Raises:
        StudyError: when another process has it, the database cannot be reached, or knows no such locks.
    """

    def __init__(self, storage: str, name: str) -> None:
        self._url, self._name = database_url(storage), name
        self._context: AbstractContextManager[None] = nullcontext()
        self._connection: Connection | None = None

    def __enter__(self) -> WriteLock:
        self._context = self._acquired()
        self._context.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__(None, None, None)

    def check(self) -> None:
        """Make sure that the right is still there: it went with its connection if that broke.

        Raises:
            StudyError: when it is gone.
        """
        if self._connection is None:
            return
        try:
            self._connection.execute(sqlalchemy.text("SELECT 1"))
        except SQLAlchemyError as error:
            raise StudyError(
                f"ledger {self._name} in {self._shown}: the connection that holds its lock broke "
                f"({_first_line(error)}); what is finished is safe: run the same command again to go on"
            ) from None

    @contextmanager
    def _acquired(self) -> Iterator[None]:
        if self._url.get_backend_name() == "sqlite":
            with self._of_file():
                yield
            return
        me = f"peftscout on {platform.node()}, process {os.getpid()}"
        try:
            engine = sqlalchemy.create_engine(self._url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
            connection = engine.connect()
        except (ImportError, SQLAlchemyError) as error:
            hint = ": pip install 'peftscout[postgresql]'" if isinstance(error, ImportError) else ""
            raise StudyError(f"storage {self._shown}: cannot be opened: {_first_line(error)}{hint}") from None
        with connection:
            self._take(connection, me)
            self._connection = connection
            try:
                yield
            finally:
                self._connection = None

    def _take(self, connection: Connection, me: str) -> None:
        match self._url.get_backend_name():
            case "postgresql":
                connection.execute(
                    sqlalchemy.text("SELECT set_config('application_name', :me, false)"), {"me": me[:63]}
                )
                key = {"key": _key(self._name)}
                if not connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
                    raise self._taken(connection.execute(_HOLDER, key).scalar())
            case "mysql" | "mariadb":
                name = {"name": f"peftscout-{_key(self._name)}"}
                if connection.execute(sqlalchemy.text("SELECT GET_LOCK(:name, 0)"), name).scalar() != 1:
                    raise self._taken(None)
            case other:
                raise StudyError(
                    f"storage {self._shown}: {other} is not known to keep two processes apart; use PostgreSQL or MySQL"
                )

    @contextmanager
    def _of_file(self) -> Iterator[None]:
        """Lock a file beside a database that is a file; one in memory is nobody else's."""
        if not self._url.database or self._url.database == ":memory:":
            yield
            return
        place = Path(self._url.database)
        if not place.parent.is_dir():
            raise StudyError(f"storage {self._shown}: there is no folder {place.parent}")
        try:
            with FileLock(place.with_name(f"{place.name}.{_key(self._name):x}.lock"), blocking=False):
                yield
        except Timeout:
            raise self._taken(None) from None

    def _taken(self, holder: object) -> StudyError:
        return StudyError(
            f"ledger {self._name} in {self._shown}: {holder or 'another process'} is working on it; wait for it, or "
            "choose another --study"
        )

    @property
    def _shown(self) -> str:
        return self._url.render_as_string(hide_password=True)


def _key(name: str) -> int:
    """Return a positive number of 63 bits for the ledger ``name``."""
    return int.from_bytes(hashlib.sha256(f"peftscout/{name}".encode()).digest()[:8], "big") >> 1


def _first_line(error: BaseException) -> str:
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
