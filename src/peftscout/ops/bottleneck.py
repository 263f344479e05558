"""The bottleneck that serial and parallel adapters share: U f(D z + d) + u, with U zero at the start."""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout.ops.base import ACTIVATIONS, Shapes, Tensors, kaiming_uniform, linear


def shapes(in_features: int, out_features: int, size: int) -> Shapes:
    """Return D ``[b, in]``, d ``[b]``, U ``[out, b]``, u ``[out]``; ``size`` is the width b."""
    return {"D": (size, in_features), "d": (size,), "U": (out_features, size), "u": (out_features,)}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """D Kaiming-uniform, all else zero: one zero factor, so the product starts at zero but is no saddle."""
    zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return {**zeros, "D": kaiming_uniform(shapes["D"], generator)}


def forward(params: Tensors, z: Tensor, activation: str) -> Tensor:
    """Return U f(D z + d) + u for ``z [..., in]``."""
    hidden = ACTIVATIONS[activation](linear(z, params["D"], params["d"]))
    return linear(hidden, params["U"], params["u"])


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """Width b is the first b units."""
    return {
        "D": params["D"][..., :size, :],
        "d": params["d"][..., :size],
        "U": params["U"][..., :size],
        "u": params["u"],
    }


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """The columns of U, behind the activation; the bias u is no unit's."""
    return {**params, "U": params["U"] * weights}
