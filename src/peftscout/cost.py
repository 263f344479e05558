"""The one cost formula: trainable parameters of an op at a site. Pure; the built model is tested to agree.

Counting rule: every tensor that an op trains is counted with all its elements, biases of bottlenecks included. The task
head is trained too but is the same for every plan, so it is left out and reported apart. A module that several layers
share (ALBERT) is one site and counts once. Every price is affine in the size: ``fixed + per_size * size``.
"""

from __future__ import annotations

from dataclasses import dataclass

from peftscout.errors import PlanError, nearest
from peftscout.sites import Site

OPS: tuple[str, ...] = ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix")
"""Every op, in the order in which ops at one site are applied and listed."""

SIZELESS: frozenset[str] = frozenset({"bias", "scale", "norm"})
"""Ops that are either there or not: their only size is 1."""

LOWRANK_ADAPTER_REDUCTION = 32
"""S3Delta's factorised adapter has the bottleneck ``d / 32`` (``shared`` width 1024: 32)."""

_OPS_AT: dict[str, tuple[str, ...]] = {
    "linear": ("lora", "bias", "scale"),
    "norm": ("bias", "norm"),
    "sublayer": ("serial", "parallel", "lowrank_adapter", "prefix"),
}


@dataclass(frozen=True, slots=True)
class Price:
    """Trainable parameters as a function of size: ``fixed + per_size * size``."""

    fixed: int
    per_size: int

    def at(self, size: int) -> int:
        """Return the trainable parameters at ``size`` (>= 1)."""
        return self.fixed + self.per_size * size

    def largest_within(self, parameters: int) -> int:
        """Return the largest size whose price is at most ``parameters``; 0 when not even size 1 fits."""
        return max(0, (parameters - self.fixed) // self.per_size)


def ops_at(site: Site) -> tuple[str, ...]:
    """Return the ops that can sit at ``site``, in canonical order."""
    ops = _OPS_AT[site.kind]
    if site.kind != "sublayer":
        return ops
    ops = tuple(op for op in ops if op != "parallel" or site.input_module is not None)
    return tuple(op for op in ops if op != "prefix" or site.attention is not None)


def lowrank_bottleneck(site: Site) -> int:
    """Return the bottleneck width of ``lowrank_adapter`` at ``site`` (S3Delta: ``d // 32``, at least 1)."""
    return max(1, site.out_features // LOWRANK_ADAPTER_REDUCTION)


def price(site: Site, op: str) -> Price:
    """Return the price of ``op`` at ``site``.

    ``lora`` of rank r: r(in + out); ``bias``: out; ``scale``: out; ``norm``: out (weight), and out again (bias) where
    the norm has one; ``serial`` with bottleneck b: 2b out + b + out; ``parallel``: b(in + out) + b + out;
    ``lowrank_adapter`` of rank r in the bottleneck b = out/32: 2r(out + b) + b + out; ``prefix`` of length P:
    2P kv_heads head_size.

    Raises:
        PlanError: when ``op`` is unknown or cannot sit at ``site``.
    """
    require_op_at(site, op)
    i, o = site.in_features, site.out_features
    match op:
        case "lora":
            return Price(0, i + o)
        case "bias" | "scale":
            return Price(0, o)
        case "norm":
            return Price(0, 2 * o if site.has_bias else o)
        case "serial":  # reads the sublayer's output
            return Price(o, 2 * o + 1)
        case "parallel":  # reads the sublayer's input
            return Price(o, i + o + 1)
        case "lowrank_adapter":
            b = lowrank_bottleneck(site)
            return Price(b + o, 2 * (o + b))
        case _:  # prefix: ops_at lets it sit only where there is an attention module
            assert site.attention is not None
            return Price(0, 2 * site.attention.kv_heads * site.attention.head_size)


def largest_size(site: Site, op: str) -> int:
    """Return the largest meaningful size of ``op`` at ``site``: beyond it, nothing is gained but parameters.

    Ranks and bottlenecks: the narrower side of the site; prefixes: the width (AutoPEFT's largest); 1 for ops without a
    size.

    Raises:
        PlanError: when ``op`` is unknown or cannot sit at ``site``.
    """
    require_op_at(site, op)
    if op in SIZELESS:
        return 1
    if op == "lowrank_adapter":
        return lowrank_bottleneck(site)
    return min(site.in_features, site.out_features)


def require_op_at(site: Site, op: str) -> None:
    """Raise a PlanError unless ``op`` is known and can sit at ``site``."""
    if op not in OPS:
        raise PlanError(f"{site.id}: unknown op {op!r}{nearest(op, OPS)}; the ops are {', '.join(OPS)}")
    if op not in ops_at(site):
        raise PlanError(
            f"{site.id}: op {op!r} cannot sit at a {site.kind} ({site.role}); possible: {', '.join(ops_at(site))}"
        )
