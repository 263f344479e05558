"""The ops of one leaf for several slots at once, each slot on its own rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, cat

from peftscout.cost import price
from peftscout.errors import TunerError
from peftscout.ops import OPS, OpSettings, Tensors, apply
from peftscout.ops.stacking import stack
from peftscout.tuner.config import HostedOp

OVERHEAD = {"cpu": 1_000_000, "cuda": 500_000_000}
"""Multiplications in a forward pass that cost as much as calling one more op's functions, forward and backward.

On CPUs as measured (padding against calls, 4 to 16 rows of 16 tokens, 384 wide); on GPUs an estimate: 20 launches of 5
microseconds.
"""

PASS = 16
"""Multiplications of a matrix product that cost as much as the passes over one element of a leaf's output."""

READ_OUTPUT = frozenset({"bias", "scale", "norm", "serial", "lowrank_adapter"})
"""Ops that do not look at the input of their leaf."""


@dataclass(frozen=True, eq=False)
class StackedOp:
    """One op at one leaf, for all slots.

    Attributes:
        hosted: by slot; ``None`` where a slot lacks the op.
        tensors: of each slot, likewise.
        settings: of the ops.
    """

    hosted: tuple[HostedOp | None, ...]
    tensors: tuple[Tensors | None, ...]
    settings: OpSettings

    @cached_property
    def first(self) -> HostedOp:
        """One of them, for what they have in common."""
        return next(each for each in self.hosted if each is not None)

    def is_worth_padding(self, tokens: int, device: str) -> bool:
        """Whether one product for all slots, of the largest size, is cheaper than one for each that holds the op.

        What padding costs, for so many tokens a slot, is set against the calls that it saves.
        """
        sizes = [0 if each is None else each.size for each in self.hosted]
        holders = sum(map(bool, sizes))
        cost = price(self.first.site, self.first.op)
        padding = len(sizes) * cost.at(max(sizes)) - sum(cost.at(size) for size in sizes if size)
        padding += PASS * (len(sizes) - holders) * self.first.site.out_features
        return tokens * padding <= (holders - 1) * OVERHEAD.get(device, OVERHEAD["cuda"])

    def together(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``y`` with the op of every slot applied to its rows, in one product; `Stacked.forward` has shapes."""
        op, slots = OPS[self.first.op], len(self.hosted)
        if self.first.op == "prefix":
            own_y = y.reshape(slots, -1, *y.shape[2:])  # [slots, tokens, heads, head_size]
            own_x = x.reshape(slots, -1, *x.shape[1:]).transpose(1, 2).flatten(2, 3)  # [slots, heads, tokens, size]
        else:
            own_y = y.reshape(slots, -1, y.shape[-1])  # [slots, tokens, out]
            own_x = own_y if self.first.op in READ_OUTPUT else x.reshape(slots, -1, x.shape[-1])
        return apply(op, stack(op, self.tensors), own_x, own_y, self.settings).reshape(y.shape)

    def one_by_one(self, x: Sequence[Tensor], y: Sequence[Tensor]) -> list[Tensor]:
        """Return the rows ``y`` of every slot with its op, if it has one, applied to them."""
        op = OPS[self.first.op]
        return [
            own_y if params is None else apply(op, params, own_x, own_y, self.settings)
            for params, own_x, own_y in zip(self.tensors, x, y, strict=True)
        ]


class Stacked:
    """All ops of one leaf, in the order in which they are applied."""

    def __init__(self, ops: Sequence[StackedOp], slots: int) -> None:
        self.slots = slots
        self._on_output = [op for op in ops if op.first.op != "prefix"]
        self._prefixes = [op for op in ops if op.first.op == "prefix"]

    def forward(self, x: Tensor, y: Tensor, sublayer_input: Tensor | None) -> Tensor:
        """Return the output ``y [rows, ..., out]`` of the leaf with all ops but prefixes applied.

        Args:
            x: input of the leaf, ``[rows, ..., in]``; rows come slot after slot.
            y: output of the leaf.
            sublayer_input: what entered the sublayer, where an op is ``parallel``.
        """
        return self._applied(self._on_output, x, y, sublayer_input)

    def attend_to_prefix(self, queries: Tensor, output: Tensor) -> Tensor:
        """Return ``output [rows, queries, heads, head_size]`` with the prefixes applied.

        ``queries [rows, heads, queries, head_size]`` are scaled already.
        """
        return self._applied(self._prefixes, queries, output, None)

    def _applied(self, ops: Sequence[StackedOp], x: Tensor, y: Tensor, sublayer_input: Tensor | None) -> Tensor:
        if not ops:
            return y
        if len(y) % self.slots:
            host = ops[0].first
            raise TunerError(
                f"{host.place}: {len(y)} rows in {host.host} cannot be those of {self.slots} slots; "
                "this model does not keep the rows of a batch in order, so plans cannot be stacked on it"
            )
        rows, inputs = _Rows(y, self.slots), _Rows(x, self.slots)
        tokens = y.numel() // (self.slots * ops[0].first.site.out_features)
        for op in ops:
            if op.first.op in READ_OUTPUT:
                source = rows
            elif op.first.op != "parallel":
                source = inputs
            elif sublayer_input is not None:
                source = _Rows(sublayer_input, self.slots)
            else:
                raise TunerError(f"{op.first.place}: nothing went through {op.first.site.input_module} before this")
            if self.slots > 1 and op.is_worth_padding(tokens, y.device.type):
                rows = _Rows(op.together(source.whole, rows.whole), self.slots)
            else:
                rows = _Rows(op.one_by_one(source.parts, rows.parts), self.slots)
        return rows.whole


class _Rows:
    """Rows of a batch, whole or by slot; taken apart and put together once, when it is asked for."""

    def __init__(self, rows: Tensor | list[Tensor], slots: int) -> None:
        self._rows, self._slots = rows, slots

    @cached_property
    def whole(self) -> Tensor:
        if isinstance(self._rows, Tensor):
            return self._rows
        return self._rows[0] if self._slots == 1 else cat(self._rows)

    @cached_property
    def parts(self) -> Sequence[Tensor]:
        if not isinstance(self._rows, Tensor):
            return self._rows
        return [self._rows] if self._slots == 1 else self._rows.chunk(self._slots)
