"""Activations of encoded rows on disk: computed once, memory-mapped by every trial, within a limit of bytes.

A file (see `peftscout.training.activation_file`) gets its name when it is complete and safe on the disk, so what a
killed builder leaves is never read. Names are hashes of everything that decides the content (see
`peftscout.training.activation_key`), so nothing in a folder can be out of date.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from itertools import chain
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from peftscout.training.activation_file import Entry, Indices, Layout, read, write

PATIENCE = 600.0
"""Seconds to wait for another process that is computing the same entry."""

_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.unfinished")

_log = logging.getLogger(__name__)


class ActivationCache:
    """A folder of entries that may take ``limit_bytes``; those that were not used for longest make room for new ones.

    Any number of processes may use a folder at once; what one computes, the others wait for and read. Whatever goes
    wrong with the disk costs the cache and no more. A file that is removed while a trial reads it stays readable to it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._checked: set[tuple[str, int]] = set()

    def entry(self, key: str) -> Entry | None:
        """Return what is stored under ``key``; a file that is damaged or something else is removed and not read.

        A file is compared with its hash when this process reads it first: gigabytes take seconds.
        """
        path = self._path(key)
        try:
            file = (key, path.stat().st_ino)
            entry = read(path, key, check=file not in self._checked)
            self._checked.add(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s: cannot be read: %s", path, error)
            return None
        except (SafetensorError, ValueError) as error:
            _log.warning("%s: damaged, its activations are computed again (%s)", path, error)
            _remove(path)
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return entry

    def build(
        self,
        key: str,
        lengths: Indices,
        batches: Iterator[tuple[Indices, Tensor]],
        *,
        left_padded: bool = False,
        store_as: torch.dtype | None = None,
    ) -> Entry | str:
        """Store what ``batches`` computes and return it; or the reason why it is not stored.

        When the entry is there by now, from this or another process, nothing is computed.

        Args:
            key: 64 hexadecimal digits.
            lengths: tokens of every sequence, ``[rows, C]``; C = 1 without choices.
            batches: (indices of rows ``[B]``, padded activations ``[B * C, S, H]``); every row once, in any order.
            left_padded: on which side.
            store_as: dtype of the file; by default that of the activations, which keeps every bit.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock(key, PATIENCE):
                found = self.entry(key)
                return self._build(key, lengths, batches, left_padded, store_as) if found is None else found
        except Timeout:
            return f"another process has been computing the same activations for {PATIENCE / 60:.0f} minutes"
        except Exception as error:  # whatever it is: training goes on without
            return f"the activations could not be computed or stored: {type(error).__name__}: {error}"

    def _build(
        self,
        key: str,
        lengths: Indices,
        batches: Iterator[tuple[Indices, Tensor]],
        left_padded: bool,
        store_as: torch.dtype | None,
    ) -> Entry | str:
        first = next(batches)
        dtype = first[1].dtype
        layout = Layout(key, lengths, first[1].shape[-1], dtype, store_as or dtype)
        if layout.size > self._limit:
            return f"{_megabytes(layout.size)} of activations exceed the cache limit of {_megabytes(self._limit)}"
        self._make_room(layout.size, key)
        unfinished = self._path(key).with_suffix(".unfinished")
        try:
            with unfinished.open("wb") as file:
                write(file, layout, chain([first], batches), left_padded)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._path(key))
        finally:
            _remove(unfinished)
        stored = self.entry(key)
        return "the activations were removed as soon as they were stored" if stored is None else stored

    def _make_room(self, size: int, key: str) -> None:
        """Remove what killed builders left, then entries, longest unused first, until ``size`` more bytes fit.

        The lock of ``key`` is held: nobody else is building what shares it.
        """
        for path in self._files(_UNFINISHED):
            with suppress(Timeout):  # a living builder holds its lock
                if path.name[0] == key[0]:
                    _remove(path)
                else:
                    with self._lock(path.name, 0):
                        _remove(path)
        entries = sorted(use for path in self._files(_ENTRY) if (use := _use(path)) is not None)
        total = sum(held for _, held, _ in entries)
        for _, held, path in entries:
            if total + size <= self._limit:
                return
            _remove(path)
            total -= held

    def _files(self, name: re.Pattern[str]) -> list[Path]:
        return [path for path in self._folder.iterdir() if name.fullmatch(path.name)]

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _lock(self, key: str, patience: float) -> AbstractContextManager[object]:
        """Return the right to build ``key``, which dies with its holder; sixteen in all, so that no heap grows."""
        return FileLock(self._folder / f"{key[0]}.lock", timeout=patience)


def _use(path: Path) -> tuple[int, int, Path] | None:
    """Return when a file was used last and how large it is; ``None`` when another process removed it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, path


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
