"""`StackedOp`: one op of one leaf for several slots at once, each slot on its own rows of a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from peftscout.errors import TunerError
from peftscout.ops import OPS, OpSettings, Tensors, apply
from peftscout.ops.stacking import stack
from peftscout.tuner.config import HostedOp

SPARE_UNITS = 16
"""Units of padding a slot that are cheaper than to pick rows: LoRA of rank 16 is a twelfth of a projection 384 wide."""

READ_OUTPUT = frozenset({"bias", "scale", "norm", "serial", "lowrank_adapter"})
"""Ops that do not look at the input of their leaf."""


@dataclass(frozen=True, eq=False)
class StackedOp:
    """One product for the slots that hold an op at one leaf.

    Attributes:
        hosted: the op, of the largest size among its slots.
        slots: how many slots share the batch; rows come slot after slot.
        index: which slots hold the op; ``None``: all.
        tensors: of each of them. All slots may be served where some lack the op: theirs are zeros.
        settings: of the ops.
    """

    hosted: HostedOp
    slots: int
    index: Tensor | None
    tensors: tuple[Tensors, ...]
    settings: OpSettings

    @classmethod
    def of(
        cls, hosted: Sequence[HostedOp | None], tensors: Sequence[Tensors], settings: OpSettings, device: torch.device
    ) -> Iterator[Self]:
        """Yield the ops of one kind at one leaf, in as few products as padding is worth.

        Args:
            hosted: by slot; ``None`` where a slot has no such op.
            tensors: by slot; empty where it has none.
            settings: of the ops.
            device: of the leaf.
        """
        sizes = [0 if each is None else each.size for each in hosted]
        largest = max((each for each in hosted if each is not None), key=lambda each: each.size)
        zeros = {name: torch.zeros_like(t) for name, t in tensors[sizes.index(largest.size)].items()}
        for chosen in shares(sizes):
            everyone = len(chosen) == len(sizes)
            index = None if everyone else torch.tensor(chosen, device=device)
            largest = max((each for k in chosen if (each := hosted[k]) is not None), key=lambda each: each.size)
            yield cls(largest, len(sizes), index, tuple(tensors[k] or zeros for k in chosen), settings)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` with the op applied to the rows of its slots.

        ``x [rows, ..., in]`` and ``y [rows, ..., out]``; of a prefix queries ``[rows, heads, queries, head_size]`` and
        output ``[rows, queries, heads, head_size]``.

        Raises:
            TunerError: when the rows cannot be those of so many slots.
        """
        op = OPS[self.hosted.op]
        if self.slots == 1:
            return apply(op, self.tensors[0], x, y, self.settings)
        if len(y) % self.slots:
            raise TunerError(
                f"{self.hosted.place}: {len(y)} rows in {self.hosted.host} cannot be those of {self.slots} slots; "
                "this model does not keep the rows of a batch in order, so plans cannot be stacked on it"
            )
        if self.hosted.op == "prefix":
            own_y = y.reshape(self.slots, -1, *y.shape[2:])  # [slots, tokens, heads, head_size]
            own_x = (
                x.reshape(self.slots, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)
            )  # [slots, heads, tokens, size]
        else:
            own_y = y.reshape(self.slots, -1, y.shape[-1])  # [slots, tokens, out]
            own_x = own_y if self.hosted.op in READ_OUTPUT else x.reshape(self.slots, -1, x.shape[-1])
        params = stack(op, self.tensors)
        if self.index is None:
            return apply(op, params, own_x, own_y, self.settings).reshape(y.shape)
        picked = apply(op, params, own_x[self.index], own_y[self.index], self.settings)
        return own_y.index_copy(0, self.index, picked).reshape(y.shape)


def shares(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield slots to compute in one product, padded to the largest of them; a size of 0 is an op that is absent.

    One product for all, absent ones as zeros, where padding makes up little of it or little in all; otherwise slots of
    like sizes (within a factor of two) together, at the price of picking their rows out of the batch and putting them
    back.
    """
    if len(sizes) * max(sizes) <= 1.5 * sum(sizes) + SPARE_UNITS * len(sizes):
        yield tuple(range(len(sizes)))
        return
    left = [k for k, size in enumerate(sizes) if size]
    while left:
        largest = max(sizes[k] for k in left)
        yield tuple(k for k in left if 2 * sizes[k] >= largest)
        left = [k for k in left if 2 * sizes[k] < largest]
