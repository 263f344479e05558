"""Attention functions that add the prefixes: the backbone's own function, then `ops.prefix` on its output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from peftscout.errors import TunerError
from peftscout.tuner.config import HostedOp
from peftscout.tuner.layer import PeftscoutLayer

BASES = ("sdpa", "eager")
"""The implementations that prefixes can be added to."""

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def name_for(base: str) -> str:
    """Return the registered name of ``base`` with prefixes: ``peftscout_sdpa``, ``peftscout_eager``."""
    return f"peftscout_{base}"


def register() -> None:
    """Make the functions known to transformers, with the masks of their bases."""
    for base in BASES:
        AttentionInterface.register(name_for(base), _with_prefix(base))
        AttentionMaskInterface.register(name_for(base), ALL_MASK_ATTENTION_FUNCTIONS[base])


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
        elif _implementation(model, attention.module) not in map(name_for, BASES):
            reason = f"{type(model).__name__} does not compute its attention through transformers' AttentionInterface"
        else:
            continue
        model.set_attn_implementation(before)
        raise TunerError(f"{hosted.place}: {reason}; leave prefix out of the space")


def _implementation(model: PreTrainedModel, path: str) -> str:
    module = model.get_submodule(path)
    config = getattr(module, "config", model.config)
    return str(config._attn_implementation)


def _with_prefix(base: str) -> AttentionFunction:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        function = _eager_of(module) if base == "eager" else ALL_ATTENTION_FUNCTIONS[base]
        output, weights = function(module, query, key, value, attention_mask, **kwargs)
        hosts = [child for child in module.children() if isinstance(child, PeftscoutLayer)]
        if hosts:
            scaling = kwargs.get("scaling")
            queries = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
            for host in hosts:
                output = host.attend_to_prefix(queries, output)
        return output, weights

    return attention


def _eager_of(module: nn.Module) -> AttentionFunction:
    """Return the eager attention of the file that ``module``'s class lives in; every model has its own."""
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function  # type: ignore[no-any-return]
    raise TunerError(f"{type(module).__name__}: has no eager attention function; load the model with attention 'sdpa'")
