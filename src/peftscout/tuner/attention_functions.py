"""Attention functions that do more than the backbone's own: one row of queries where asked, then the prefixes.

transformers looks its attention functions up by name; ours are registered beside its own, as ``peftscout_<base>``. They
call the backbone's function and add `ops.prefix` to its output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftscout.errors import TunerError
from peftscout.tuner.backbone_state import BackboneState
from peftscout.tuner.config import HostedOp
from peftscout.tuner.layer import PeftscoutLayer

BASES = ("sdpa", "eager")
"""The implementations that prefixes can be added to."""

ROW = "peftscout_row"
"""Keyword of an attention module's call that holds the `Row` to compute; models pass what they do not know on."""

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Row:
    """One position in each row of a batch.

    Attributes:
        index: the positions ``[batch]``; ``None``: the first in every row.
    """

    index: Tensor | None = None

    def of(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return ``x [batch, ...]`` at the position along ``dim``, which keeps its place with length 1.

        What has length 1 there already is returned as it is. A batch of 1 (a mask for all rows) is broadcast. The rest
        is contiguous: torch multiplies a slice by a weight matrix in batches, with a copy of the weights for each text.
        """
        if x.shape[dim] == 1:
            return x
        if self.index is None:
            return x.narrow(dim, 0, 1).contiguous()
        rows = torch.arange(len(self.index), device=x.device)
        picked = x.expand(len(rows), *x.shape[1:]).movedim(dim, 1)[rows, self.index]
        return picked.unsqueeze(dim)

    def sees(self, keys: int, device: torch.device) -> Tensor:
        """Return which of so many keys the position attends to causally, ``[batch or 1, 1, 1, keys]``, boolean."""
        index = torch.zeros(1, dtype=torch.long, device=device) if self.index is None else self.index
        return (torch.arange(keys, device=device) <= index[:, None])[:, None, None, :]


def name_for(base: str) -> str:
    """Return the registered name of ``base``: ``peftscout_sdpa``, ``peftscout_eager``."""
    return f"peftscout_{base}"


def register() -> None:
    """Make the functions known to transformers, with the masks of their bases."""
    for base in BASES:
        AttentionInterface.register(name_for(base), _extended(base))
        AttentionMaskInterface.register(name_for(base), ALL_MASK_ATTENTION_FUNCTIONS[base])


def is_registered(model: PreTrainedModel, path: str) -> bool:
    """Whether the attention module at ``path`` of ``model`` looks up one of our functions."""
    module = model.get_submodule(path)
    config = getattr(module, "config", model.config)
    return config._attn_implementation in map(name_for, BASES)


@contextmanager
def switched_on(model: PreTrainedModel) -> Iterator[None]:
    """Let ``model`` use our function on top of its base inside the context; a base that is none of `BASES` stays."""
    state = BackboneState.of(model)
    if model.config._attn_implementation in BASES:
        model.set_attn_implementation(name_for(model.config._attn_implementation))
    try:
        yield
    finally:
        state.restore_attention()


def switch_on(model: PreTrainedModel, prefixes: tuple[HostedOp, ...]) -> None:
    """Let the attention modules of ``prefixes`` go through the registered functions.

    Raises:
        TunerError: naming the first site whose attention cannot; the model is then left as it was.
    """
    before = model.config._attn_implementation
    if before in map(name_for, BASES):
        return
    model.set_attn_implementation(name_for(before if before in BASES else "sdpa"))
    for hosted in prefixes:
        attention = hosted.site.attention
        assert attention is not None
        if attention.key_module.rpartition(".")[0] != attention.module:
            reason = f"{attention.key_module} is not a part of {attention.module}"
        elif not is_registered(model, attention.module):
            reason = f"{type(model).__name__} does not compute its attention through transformers' AttentionInterface"
        else:
            continue
        model.set_attn_implementation(before)
        raise TunerError(f"{hosted.place}: {reason}; leave prefix out of the space")


def _extended(base: str) -> AttentionFunction:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        function = _eager_of(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        row: Row | None = kwargs.pop(ROW, None)
        length = query.shape[2]
        if row is not None:
            query, attention_mask = row.of(query, 2), _mask_of(row, base, module, key, attention_mask, kwargs)
        output, weights = function(module, query, key, value, attention_mask, **kwargs)
        hosts = [child for child in module.children() if isinstance(child, PeftscoutLayer)]
        if hosts:
            scaling = kwargs.get("scaling")
            queries = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
            for host in hosts:
                output = host.attend_to_prefix(queries, output)
        if row is not None:
            output = output.expand(-1, length, -1, -1)
        return output, weights

    return attention


def _mask_of(
    row: Row, base: str, module: nn.Module, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Return the mask for the queries of ``row``; and pick its part of a position bias in ``kwargs``.

    Without a mask SDPA is causal by its flag, which means nothing to a single query; eager attention ignores the flag.
    """
    if (bias := kwargs.get("position_bias")) is not None:
        kwargs["position_bias"] = row.of(bias, 2)
    if mask is not None:
        return row.of(mask, 2)
    told = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if told is None else told
    return row.sees(key.shape[2], key.device) if base == "sdpa" and causal else None


def _eager_of(module: nn.Module) -> AttentionFunction:
    """Return the eager attention of the file that ``module``'s class lives in; every model has its own."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise TunerError(f"{type(module).__name__}: has no eager attention function; load the model with attention 'sdpa'")
