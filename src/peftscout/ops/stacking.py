"""Several ops of one kind and any sizes as one op with a leading dimension, each giving what it gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from peftscout.ops import prefix
from peftscout.ops.base import Op, Tensors


def stack(op: Op, several: Sequence[Tensors | None]) -> Tensors:
    """Return the tensors of ``several`` ops as one, differentiably: ``[K, ...]``, of vectors ``[K, 1, width]``.

    Smaller sizes are padded with units of zeros. Such a unit is silent: it reads and adds nothing. Only a prefix would
    attend to a key of zeros, so its padding is given no weight. ``None`` is an op that is absent: all of it is padding.
    """
    kinds = next(tensors for tensors in several if tensors is not None)
    stacked = {kind: _stack([None if each is None else each[kind] for each in several]) for kind in kinds}
    if op is prefix:
        lengths = tuple(0 if each is None else each["keys"].shape[-2] for each in several)
        if len(set(lengths)) > 1:
            return prefix.weigh(stacked, _first(lengths, stacked["keys"].device))
    return stacked


def _stack(tensors: Sequence[Tensor | None]) -> Tensor:
    there = [tensor for tensor in tensors if tensor is not None]
    if len({tensor.shape for tensor in there}) == 1 and len(there) == len(tensors):
        stacked = torch.stack(there)
    else:
        places = tuple(k for k, tensor in enumerate(tensors) if tensor is not None)
        stacked = _Padded.apply(places, len(tensors), *there)  # type: ignore[no-untyped-call]
    return stacked.unsqueeze(1) if stacked.dim() == 2 else stacked


class _Padded(torch.autograd.Function):
    """`torch.stack` of tensors of different lengths, at given places; zeros elsewhere. One node, however many."""

    @staticmethod
    def forward(ctx: Any, places: tuple[int, ...], count: int, *tensors: Tensor) -> Tensor:
        ctx.parts = [(k, *map(slice, tensor.shape)) for k, tensor in zip(places, tensors, strict=True)]
        stacked = tensors[0].new_zeros(
            count, *(max(lengths) for lengths in zip(*(t.shape for t in tensors), strict=True))
        )
        for part, tensor in zip(ctx.parts, tensors, strict=True):
            stacked[part] = tensor
        return stacked

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradients[0][part] for part in ctx.parts)


@lru_cache(maxsize=256)
def _first(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return weights ``[K, 1, 1, longest]``: 1 on the first tokens of each, 0 on the padding."""
    with torch.inference_mode(False):  # what is made in an evaluation serves training too
        token = torch.arange(max(lengths), device=device)
        return (token < torch.tensor(lengths, device=device)[:, None]).float()[:, None, None, :]
