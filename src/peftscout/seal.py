"""Seals: hashes by which what is read back is known to be what was written. Pure.

They find accidents (a bad disk, a copy cut short, files exchanged by hand), not a forger: whoever can write a file can
seal it. Files of before there were seals have none and are read as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "seal"
"""Where a sealed mapping keeps its seal."""

_BLOCK = 1 << 20


class BrokenSealError(ValueError):
    """What was read is not what was written."""


def seal_of(data: Any) -> str:
    """Return 32 hexadecimal digits that depend on all of ``data`` (JSON-able), but not on the order of keys."""
    plain = json.loads(json.dumps(data))  # as it will be read: tuples are lists, and keys are texts
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sealed(data: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
    """Return ``data`` with its seal. The seal holds in the same ``context`` only, such as the number of a trial."""
    return {**data, KEY: seal_of([dict(data), context])}


def unsealed(data: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
    """Return ``data`` without its seal, if it has one.

    Raises:
        BrokenSealError: when the seal is that of something else.
    """
    plain = {key: value for key, value in data.items() if key != KEY}
    if KEY in data and data[KEY] != seal_of([plain, context]):
        raise BrokenSealError("it is not what was written (damaged, changed by hand or exchanged)")
    return plain


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: when it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below ``folder``, by its path from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def first_difference(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Return ``path: what is wrong with it`` of the first file that is not there as it was, or ``None``."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{path}: is missing"
        if file_digest(path) != digest:
            return f"{path}: is not what was written (damaged, changed by hand or exchanged)"
    return None
