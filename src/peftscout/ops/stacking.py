"""Several ops of one kind and any sizes as one op with a leading dimension, each giving what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peftscout.ops import prefix
from peftscout.ops.base import Op, Tensors


def stack(op: Op, several: Sequence[Tensors]) -> Tensors:
    """Return the tensors of ``several`` ops as one, differentiably: ``[K, ...]``, of vectors ``[K, 1, width]``.

    Smaller sizes are padded with units of zeros. Such a unit is silent: it reads and adds nothing. Only a prefix would
    attend to a key of zeros, so its padding is given no weight. An op of nothing but zeros is one that is absent.
    """
    stacked = {name: _stack([tensors[name] for tensors in several]) for name in several[0]}
    if op is prefix:
        lengths = tuple(tensors["keys"].shape[-2] for tensors in several)
        if len(set(lengths)) > 1:
            return prefix.weigh(stacked, _first(lengths, stacked["keys"].device))
    return stacked


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    largest = [max(lengths) for lengths in zip(*(t.shape for t in tensors), strict=True)]
    stacked = torch.stack([_padded(t, largest) for t in tensors])
    return stacked.unsqueeze(1) if stacked.dim() == 2 else stacked


def _padded(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    missing = [end - length for length, end in zip(tensor.shape, shape, strict=True)]
    return F.pad(tensor, [n for after in reversed(missing) for n in (0, after)]) if any(missing) else tensor


@lru_cache(maxsize=256)
def _first(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return weights ``[K, 1, 1, longest]``: 1 on the first tokens of each, 0 on the padding."""
    with torch.inference_mode(False):  # what is made in an evaluation serves training too
        token = torch.arange(max(lengths), device=device)
        return (token < torch.tensor(lengths, device=device)[:, None]).float()[:, None, None, :]
