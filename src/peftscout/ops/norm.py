"""LNFit (norm tuning; Qi et al., 2022): train a norm's weight and, where it has one, its bias.

Trained as a factor and an offset on the norm's output, y * (1 + s) + t. With y = w n + b (n the normalised input) this
is the norm with weight w (1 + s) and bias b (1 + s) + t: the same functions as training w and b themselves, wherever
w is not zero. It needs only y, so it is one formula for LayerNorm, RMSNorm and norms that multiply by 1 + w (Gemma),
it folds into each of them exactly, and its step size is relative to the pretrained weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors
from peftscout.sites import Site

OUTER = ("s", "t")


def shapes(site: Site, size: int) -> Shapes:
    """Return s ``[out]`` and, where the norm has a bias, t ``[out]``."""
    width = (site.out_features,)
    return {"s": width, "t": width} if site.has_bias else {"s": width}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """Zero."""
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return y * s + t."""
    change = y * params["s"]
    return change + params["t"] if "t" in params else change


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """There is one size only."""
    return dict(params)


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """There is one size only, and it is whole."""
    return params


def fold(params: Tensors, host: Affine, settings: OpSettings) -> Affine:
    """w (1 + s) and b (1 + s) + t."""
    factor = 1 + params["s"]
    return Affine(host.weight * factor, None if host.bias is None else host.bias * factor + params["t"])
