"""LoRA (Hu et al., 2021, eq. 3): y + scale * B A x, with A ``[r, in]`` Kaiming-uniform and B ``[out, r]`` zero.

The scale alpha / r is the same at every rank (`OpSettings.lora_scale`), so that a search compares ranks and not scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors, kaiming_uniform, linear
from peftscout.sites import Site

OUTER = ("B",)


def shapes(site: Site, size: int) -> Shapes:
    """Return A ``[r, in]`` and B ``[out, r]``; ``size`` is the rank r."""
    return {"A": (size, site.in_features), "B": (site.out_features, size)}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """A as in peft, B zero: no-op at the start, B gets gradient at once and A from the second step."""
    return {"A": kaiming_uniform(shapes["A"], generator), "B": torch.zeros(shapes["B"])}


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return scale * B A x; ``x [..., in]`` is the input of the projection."""
    return linear(settings.lora_scale * linear(x, params["A"]), params["B"])


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """Rank r is the first r rows of A and the first r columns of B."""
    return {"A": params["A"][..., :size, :], "B": params["B"][..., :size]}


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """The rows of A: B diag(w) A. Once is enough, and A and B both see it."""
    return {**params, "A": params["A"] * weights[:, None]}


def fold(params: Tensors, host: Affine, settings: OpSettings) -> Affine:
    """W + scale * B A."""
    return Affine(host.weight + settings.lora_scale * params["B"] @ params["A"], host.bias)
