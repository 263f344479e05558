"""PEFT families: one file an op, parametrised once, realised by the tuner, the supernet and the stacked evaluator."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from peftscout.ops import bias, lora, lowrank_adapter, norm, parallel, prefix, scale, serial
from peftscout.ops.base import Affine, Gate, Op, OpSettings, OtherRows, Tensors, apply, generator_for

OPS: Mapping[str, Op] = MappingProxyType(
    {
        "lora": lora,
        "bias": bias,
        "scale": scale,
        "norm": norm,
        "serial": serial,
        "parallel": parallel,
        "lowrank_adapter": lowrank_adapter,
        "prefix": prefix,
    }
)
"""Every op by name, in the order in which the ops of one host are applied (that of `peftscout.cost.OPS`)."""

__all__ = ["OPS", "Affine", "Gate", "Op", "OpSettings", "OtherRows", "Tensors", "apply", "generator_for"]
