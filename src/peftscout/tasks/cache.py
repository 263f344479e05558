"""Encoded splits on disk: safetensors, keyed by everything that decides the token ids, checked before use."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from peftscout.tasks.encoded import Encoded, length_limit
from peftscout.tasks.encoding import encode
from peftscout.tasks.splits import LockedSplit, Split

FORMAT = 1
"""Version of the file layout."""

_log = logging.getLogger(__name__)
_INPUT = "input."


def encode_cached(split: Split | LockedSplit, tokenizer: Any, *, max_length: int | None, cache_dir: Path) -> Encoded:
    """Encode a split, or read what was encoded before; the result is the same.

    A file that is damaged, or of other content than its name says, is computed again. A folder that cannot be written
    only costs the cache.

    Args:
        split: the rows.
        tokenizer: of transformers.
        max_length: see `encode`.
        cache_dir: made when absent; one file for each split, tokenizer and length.

    Raises:
        DataError: as `encode`.
    """
    _ = split.texts  # a locked split is refused, cached or not
    key = cache_key(split, tokenizer, length_limit(tokenizer, max_length))
    path = Path(cache_dir) / f"{split.name}-{key[:16]}.safetensors"
    found = _read(path, key)
    if found is not None:
        return found
    encoded = encode(split, tokenizer, max_length=max_length)
    try:
        _write(path, _pack(encoded, key))
    except OSError as error:
        _log.warning("%s: tokens are not cached: %s", path, error)
    return encoded


def cache_key(split: Split | LockedSplit, tokenizer: Any, limit: int) -> str:
    """Hash of everything that decides the token ids: rows, tokenizer, limit, kind and library versions."""
    versions = [version("transformers"), version("tokenizers")]
    identity = [FORMAT, split.digest, tokenizer_digest(tokenizer), limit, split.kind, versions]
    if split.kind == "causal_lm":
        identity.append(str(getattr(tokenizer, "chat_template", None)))
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Hash of a tokenizer: its ``tokenizer.json`` (or vocabulary and files) and the settings that change token ids."""
    hasher = hashlib.sha256()
    settings = [type(tokenizer).__name__, tokenizer.truncation_side, tokenizer.padding_side,
                sorted(tokenizer.model_input_names), repr(sorted(tokenizer.special_tokens_map.items()))]  # fmt: skip
    hasher.update(json.dumps(settings).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)  # set anew by every call
        state.pop("padding", None)
        hasher.update(json.dumps(state).encode())
        return hasher.hexdigest()
    hasher.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    hasher.update(repr(sorted(tokenizer.init_kwargs.items(), key=str)).encode())
    for name in sorted(tokenizer.vocab_files_names):
        file = getattr(tokenizer, name, None)
        if isinstance(file, str) and Path(file).is_file():
            hasher.update(Path(file).read_bytes())
    return hasher.hexdigest()


def _pack(encoded: Encoded, key: str) -> bytes:
    """Flatten the ragged rows: token ids one after the other, and the offset where each sequence begins."""
    nested = bool(len(encoded)) and isinstance(encoded.features[0]["input_ids"][0], list)
    width = len(encoded.features[0]["input_ids"]) if nested else 1
    names = list(encoded.features[0]) if len(encoded) else []
    tensors: dict[str, npt.NDArray[Any]] = {"references": encoded.references, "lengths": encoded.lengths}
    for name in names:
        sequences = [s for f in encoded.features for s in (f[name] if nested else [f[name]])]
        offsets = np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int64)
        tensors[f"{_INPUT}{name}"] = np.array([token for s in sequences for token in s], dtype=np.int32)
        tensors[f"offsets.{name}"] = offsets
    facts = {"names": names, "width": width, "nested": nested, "truncated": encoded.truncated}
    metadata = {"key": key, "content": _content_hash(tensors), "facts": json.dumps(facts)}
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata)


def _content_hash(tensors: dict[str, npt.NDArray[Any]]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        hasher.update(np.ascontiguousarray(tensors[name]).tobytes())
    return hasher.hexdigest()


def _read(path: Path, key: str) -> Encoded | None:
    """Return the cached content, or ``None`` when there is none that can be trusted."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if metadata["key"] != key or metadata["content"] != _content_hash(tensors):
            raise ValueError("content and hash differ")
        return _unpack(tensors, json.loads(metadata["facts"]))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("%s: damaged, tokens are computed again (%s)", path, error)
        return None


def _unpack(tensors: dict[str, npt.NDArray[Any]], facts: dict[str, Any]) -> Encoded:
    columns: dict[str, list[Any]] = {}
    for name in facts["names"]:
        flat = tensors[f"{_INPUT}{name}"].tolist()
        sequences = [flat[start:end] for start, end in pairwise(tensors[f"offsets.{name}"].tolist())]
        width = facts["width"]
        columns[name] = (
            [sequences[i : i + width] for i in range(0, len(sequences), width)] if facts["nested"] else sequences
        )
    rows = len(tensors["references"])
    features = [{name: column[i] for name, column in columns.items()} for i in range(rows)]
    return Encoded(features, tensors["references"], tensors["lengths"], facts["truncated"])


def _write(path: Path, content: bytes) -> None:
    """Write under another name, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
