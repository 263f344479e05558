"""Low-rank adapter (S3Delta): a serial bottleneck of fixed width out/32 whose two matrices are products of rank r.

y + U2 U1 f(D2 D1 y + d) + u. Only U2 starts at zero: with U1 and U2 both zero (a released setting of BIPEFT) neither
would ever get a gradient and the adapter would be no more than its output bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peftscout.cost import lowrank_bottleneck
from peftscout.ops.base import ACTIVATIONS, Affine, OpSettings, Shapes, Tensors, kaiming_uniform, linear
from peftscout.sites import Site

OUTER = ("U2", "u")


def shapes(site: Site, size: int) -> Shapes:
    """Return D1 ``[r, out]``, D2 ``[b, r]``, d ``[b]``, U1 ``[r, b]``, U2 ``[out, r]``, u ``[out]``; ``size`` is r."""
    out, b = site.out_features, lowrank_bottleneck(site)
    return {"D1": (size, out), "D2": (b, size), "d": (b,), "U1": (size, b), "U2": (out, size), "u": (out,)}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """D1, D2 and U1 Kaiming-uniform, all else zero."""
    drawn = {name: kaiming_uniform(shapes[name], generator) for name in ("D1", "D2", "U1")}
    return {name: drawn[name] if name in drawn else torch.zeros(shape) for name, shape in shapes.items()}


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return U2 U1 f(D2 D1 y + d) + u."""
    hidden = linear(linear(y, params["D1"]), params["D2"], params["d"])
    hidden = ACTIVATIONS[settings.lowrank_activation](hidden)
    return linear(linear(hidden, params["U1"]), params["U2"], params["u"])


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """Rank r is the first r rows of D1 and U1 and the first r columns of D2 and U2."""
    rows = {name: params[name][..., :size, :] for name in ("D1", "U1")}
    columns = {name: params[name][..., :size] for name in ("D2", "U2")}
    return {**rows, **columns, "d": params["d"], "u": params["u"]}


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """The rows of D1 and of U1: both products have the same rank."""
    return {**params, "D1": params["D1"] * weights[:, None], "U1": params["U1"] * weights[:, None]}


def fold(params: Tensors, host: Affine, settings: OpSettings) -> None:
    """A nonlinear map does not fold."""
