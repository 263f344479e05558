"""Pooled heads compute one row: the last block computes the other positions only as keys and values.

Where the head reads one position of what leaves the last block (the first, or the last token), the block's outputs at
all other positions are computed for nothing. `one_row` cuts the hidden states down to that position where they enter
the queries, the output projection and the FFN of the last block; keys and values see all of them. Of the products of
a block with hidden size h and FFN size 4h, those of 10 h^2 of its 12 h^2 weights shrink to one row per sequence. The
outputs are the same up to the rounding of differently shaped products.

Nothing is known by a model's name. What the head reads is probed by `read_position`; whether the block stands the cut
is tested by `one_row_is_exact`; `find_one_row` does both and is what callers need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.sites import Site
from peftscout.tuner.attention_functions import ROW, Row, is_registered, switched_on
from peftscout.tuner.layer import PeftscoutLayer

Position = Literal["first", "last", "last_not_pad"]
"""The first position; the last that is attended to; the last whose token is not the padding token (they differ where a
text ends with the token that also pads, as with GPT-2)."""

POSITIONS: tuple[Position, ...] = get_args(Position)

_Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]] | None]
_After = Callable[[nn.Module, tuple[Any, ...], Any], Any]


@contextmanager
def one_row(model: Any, model_map: ModelMap, position: Position) -> Iterator[None]:
    """Let the last block compute only the row at ``position`` inside the context; everything is as before after it.

    Whatever leaves the last block has the usual shape, but every position holds the values of the one row. Enter it
    when the adapters are in: they and the cut must meet at the same modules. Modes, autocast, gradients and the shape
    of batches may change inside. Batches must be given by keyword.

    Args:
        model: adapted by `tuner.build`, or bare.
        model_map: of the bare model.
        position: which row; see `find_one_row`.

    Raises:
        TunerError: when the model has more than one stack of blocks, or gradient checkpointing is on.
    """
    base = bare(model)
    layer, block = last_block(model_map)
    if any(getattr(module, "gradient_checkpointing", False) for module in base.modules()):
        raise TunerError("gradient checkpointing computes blocks again when the rows of their batch are forgotten")
    cut = _Cut(position, padding_token(base))
    with ExitStack() as hooks, switched_on(base):

        def hook(module: nn.Module, before: _Before | None, after: _After | None = None) -> None:
            if before is not None:
                hooks.callback(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True).remove)
            if after is not None:
                hooks.callback(module.register_forward_hook(after).remove)

        hook(model, cut.read_batch)
        hook(base.get_submodule(block), cut.enter_block, cut.leave_block)
        for site in model_map.sites.values():
            if site.layer not in (layer, None):
                continue
            if site.kind != "sublayer":
                hook(base.get_submodule(site.module), *_hooks_at(site, cut))
            elif site.attention is not None and is_registered(base, site.attention.module):
                hook(base.get_submodule(site.attention.module), cut.tell_attention)
        yield


def _hooks_at(site: Site, cut: _Cut) -> tuple[_Before | None, _After | None]:
    """Return what is done before and after a leaf of the last block, or the final norm."""
    match site.kind, site.role:
        case "norm", _:
            return (cut.cut, cut.spread) if site.layer is None else (cut.cut_after_attention, None)
        case _, "q":
            return cut.cut, cut.spread
        case _, "o":
            return cut.end_attention, None
        case _, "gate" | "up" | "gate_up":
            return cut.cut, None
        case _, "down":
            return cut.end_sublayer, None
        case _:
            return None, None  # keys, values, and queries that are fused with them


class _Cut:
    """The hooks. They share what a forward pass tells: which row, of how many positions, and how far the block is."""

    def __init__(self, position: Position, padding: int | None) -> None:
        self._position, self._padding = position, padding
        self._row = Row()
        self._length = 1
        self._attended = False

    def read_batch(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model: find the row in each text of the batch."""
        self._row = Row(row_index(self._position, kwargs, self._padding))

    def enter_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the block: take its length from the hidden states ``[batch, positions, hidden]``."""
        hidden = args[0] if args else kwargs["hidden_states"]
        self._length = hidden.shape[1]
        self._attended = False

    def tell_attention(
        self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the attention: ask our attention function for one row of queries."""
        return args, {**kwargs, ROW: self._row}

    def cut(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a projection: keep one row of its input; leave alone what does not look like hidden states."""
        if not args or args[0].dim() != 3 or args[0].shape[1] != self._length:
            return None
        return (self._row.of(args[0]), *args[1:]), kwargs

    def end_sublayer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the end of a sublayer: a parallel adapter there took its input from a projection that may see all."""
        if isinstance(module, PeftscoutLayer) and module.sublayer_input is not None:
            module.sublayer_input.keep(self._row.of)
        return self.cut(module, args, kwargs)

    def end_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the end of the attention: nothing after it mixes positions."""
        self._attended = True
        return self.end_sublayer(module, args, kwargs)

    def cut_after_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a norm: those before the attention feed keys and values, those after it only the one row."""
        return self.cut(module, args, kwargs) if self._attended else None

    def spread(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """After the queries and the final norm: give the row at every position, without copying it."""
        return output.expand(-1, self._length, -1) if output.dim() == 3 and output.shape[1] == 1 else output

    def leave_block(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """After the block: other positions of its output are not what they should be, so do not let them out."""
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = self._row.of(hidden).expand(-1, self._length, -1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def row_index(position: Position, batch: Mapping[str, Any], padding: int | None) -> Tensor | None:
    """Return ``position`` in each text of ``batch``, ``[texts]``; ``None`` for the first.

    Raises:
        TunerError: when the batch does not tell, because it lacks token ids or was not given by keyword.
    """
    if position == "first":
        return None
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    counts = mask if position == "last" else None if ids is None or padding is None else ids != padding
    if position == "last" and counts is None and ids is not None:
        counts = torch.ones_like(ids)
    if counts is None:
        raise TunerError(f"a batch of {', '.join(batch) or 'no keywords'} does not tell its {position} position")
    flat = (counts != 0).flatten(0, -2).int()
    index: Tensor = (flat * torch.arange(flat.shape[-1], device=flat.device)).argmax(-1)
    return index


def last_block(model_map: ModelMap) -> tuple[int, str]:
    """Return number and path of the last block of the only stack.

    Raises:
        TunerError: when there is more than one stack.
    """
    if len(model_map.blocks) != 1:
        raise TunerError(f"there are {len(model_map.blocks)} stacks of blocks ({', '.join(model_map.blocks)}), not one")
    (paths,) = model_map.blocks.values()
    return len(paths) - 1, paths[-1]


def bare(model: Any) -> Any:
    """Return the transformers model inside an adapted one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def padding_token(model: Any) -> int | None:
    """Return the id of the padding token that heads of ``model`` look for."""
    token: int | None = getattr(model.config.get_text_config(), "pad_token_id", None)
    return token
