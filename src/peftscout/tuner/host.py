"""Leaves that carry ops: reading and writing their affine part, whatever their class calls it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from peftscout.errors import TunerError
from peftscout.ops import Affine


def features(leaf: nn.Module) -> tuple[int, int]:
    """Return (in, out) features of a Linear, Conv1D or norm.

    Raises:
        TunerError: for any other module.
    """
    weight = getattr(leaf, "weight", None)
    if isinstance(leaf, nn.Linear):
        return leaf.in_features, leaf.out_features
    if isinstance(leaf, Conv1D):
        return int(leaf.weight.shape[0]), int(leaf.weight.shape[1])
    if isinstance(weight, Tensor) and weight.dim() == 1:
        return weight.numel(), weight.numel()
    raise TunerError(f"a {type(leaf).__name__} cannot carry ops: only Linear, Conv1D and norms can")


def read_affine(leaf: nn.Module) -> Affine:
    """Return weight and bias in float32 or wider: ``[out, in]`` or, of a norm, ``[out]``.

    A norm's weight is what multiplies the normalised input: w, or 1 + w in the Gemma family. The tensors may be the
    leaf's own.

    Raises:
        TunerError: when the weight is quantised.
    """
    weight = _weight(leaf).detach()
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    bias = getattr(leaf, "bias", None)
    if isinstance(leaf, Conv1D):
        weight = weight.T
    elif weight.dim() == 1:
        weight = weight + _norm_offset(leaf)
    return Affine(weight, None if bias is None else bias.detach().to(weight.dtype))


def write_affine(leaf: nn.Module, affine: Affine) -> None:
    """Overwrite the leaf's weight and bias in place; the inverse of `read_affine`."""
    weight = affine.weight
    if isinstance(leaf, Conv1D):
        weight = weight.T
    elif weight.dim() == 1:
        weight = weight - _norm_offset(leaf)
    with torch.no_grad():
        _weight(leaf).copy_(weight)
        if affine.bias is not None:
            leaf.get_parameter("bias").copy_(affine.bias)


def _weight(leaf: nn.Module) -> Tensor:
    weight = getattr(leaf, "weight", None)
    packed = hasattr(weight, "__tensor_flatten__")  # torchao's tensors look like those that they stand for
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or packed:
        raise TunerError(f"a {type(leaf).__name__} with quantised weights cannot be merged into; load it unquantised")
    return weight


def _norm_offset(leaf: nn.Module) -> int:
    """Return 1 for a norm that multiplies by 1 + w, 0 for one that multiplies by w: what is left when w is zero."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in leaf.named_parameters(recurse=False)}
    weight = _weight(leaf)
    probe = torch.linspace(-1, 1, weight.numel(), dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        return int(bool(functional_call(leaf, zeros, (probe[None],)).abs().max() > 0))
