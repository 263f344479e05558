"""Parallel bottleneck adapter (He et al., 2022): y + scale * bottleneck(x), x being the input of a sublayer."""

from __future__ import annotations

from torch import Tensor

from peftscout.ops import bottleneck
from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors
from peftscout.sites import Site

OUTER = ("U", "u")


def shapes(site: Site, size: int) -> Shapes:
    """Return D ``[b, in]``, d ``[b]``, U ``[out, b]``, u ``[out]``; ``size`` is the width b."""
    return bottleneck.shapes(site.in_features, site.out_features, size)


init = bottleneck.init
shrink = bottleneck.shrink
weigh = bottleneck.weigh


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return scale * bottleneck(x); ``x [..., in]`` is the hidden state that enters the sublayer."""
    return settings.parallel_scale * bottleneck.forward(params, x, settings.adapter_activation)


def fold(params: Tensors, host: Affine, settings: OpSettings) -> None:
    """A nonlinear map does not fold."""
