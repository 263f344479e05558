"""What every op has in common: its protocol, its settings and the few formulas that several ops share.

All ops are additive: they turn the output y of their host into y + delta(x, y). They are pure functions on tensors, so
the tuner (one plan), the supernet (gate * delta, sizes nested) and the stacked evaluator (parameters with leading
dimensions, broadcast) share one formula. Counts follow from the shapes and are tested to equal `peftscout.cost`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peftscout.errors import ConfigError, nearest
from peftscout.sites import Site

Shapes = dict[str, tuple[int, ...]]
Tensors = Mapping[str, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "linear": lambda x: x,
}
"""Activations of the bottlenecks, by the names that transformers uses."""


@dataclass(frozen=True, slots=True)
class OpSettings:
    """What an op needs to know besides its size; one for a whole plan, saved with the adapter.

    Attributes:
        lora_scale: alpha / r of LoRA, the same at every rank. 1 as in BIPEFT and in peft's defaults (alpha 8, r 8);
            S3Delta uses 16.
        adapter_activation: of ``serial`` and ``parallel``; ReLU as in He et al. (2022) and AutoPEFT.
        serial_scale: factor on the serial adapter's output (Houlsby et al., 2019: 1).
        parallel_scale: factor on the parallel adapter's output; He et al. (2022) and AutoPEFT use 4.
        lowrank_activation: of ``lowrank_adapter``; S3Delta and BIPEFT use GELU in its tanh form.
    """

    lora_scale: float = 1.0
    adapter_activation: str = "relu"
    serial_scale: float = 1.0
    parallel_scale: float = 1.0
    lowrank_activation: str = "gelu_new"

    def __post_init__(self) -> None:
        for field in ("adapter_activation", "lowrank_activation"):
            if (name := getattr(self, field)) not in ACTIVATIONS:
                raise ConfigError(
                    f"{field} {name!r}{nearest(str(name), ACTIVATIONS)}: the activations are {', '.join(ACTIVATIONS)}"
                )
        for field in ("lora_scale", "serial_scale", "parallel_scale"):
            if not (math.isfinite(value := getattr(self, field)) and value > 0):
                raise ConfigError(f"{field} {value!r}: must be a positive number")


class Affine(NamedTuple):
    """The affine part of a host: of a projection ``weight [out, in]``, of a norm ``weight [out]`` as it multiplies."""

    weight: Tensor
    bias: Tensor | None


class Op(Protocol):
    """One PEFT family; realised by a module of this package (functions, no state)."""

    @property
    def OUTER(self) -> tuple[str, ...]:  # noqa: N802 - a constant of each module
        """The tensors that are the last factor: with all of them times f, `delta` is f times what it was."""
        ...

    def shapes(self, site: Site, size: int) -> Shapes:
        """Return the shapes of the trained tensors by name."""
        ...

    def init(self, shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
        """Return freshly initialised float32 tensors on the CPU; at these, `delta` is exactly zero."""
        ...

    def delta(self, params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
        """Return what the op adds to ``y [..., out]``, given its input ``x``; see each op for what x is."""
        ...

    def shrink(self, params: Tensors, size: int) -> dict[str, Tensor]:
        """Return views of ``params`` that are the op of the smaller ``size`` (nested: its first rows or columns)."""
        ...

    def weigh(self, params: Tensors, weights: Tensor) -> Tensors:
        """Return ``params`` with its units (ranks, neurons, tokens) weighted by ``weights [size]``, differentiably.

        Weight 1 on the first s units and 0 on the rest is `shrink` to s, without a slice.
        """
        ...

    def fold(self, params: Tensors, host: Affine, settings: OpSettings) -> Affine | None:
        """Return the host with the op folded in, exactly; ``None`` when this op cannot be folded into this host."""
        ...


class Gate(NamedTuple):
    """How much of an op is there, in a supernet.

    Attributes:
        on: factor on the op's delta, a scalar tensor.
        weights: weight of each unit, ``[size]``; ``None``: every unit counts whole.
        others: what holds instead for the last rows of a batch.
    """

    on: Tensor
    weights: Tensor | None = None
    others: OtherRows | None = None


class OtherRows(NamedTuple):
    """The rows of a batch that see other gates and tensors, so that gradients of the two parts arrive apart.

    Attributes:
        gate: of these rows.
        params: the op's tensors as these rows see them.
        first: of ``rows`` rows, those from this one on. Where a row of the batch is several rows of the model (choices,
            for one), the shares are the same.
        rows: of the batch.
    """

    gate: Gate
    params: Tensors
    first: int
    rows: int


def apply(op: Op, params: Tensors, x: Tensor, y: Tensor, settings: OpSettings, gate: Gate | None = None) -> Tensor:
    """Return y + on * delta(x, y) in the dtype of ``y``; the sum is taken in the wider of the two dtypes."""
    if gate is not None and gate.others is not None:
        if y.dim() != 3:
            return _in_parts(op, params, x, y, settings, gate, gate.others)
        params = _by_row(op, params, gate, gate.others, len(y))
    elif gate is not None:
        params = _gated(op, params, gate)
    return (y + op.delta(params, x, y, settings)).to(y.dtype)


def _gated(op: Op, params: Tensors, gate: Gate) -> Tensors:
    """Return ``params`` with the gate in them.

    It is on the last factor and not on delta, which is as large as y: a gate costs no pass over the activations.
    """
    if gate.weights is not None:
        params = op.weigh(params, gate.weights)
    return {**params, **{name: gate.on * params[name] for name in op.OUTER if name in params}}


def _in_parts(
    op: Op, params: Tensors, x: Tensor, y: Tensor, settings: OpSettings, gate: Gate, others: OtherRows
) -> Tensor:
    """Apply the op to the rows of either gate apart: where outputs have heads of their own, or no rows but tokens."""
    first = len(y) * others.first // others.rows
    mine = apply(op, params, x[:first], y[:first], settings, gate._replace(others=None))
    return torch.cat([mine, apply(op, others.params, x[first:], y[first:], settings, others.gate)])


def _by_row(op: Op, params: Tensors, gate: Gate, others: OtherRows, rows: int) -> Tensors:
    """Return the gated tensors that each of ``rows`` rows sees, ``[rows, ...]``, of vectors ``[rows, 1, width]``."""
    first = rows * others.first // others.rows
    theirs = _gated(op, others.params, others.gate)
    return {
        name: torch.cat([_repeated(tensor, first), _repeated(theirs[name], rows - first)])
        for name, tensor in _gated(op, params, gate).items()
    }


def _repeated(tensor: Tensor, rows: int) -> Tensor:
    tensor = tensor if tensor.dim() > 1 else tensor[None]
    return tensor.expand(rows, *tensor.shape)


def generator_for(seed: int, site: str, op: str) -> torch.Generator:
    """Return the random stream of one op at one site.

    It depends on nothing else, so an op starts from the same values whatever else is in the plan.
    """
    digest = hashlib.sha256(f"{seed}/{site}/{op}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b, computed in the dtype of ``weight [..., out, in]``; leading dimensions broadcast."""
    if not torch.is_autocast_enabled(x.device.type):  # autocast would only undo it
        x = x.to(weight.dtype)
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    if x.dim() == 3 and x.shape[:-2] == weight.shape[:-2]:
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias, x, weight.mT)
    product = x @ weight.mT
    return product if bias is None else product + bias


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return ``[out, in]`` drawn from U(-1/sqrt(in), 1/sqrt(in)): torch's default for Linear, peft's for LoRA's A."""
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
