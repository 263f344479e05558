"""One file of activations: safetensors, written in one go, read through a memory map.

``activations [tokens, H]`` lie there without padding, in the order in which they were computed; ``starts`` and
``lengths [rows, C]`` (C = 1, or the choices of a row) say where each sequence is. The hash of all of it stands in the
head.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

FORMAT = "peftscout activations 2"

_NO_HASH = "0" * 64
_BLOCK = 1 << 24

Indices = npt.NDArray[np.int64]

Batches = Iterable[tuple[Indices, Tensor]]
"""(indices of rows ``[B]``, padded activations ``[B * C, S, H]``)"""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Entry:
    """The activations of a set of rows.

    Attributes:
        activations: of all tokens, ``[tokens, H]``, mapped into memory, in the dtype of the file.
        starts: index of the first token of every sequence, ``[rows, C]``.
        lengths: tokens of every sequence, ``[rows, C]``.
        dtype: of the activations as they were computed.
    """

    activations: Tensor
    starts: Indices
    lengths: Indices
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Sequence[int] | Indices, width: int, *, left_padded: bool = False) -> Tensor:
        """Return the activations of ``rows``, ``[B * C, width, H]``, zero where there is no token.

        Raises:
            ValueError: when a sequence is longer than ``width``.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        starts, lengths = self.starts[chosen].ravel().tolist(), self.lengths[chosen].ravel().tolist()
        if lengths and max(lengths) > width:
            raise ValueError(f"a row of {max(lengths)} tokens does not fit into a batch of width {width}")
        out = torch.zeros(len(lengths), width, self.activations.shape[1], dtype=self.dtype)
        for i, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            left = width - length if left_padded else 0
            out[i, left : left + length] = self.activations[start : start + length]
        return out


@dataclass(frozen=True, eq=False)
class Layout:
    """What is in a file, known before the activations are.

    Attributes:
        key: that the file is stored under.
        lengths: tokens of every sequence, ``[rows, C]``.
        width: H.
        dtype: of the activations.
        stored: dtype of the file.
    """

    key: str
    lengths: Indices
    width: int
    dtype: torch.dtype
    stored: torch.dtype

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header()) + 2 * self.lengths.size * 8 + self._bytes_of_activations

    @property
    def _bytes_of_activations(self) -> int:
        return int(self.lengths.sum()) * self.width * self.stored.itemsize

    def header(self, content: str = _NO_HASH) -> bytes:
        """Return the head of a safetensors file: its length in 8 bytes, then JSON, padded so that the data is aligned.

        ``content`` is the hash of what follows. Written by hand because the library wants all the data in memory at
        once. It reads it, and checks it then.
        """
        tables = self.lengths.size * 8
        shape = list(self.lengths.shape)
        facts = {"format": FORMAT, "key": self.key, "computed_as": _NAMES[self.dtype], "content": content}
        described = {
            "__metadata__": facts,
            "starts": {"dtype": "I64", "shape": shape, "data_offsets": [0, tables]},
            "lengths": {"dtype": "I64", "shape": shape, "data_offsets": [tables, 2 * tables]},
            "activations": {
                "dtype": _NAMES[self.stored],
                "shape": [int(self.lengths.sum()), self.width],
                "data_offsets": [2 * tables, 2 * tables + self._bytes_of_activations],
            },
        }
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write(file: BinaryIO, layout: Layout, batches: Batches, left_padded: bool) -> None:
    """Write a whole file, batch by batch.

    Raises:
        ValueError: when ``batches`` does not bring every row once, as long and as wide as ``layout`` says.
        OverflowError: when a number is too large for the dtype of the file.
    """
    head = layout.header()
    starts = np.full_like(layout.lengths, -1)
    file.write(head)
    file.write(bytes(2 * starts.nbytes))  # the tables, known at the end
    written, digest = 0, hashlib.sha256()
    for rows, hidden in batches:
        tokens = _unpadded(hidden, layout, rows, left_padded)
        own = layout.lengths[rows]
        if (starts[rows] >= 0).any() or len(tokens) != own.sum():
            raise ValueError("a row came twice, or is longer than its batch is wide")
        starts[rows] = written + (np.cumsum(own) - own.ravel()).reshape(own.shape)
        written += len(tokens)
        data = tokens.view(torch.uint8).numpy().data
        digest.update(data)
        file.write(data)
    if (starts < 0).any():
        raise ValueError(f"{int((starts < 0).any(1).sum())} rows are missing")
    tables = starts.tobytes() + layout.lengths.tobytes()
    digest.update(tables)
    file.seek(0)
    file.write(layout.header(digest.hexdigest()))
    file.write(tables)


def _unpadded(hidden: Tensor, layout: Layout, rows: Indices, left_padded: bool) -> Tensor:
    """Return the activations of the tokens in ``hidden``, one sequence after the other, ``[tokens, H]``."""
    if hidden.dtype != layout.dtype or hidden.shape[-1] != layout.width:
        raise ValueError(f"activations of {hidden.dtype} x {hidden.shape[-1]}, not {layout.dtype} x {layout.width}")
    lengths = torch.from_numpy(layout.lengths[rows].ravel())[:, None]
    positions = torch.arange(hidden.shape[1])
    real = positions >= hidden.shape[1] - lengths if left_padded else positions < lengths
    tokens = hidden.detach().cpu()[real]
    stored = tokens.to(layout.stored)
    if layout.stored != layout.dtype and not torch.isfinite(stored).all():
        raise OverflowError(f"activations up to {tokens.abs().max():.1e} do not fit into {layout.stored}")
    return stored


def read(path: Path, key: str, *, check: bool = True) -> Entry:
    """Map a file into memory; with ``check`` all of it is compared with its hash, else only header and tables are read.

    Raises:
        FileNotFoundError: when there is none.
        OSError: when it cannot be read.
        SafetensorError: when it is truncated, longer than it says, or of another format.
        ValueError: when it is not what `write` writes under ``key``.
    """
    with safe_open(path, framework="pt") as file:
        facts = file.metadata() or {}
        if facts.get("format") != FORMAT or facts.get("key") != key or facts.get("computed_as") not in _DTYPES:
            raise ValueError("it holds something else than its name says")
        if set(file.keys()) != {"starts", "lengths", "activations"}:
            raise ValueError("it does not hold starts, lengths and activations")
        activations = file.get_tensor("activations")
        starts, lengths = (file.get_tensor(name).numpy() for name in ("starts", "lengths"))
    tables = starts.dtype == lengths.dtype == np.int64 and starts.ndim == 2 and starts.shape == lengths.shape
    if not tables or activations.ndim != 2 or min(starts.min(initial=0), lengths.min(initial=0)) < 0:
        raise ValueError("its tables are malformed")
    if (starts + lengths).max(initial=0) > len(activations) or lengths.sum() != len(activations):
        raise ValueError("its tables do not fit its activations")
    if check and facts.get("content") != _hash(activations, starts, lengths):
        raise ValueError("content and hash differ")
    return Entry(activations, starts, lengths, _DTYPES[facts["computed_as"]])


def _hash(activations: Tensor, starts: Indices, lengths: Indices) -> str:
    digest = hashlib.sha256()
    data = memoryview(activations.view(torch.uint8).numpy().reshape(-1).data)
    for begin in range(0, len(data), _BLOCK):
        digest.update(data[begin : begin + _BLOCK])
    digest.update(starts.tobytes() + lengths.tobytes())
    return digest.hexdigest()
