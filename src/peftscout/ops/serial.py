"""Serial bottleneck adapter (Houlsby et al., 2019): y + scale * bottleneck(y), y being the output of a sublayer."""

from __future__ import annotations

from torch import Tensor

from peftscout.ops import bottleneck
from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors
from peftscout.sites import Site

OUTER = ("U", "u")


def shapes(site: Site, size: int) -> Shapes:
    """Return D ``[b, out]``, d ``[b]``, U ``[out, b]``, u ``[out]``; ``size`` is the width b."""
    return bottleneck.shapes(site.out_features, site.out_features, size)


init = bottleneck.init
shrink = bottleneck.shrink
weigh = bottleneck.weigh


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return scale * bottleneck(y)."""
    return settings.serial_scale * bottleneck.forward(params, y, settings.adapter_activation)


def fold(params: Tensors, host: Affine, settings: OpSettings) -> None:
    """A nonlinear map does not fold."""
