"""Options of the design-spaces strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftscout.strategies.design_spaces.yaml import load_design_space


@dataclass(frozen=True)
class DesignSpacesOptions:
    """How a design space is refined. Checked when made, the design space included.

    Attributes:
        design_space: name of a preset (``chen2023-s0`` to ``-s4``) or path of a YAML file.
        groups: number of groups instead of the written one; ``None``: as written, or fewer in a shallower model.
        models: base models of a stage, each realised under every option (the paper: 100 a population, unpaired). Fewer
            are taken where the trials do not allow as many, but never fewer than ``least_models``.
        least_models: base models below which a stage is not run and its axis stays open.
        delta: smallest difference of interest, in standard deviations of the scores within options: options that are
            closer count as tied.
        alpha: error rate of a stage: of calling an option worse that is not, and of keeping one that is worse by delta.
        rungs: fidelities of successive halving, as shares of the full number of steps, the last one 1; ``(1.0,)`` turns
            it off.
        keep_share: share of the options that go on to the next rung whatever their scores.
        least_tau: rank correlation (Kendall's tau) between a rung and full training, measured on the reference
            population, below which the rung is not used.
        reference: models of the reference population (S0), trained at every rung.
        passes: times that the axes are gone through; the second pass tests each again with the others decided.
        lr_between: bounds of the learning-rate factors, drawn log-uniformly; ``None``: one of the problem's.
        lr_of_each: whether a base model draws one factor (``model``) or one for each op family (``method``).
        finalists: models of the found rule that are trained at the end.
        frozen_share: see `compilation.Compilation`.
        tolerance: share of the budget that a plan may leave unspent without a reason.
        largest_shortfall: share of the budget that a plan may leave unspent at all, unless all plans leave more.
        resamples: of the bootstrap, and at least as many flips of the permutation test.

    Raises:
        ValueError: naming the option that is out of range.
        SpaceError: when there is no such design space, or it is malformed.
    """

    design_space: str = "chen2023-s0"
    groups: int | None = None
    models: int = 32
    least_models: int = 8
    delta: float = 0.3
    alpha: float = 0.05
    rungs: tuple[float, ...] = (0.25, 1.0)
    keep_share: float = 0.5
    least_tau: float = 0.4
    reference: int = 16
    passes: int = 1
    lr_between: tuple[float, float] | None = None
    lr_of_each: Literal["model", "method"] = "model"
    finalists: int = 8
    frozen_share: Literal["redistribute", "forfeit"] = "redistribute"
    tolerance: float = 0.005
    largest_shortfall: float = 0.05
    resamples: int = 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "rungs", tuple(self.rungs))
        if self.lr_between is not None:
            object.__setattr__(self, "lr_between", tuple(self.lr_between))
            if len(self.lr_between) != 2 or not 0 < self.lr_between[0] <= self.lr_between[1]:
                raise ValueError(f"lr_between {self.lr_between}: two factors above 0, the lower one first")
        ascending = all(a < b for a, b in zip((0.0, *self.rungs), self.rungs, strict=False))
        if not self.rungs or not ascending or self.rungs[-1] != 1:
            raise ValueError(f"rungs {self.rungs}: ascending shares of the steps, the last one 1.0")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} {value}: must be between {low:g} and {high:g}")
        if self.least_models > self.models:
            raise ValueError(f"least_models {self.least_models}: more than models ({self.models})")
        if self.lr_of_each not in ("model", "method"):
            raise ValueError(f"lr_of_each {self.lr_of_each!r}: model or method")
        if self.frozen_share not in ("redistribute", "forfeit"):
            raise ValueError(f"frozen_share {self.frozen_share!r}: redistribute or forfeit")
        load_design_space(self.design_space, self.groups)


_RANGES = (
    ("groups", 1, 1000),
    ("models", 2, 10_000),
    ("least_models", 2, 10_000),
    ("delta", 1e-6, 100),
    ("alpha", 1e-4, 0.5),
    ("keep_share", 0.01, 1),
    ("least_tau", -1, 1),
    ("reference", 2, 10_000),
    ("passes", 1, 10),
    ("finalists", 1, 10_000),
    ("tolerance", 0, 1),
    ("largest_shortfall", 0, 1),
    ("resamples", 100, 1_000_000),
)
