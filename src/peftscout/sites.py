"""Sites: the places in a backbone where an op can sit. Pure data; does not know torch, transformers or peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SiteKind = Literal["linear", "norm", "sublayer"]


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention module behind an attention sublayer: what a prefix needs to know.

    Attributes:
        module: dotted path of the module that calls the attention function.
        key_module: dotted path of its child that projects the keys (``k``, or the fused ``qkv``/``kv``).
        heads: query heads.
        kv_heads: key/value heads (fewer than ``heads`` under grouped-query attention).
        head_size: width of one head.
    """

    module: str
    key_module: str
    heads: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a backbone where an op can sit.

    Attributes:
        id: stable name, such as ``layers.7.ffn.down``, ``decoder.0.cross_attention.v``, ``encoder.3.attention_norm``,
            ``layers.7.ffn`` (a sublayer) or ``encoder.final_norm``.
        kind: ``linear`` (a projection), ``norm``, or ``sublayer`` (a whole attention or FFN).
        role: what it is inside its block: ``q k v qkv kv o up gate gate_up down`` for projections,
            ``attention cross_attention ffn`` for sublayers, the last part of the id for norms.
        stack: ``layers`` in models of one stack, ``encoder`` or ``decoder`` where there are two.
        layer: index of the block in its stack; ``None`` outside the blocks (the final norm).
        module: dotted path of the leaf that carries the op. For a sublayer this is its output projection
            (``o`` or ``down``), whose output is the sublayer's output.
        in_features: width that enters (for a sublayer: the width of the hidden states that enter the sublayer).
        out_features: width that leaves.
        has_bias: whether the module has a bias of its own.
        input_module: for sublayers, the leaf whose input is the sublayer's input (``up``, ``gate_up``, ``q``, ``qkv``).
        attention: for attention sublayers, the attention module behind it; otherwise ``None``.
    """

    id: str
    kind: SiteKind
    role: str
    stack: str
    layer: int | None
    module: str
    in_features: int
    out_features: int
    has_bias: bool
    input_module: str | None = None
    attention: Attention | None = None


def site_from_json(data: Mapping[str, Any]) -> Site:
    """Read a site from its plain form, which ``dataclasses.asdict`` makes.

    Raises:
        TypeError: when a field is missing or unknown.
    """
    attention = data.get("attention")
    return Site(**{**data, "attention": None if attention is None else Attention(**attention)})
