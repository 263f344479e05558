"""The name of cached activations: a hash of everything that decides them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from peftscout.tasks import Encoded
from peftscout.training.arithmetic import Arithmetic
from peftscout.training.batches import PAD_TO_MULTIPLE
from peftscout.training.frozen_prefix import FrozenPrefix
from peftscout.tuner.resetting import plain_tensors


def activation_key(
    backbone: str,
    prefix: FrozenPrefix,
    rows: str,
    arithmetic: Arithmetic,
    *,
    attention: str,
    device: torch.device,
    batch_size: int,
    stored: torch.dtype | None,
) -> str:
    """Return the key under which activations are stored: 64 hexadecimal digits.

    Args:
        backbone: its `backbone_digest`.
        prefix: where the activations come from.
        rows: their `rows_digest`.
        arithmetic: dtype of the products.
        attention: name of the attention implementation at work, as in the model's config.
        device: on which they are computed. With its model and the threads, the same bits come out again.
        batch_size: of the batches in which they are computed, see `prefix_activations`.
        stored: dtype of the file; ``None``: that of the activations.
    """
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    facts = {
        "backbone": backbone,
        "prefix": [prefix.stack, *prefix.blocks],
        "rows": rows,
        "dtype": arithmetic.dtype,
        "attention": attention,
        "device": [device.type, where, torch.get_num_threads()],
        "batches": [batch_size, PAD_TO_MULTIPLE],
        "stored": str(stored),
        "versions": [version("torch"), version("transformers")],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def backbone_digest(model: Any, head: Sequence[str]) -> str:
    """Return a hash of a bare model without its ``head``: class, config, and every parameter and buffer.

    The head's names are those of `ModelMap.head`. It is above every prefix, and fresh for each seed.
    """
    digest = hashlib.sha256()
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest.update(f"{type(model).__name__} {json.dumps(config, sort_keys=True, default=str)}\n".encode())
    for name, tensor in plain_tensors(model):
        if name.partition(".")[0] not in head:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rows_digest(rows: Encoded) -> str:
    """Return a hash of all that enters a model: every input of every row, in order. References do not count."""
    digest = hashlib.sha256(f"{len(rows)} rows\n".encode())
    for name in rows.features[0] if len(rows) else ():
        column = [feature[name] for feature in rows.features]
        nested = bool(column[0]) and isinstance(column[0][0], list)
        sequences = [sequence for row in column for sequence in row] if nested else column
        choices = len(column[0]) if nested else 0
        digest.update(f"{name} {choices}\n".encode())
        digest.update(np.array([len(sequence) for sequence in sequences], dtype=np.int64).tobytes())
        digest.update(np.fromiter(chain.from_iterable(sequences), dtype=np.int64).tobytes())
    return digest.hexdigest()


def sequence_lengths(rows: Encoded) -> npt.NDArray[np.int64]:
    """Return the tokens of every sequence, ``[rows, C]``: one a row, or one for each of its choices."""
    ids = [feature["input_ids"] for feature in rows.features]
    nested = bool(ids) and bool(ids[0]) and isinstance(ids[0][0], list)
    return np.array([[len(choice) for choice in row] if nested else [len(row)] for row in ids], dtype=np.int64)
