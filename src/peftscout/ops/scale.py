"""IA3 (Liu et al., 2022): a trained factor on every output feature of a projection, y * (1 + s).

IA3 multiplies the outputs of k and v and the input of the FFN's second projection; the last is the output of the first
here. The difference s from one is trained, so that zero means absent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors
from peftscout.sites import Site

OUTER = ("s",)


def shapes(site: Site, size: int) -> Shapes:
    """Return s ``[out]``."""
    return {"s": (site.out_features,)}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """Zero."""
    return {"s": torch.zeros(shapes["s"])}


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return y * s."""
    return y * params["s"]


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """There is one size only."""
    return dict(params)


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """There is one size only, and it is whole."""
    return params


def fold(params: Tensors, host: Affine, settings: OpSettings) -> Affine:
    """Every row of W, and b, times 1 + s."""
    factor = 1 + params["s"]
    return Affine(host.weight * factor[:, None], None if host.bias is None else host.bias * factor)
