"""Trouble with the disk: it is full, a quota is used up, a folder cannot be written. Pure.

Such an error is not a result of the plan that was being trained. It stops the study, and the trial runs again when
there is room.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftscout.errors import DiskError

_TROUBLES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "a file may not become as large as it has to be",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "it may not be written",
    errno.EPERM: "it may not be written",
    errno.EIO: "the disk fails",
    errno.ENAMETOOLONG: "a name in this path is too long",
    errno.ELOOP: "the links in this path lead in a circle",
    errno.ENOTDIR: "a part of this path is a file",
}
_OF_LIBRARIES = re.compile(r"os error (\d+)")
"""How safetensors, which is written in Rust, tells the number of an error."""


def trouble(error: BaseException) -> str | None:
    """Return what is wrong with the disk, if that is what ``error`` or what it came from is about."""
    found: BaseException | None = error
    while found is not None:
        number = found.errno if isinstance(found, OSError) else None
        told = _OF_LIBRARIES.search(str(found))
        number = int(told[1]) if number is None and told else number
        if number in _TROUBLES:
            return _TROUBLES[number]
        found = found.__cause__
    return None


def free_bytes(folder: Path) -> int:
    """Return how much may be written where ``folder`` is, or will be."""
    place = folder.absolute()
    while place != place.parent:
        try:
            return shutil.disk_usage(place).free
        except OSError:  # it is not there yet, or cannot be
            place = place.parent
    return shutil.disk_usage(place).free


def require_space(folder: Path, needed: int) -> None:
    """Raise a DiskError, before any time is spent, when ``needed`` bytes do not fit where ``folder`` will be."""
    if (free := free_bytes(folder)) < needed:
        raise DiskError(
            f"{folder}: its trials need about {megabytes(needed)}, and {megabytes(free)} are free there; make room, "
            "give a --study folder on another disk, or a smaller budget or number of trials"
        )


@contextmanager
def disk_trouble_named(folder: Path, needed: int) -> Iterator[None]:
    """Turn errors of the disk inside into a DiskError with the remedy; ``needed``: bytes that the whole study takes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskError) or (what := trouble(error)) is None:
            raise
        free = megabytes(free_bytes(folder))
        raise DiskError(
            f"{folder}: {what} ({error}); {free} are free there, and all trials together take about "
            f"{megabytes(needed)}. Nothing that finished is lost: mend it and run the same command again"
        ) from error


def megabytes(size: int) -> str:
    """Return bytes in words."""
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
