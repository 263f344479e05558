"""States that trials start from in the place of fresh weights: slices of a supernet, found again by their content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftscout.errors import StudyError


class InitialStates:
    """The initial states of a study, one file each, in ``folder``; with ``None`` they are kept in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}

    def save(self, state: Mapping[str, Tensor]) -> str:
        """Keep a `tuner.trainable_state`; return its name, 16 hexadecimal digits of a hash of its content."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        name = digest_of(tensors)
        if self._folder is None:
            self._memory[name] = {n: tensor.clone() for n, tensor in tensors.items()}
        elif not self._path(name).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = self._path(name).with_suffix(f".{os.getpid()}")
            save_file(tensors, unfinished)
            unfinished.replace(self._path(name))
        return name

    def load(self, name: str) -> dict[str, Tensor]:
        """Return the state of that name.

        Raises:
            StudyError: when it is missing, or not what was saved.
        """
        if self._folder is None:
            state = self._memory.get(name, {})
        else:
            try:
                state = load_file(self._path(name))
            except (OSError, SafetensorError):
                state = {}
        if not state or digest_of(state) != name:
            where = "memory" if self._folder is None else self._path(name)
            raise StudyError(
                f"initial state {name}: missing or damaged in {where}; resume the study, which makes it again"
            )
        return state

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}.safetensors"


def digest_of(state: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits of a hash of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
