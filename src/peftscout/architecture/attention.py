"""Describe the attention module behind an attention sublayer, as far as a prefix needs it."""

from __future__ import annotations

import inspect

from torch import nn

from peftscout.architecture.roles import BlockRoles, Projection
from peftscout.architecture.stacks import Block
from peftscout.sites import Attention

_HEAD_SIZE = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "attention_head_dim", "kv_channels")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")


def describe(block: Block, roles: BlockRoles, part: str) -> Attention | str:
    """Return the `Attention` of ``part`` of a block, or the reason why a prefix cannot sit there.

    Only the size of a head is read from the module (or its config); the numbers of heads follow from the widths of the
    projections, so that what is returned is consistent with them by construction, and are checked against the module.
    """
    keys = roles.of(part, "k", "qkv", "kv")
    outputs = roles.of(part, "o")
    if not keys or len(outputs) != 1:
        return "no projection of the keys or of the output"
    if len(keys) > 1:
        return "keys come from a compressed latent (multi-head latent attention)"
    module = block.module.get_submodule(keys[0].parent)
    if not calls_attention_interface(module):
        return f"{type(module).__name__} does not call transformers' AttentionInterface"
    inner = outputs[0].in_features
    size = _head_size(module, inner)
    if size is None:
        return f"{type(module).__name__} does not tell the size of its heads"
    kv_width = _kv_width(keys[0], inner)
    values = roles.of(part, "v")
    if any(value.out_features != kv_width for value in values):
        return "keys and values differ in width"
    if inner % size or kv_width % size or kv_width <= 0:
        return f"head size {size} does not divide the widths {inner} and {kv_width}"
    heads, kv_heads = inner // size, kv_width // size
    for names, derived in ((_HEADS, heads), (_KV_HEADS, kv_heads)):
        told = _first_int(module, names)
        if told is not None and told != derived:
            return f"{type(module).__name__} tells {told} heads where the widths tell {derived}"
    return Attention(
        module=f"{block.path}.{keys[0].parent}",
        key_module=f"{block.path}.{keys[0].path}",
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
    )


def calls_attention_interface(module: nn.Module) -> bool:
    """Whether the forward of ``module`` looks up its attention function in transformers' registry.

    Only there can a prefix be put before the keys and values; older model files compute attention inline.
    """
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def _kv_width(key: Projection, inner: int) -> int:
    """Return the width of the keys; fused projections hold queries of width ``inner`` and as many keys as values."""
    match key.role:
        case "qkv":
            return (key.out_features - inner) // 2
        case "kv":
            return key.out_features // 2
        case _:
            return key.out_features


def _head_size(module: nn.Module, inner: int) -> int | None:
    size = _first_int(module, _HEAD_SIZE)
    if size is not None:
        return size
    heads = _first_int(module, _HEADS) or _first_int(getattr(module, "config", None), _HEADS)
    return inner // heads if heads and inner % heads == 0 else None


def _first_int(owner: object, names: tuple[str, ...]) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
