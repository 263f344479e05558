"""Genotypes: one concrete model of a design space, before its sizes are made to fit a budget.

Paired designs rest on `Latent`: everything random about a model apart from its options (which structure of its
grouping, how steep its allocation, its learning rate) is drawn once and realised under every option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from peftscout.errors import SpaceError
from peftscout.strategies.design_spaces.axes import Design, DesignSpace
from peftscout.strategies.design_spaces.compositions import Sizes, canonical, compositions
from peftscout.strategies.design_spaces.layout import Layout

_BITS = 62
"""Resolution of a drawn structure: an index is uniform up to 2^-62 times the number of structures."""


class InfeasibleDesignError(SpaceError):
    """A design that this model cannot hold within the budget; the message says why.

    Attributes:
        group: position of the group that alone makes it impossible; ``None`` where it is not one group's fault.
    """

    def __init__(self, message: str, group: int | None = None) -> None:
        super().__init__(message if group is None else f"G{group + 1}: {message}")
        self.group = group


@dataclass(frozen=True, slots=True)
class Rates:
    """Factors on the learning rates of a model: one on all, and further ones by op, as in `Evaluate`."""

    lr_scale: float = 1.0
    by_op: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Latent:
    """The random part of a genotype that does not depend on its options.

    Attributes:
        structures: one whole number of 62 random bits for each segment: position among the structures of the grouping.
        steepness: position in the slope range of the allocation, in [0, 1).
        rates: factors on the learning rates (the nuisance axis).
    """

    structures: tuple[int, ...]
    steepness: float
    rates: Rates


@dataclass(frozen=True)
class Genotype:
    """One concrete model: a design, its structure, its slope and its learning rate.

    Attributes:
        design: one option for each component.
        sizes: layers of each group, for each segment of the layout.
        slope: of the allocation ramp; positive grows with depth.
        rates: factors on the learning rates.
    """

    design: Design
    sizes: tuple[Sizes, ...]
    slope: float
    rates: Rates

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """Position of the group of each layer, in the order of the layers."""
        return tuple(group for sizes in self.sizes for group, size in enumerate(sizes) for _ in range(size))

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """Relative number of trainable parameters of each layer ``[layers]``; monotone within each segment."""
        ramps = [np.linspace(-1, 1, sum(sizes)) if sum(sizes) > 1 else np.zeros(1) for sizes in self.sizes]
        return 1 + self.slope * np.concatenate(ramps)

    def methods(self, layer: int) -> tuple[str, ...]:
        """Return the methods of ``layer``; none where its group is frozen."""
        group = self.groups[layer]
        return self.design.methods[group].names if group in self.design.tunable.groups else ()

    def to_json(self) -> dict[str, Any]:
        """Return the genotype as plain data, for reports."""
        return {
            "grouping": self.design.grouping.label,
            "sizes": [list(sizes) for sizes in self.sizes],
            "allocation": self.design.allocation.label,
            "slope": self.slope,
            "tunable": [f"G{g + 1}" for g in self.design.tunable.groups],
            "methods": {f"G{g + 1}": list(self.design.methods[g].names) for g in self.design.tunable.groups},
            "lr_scale": self.rates.lr_scale,
            "op_lr_scales": dict(self.rates.by_op),
        }


@dataclass(frozen=True)
class LearningRates:
    """Where the learning-rate factor of a genotype is drawn from.

    Attributes:
        factors: one of these, each as likely; they should be evenly spaced in the logarithm.
        between: instead, log-uniform between these two bounds.
        of_each: whether there is one factor for the whole ``model``, or one for each ``method``, that is, op family.
    """

    factors: tuple[float, ...] = (1.0,)
    between: tuple[float, float] | None = None
    of_each: Literal["model", "method"] = "model"

    def draw(self, rng: np.random.Generator, ops: Sequence[str]) -> Rates:
        """Draw the factors of a model that may have ``ops``, whichever of them it has."""
        if self.of_each == "model":
            return Rates(self.at(rng.random()))
        return Rates(1.0, tuple((op, self.at(rng.random())) for op in ops))

    def at(self, position: float) -> float:
        """Return the factor at ``position`` in [0, 1): log-uniform to three significant digits, or one of the list."""
        if self.between is None:
            return self.factors[int(position * len(self.factors))]
        low, high = np.log(self.between)
        return float(f"{np.exp(low + (high - low) * position):.3g}")

    @property
    def spread(self) -> tuple[float, ...]:
        """Factors that stand for the range: the list itself, or the low end, the middle and the high end."""
        return self.factors if self.between is None else tuple(self.at(p) for p in (0.0, 0.5, 1.0))


def draw_latent(rng: np.random.Generator, layout: Layout, rates: LearningRates) -> Latent:
    """Draw the random part of a genotype."""
    structures = tuple(int(bits) for bits in rng.integers(2**_BITS, size=len(layout.segments)))
    return Latent(structures, float(rng.random()), rates.draw(rng, layout.ops))


def draw_design(rng: np.random.Generator, space: DesignSpace) -> Design:
    """Draw one option on each axis of ``space``, each option as likely."""
    design = space.first
    for axis in space.axes:
        options = space.options(axis)
        design = design.with_option(axis, options[int(rng.integers(len(options)))])
    return design


def realise(design: Design, latent: Latent, layout: Layout) -> Genotype:
    """Return the genotype of ``design`` with the random part ``latent``.

    The structure is uniform over those that the grouping admits at this depth.

    Raises:
        InfeasibleDesignError: when the grouping admits none.
    """
    sizes = []
    for depth, bits in zip(layout.segments, latent.structures, strict=True):
        try:
            structures = compositions(design.grouping, depth)
        except SpaceError as error:
            raise InfeasibleDesignError(str(error)) from None
        sizes.append(structures[bits * len(structures) >> _BITS])
    slope = design.allocation.slope(latent.steepness)
    return Genotype(design, tuple(sizes), slope, latent.rates)


def canonical_genotype(design: Design, layout: Layout, lr_scale: float = 1.0) -> Genotype:
    """Return the genotype that stands for ``design``: its canonical structure and the middle of its slopes."""
    sizes = tuple(canonical(design.grouping, depth) for depth in layout.segments)
    return Genotype(design, sizes, design.allocation.slope(0.5), Rates(lr_scale))
