"""BitFit (Ben Zaken et al., 2022): a trained offset on the output of a projection or norm, y + b.

Where the host has a bias this trains that bias (as a difference from it); where it has none, it gives it one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors
from peftscout.sites import Site

OUTER = ("offset",)


def shapes(site: Site, size: int) -> Shapes:
    """Return the offset ``[out]``."""
    return {"offset": (site.out_features,)}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """Zero."""
    return {"offset": torch.zeros(shapes["offset"])}


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return the offset."""
    return params["offset"]


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """There is one size only."""
    return dict(params)


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """There is one size only, and it is whole."""
    return params


def fold(params: Tensors, host: Affine, settings: OpSettings) -> Affine | None:
    """b + offset; not into a host without a bias."""
    return None if host.bias is None else Affine(host.weight, host.bias + params["offset"])
