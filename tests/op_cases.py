"""Sites, inputs and parameters for tests of single ops."""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout import cost
from peftscout.ops import OPS, OpSettings, generator_for
from peftscout.sites import Attention, Site

SETTINGS = OpSettings(lora_scale=1.5, serial_scale=0.5, parallel_scale=4.0)
SIZED = tuple(op for op in OPS if op not in cost.SIZELESS)
BATCH, LENGTH = 2, 5


def site_for(op: str, in_features: int = 12, out_features: int = 8, has_bias: bool = True) -> Site:
    kind = {"norm": "norm", "lora": "linear", "bias": "linear", "scale": "linear"}.get(op, "sublayer")
    return Site(
        id="layers.0.here",
        kind=kind,
        role="attention" if kind == "sublayer" else kind,
        stack="layers",
        layer=0,
        module="model.layers.0.here",
        in_features=out_features if kind == "norm" else in_features,
        out_features=out_features,
        has_bias=has_bias,
        input_module="model.layers.0.q" if kind == "sublayer" else None,
        attention=Attention("model.layers.0", "model.layers.0.k", 4, 2, 3) if kind == "sublayer" else None,
    )


def tensors_for(op: str, site: Site, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random x and y of the shapes that the op sees at ``site``."""
    generator = torch.Generator().manual_seed(seed)
    if op == "prefix":
        heads, size = site.attention.heads, site.attention.head_size  # type: ignore[union-attr]
        return (
            torch.randn(BATCH, heads, LENGTH, size, generator=generator),
            torch.randn(BATCH, LENGTH, heads, size, generator=generator),
        )
    return (
        torch.randn(BATCH, LENGTH, site.in_features, generator=generator),
        torch.randn(BATCH, LENGTH, site.out_features, generator=generator),
    )


def initial(op: str, site: Site, size: int = 1, seed: int = 0) -> dict[str, Tensor]:
    return OPS[op].init(OPS[op].shapes(site, size), generator_for(seed, site.id, op))


def generic(op: str, site: Site, size: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """Parameters at a generic point, where nothing vanishes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(t.shape, generator=generator) for name, t in initial(op, site, size).items()}


def size_of(op: str, size: int) -> int:
    return 1 if op in cost.SIZELESS else size
