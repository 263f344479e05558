"""Gates: how much of every module of a space is there, as a differentiable strategy sets it. Pure; numpy only.

A **module** is what a strategy switches and sizes as one: the choices of a space that share a size variable, most
often a single one. Its **gate** is a number (0: absent, 1: there) and a weight for each of its sizes, which sum to 1. A
supernet computes gate * op, with each unit of the op weighted by how much of the weight lies on sizes that hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from peftscout.cost import price
from peftscout.errors import SpaceError
from peftscout.plan import Plan
from peftscout.space import Choice, Space

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Module:
    """Choices that are there together and share one size.

    Attributes:
        name: of the size variable.
        choices: at least one; all with the same sizes.
        costs: trainable parameters of all choices together at each size.
    """

    name: str
    choices: tuple[Choice, ...]
    costs: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes allowed, ascending."""
        return self.choices[0].sizes


@dataclass(frozen=True)
class Modules(Sequence[Module]):
    """Every module of a space, in the order of its choices, and its sizes and costs as arrays.

    Raises:
        SpaceError: when a choice has a switch: its gate would be that of two modules at once.
    """

    space: Space

    @cached_property
    def _members(self) -> tuple[Module, ...]:
        tied: dict[str, list[Choice]] = {}
        for choice in self.space.choices:
            tied.setdefault(choice.size_variable, []).append(choice)
        return tuple(
            Module(name, tuple(choices), tuple(self._cost(choices, size) for size in choices[0].sizes))
            for name, choices in tied.items()
        )

    def __post_init__(self) -> None:
        if switched := next((c for c in self.space.choices if c.switch is not None), None):
            raise SpaceError(
                f"space {self.space.name!r}: {switched} has the switch {switched.switch!r}; a differentiable search "
                "gives every module one gate of its own, so take a space without switches, such as bipeft-s1"
            )

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._members[index]

    def _cost(self, choices: Sequence[Choice], size: int) -> int:
        return sum(price(self.space.sites[c.site], c.op).at(size) for c in choices)

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """Number of sizes of each module, ``[modules]``."""
        return np.array([len(m.sizes) for m in self], dtype=np.int64)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Which levels are sizes of the module, ``[modules, levels]``; the rest pads the array."""
        return np.arange(self.levels.max()) < self.levels[:, None]

    @cached_property
    def costs(self) -> NDArray[np.int64]:
        """Trainable parameters at each level, ``[modules, levels]``; 0 where there is no such level."""
        costs = np.zeros(self.allowed.shape, dtype=np.int64)
        for row, module in zip(costs, self, strict=True):
            row[: len(module.costs)] = module.costs
        return costs

    def one_hot(self, level: NDArray[np.int64]) -> Floats:
        """Return all weight on ``level [modules]``, as ``[modules, levels]``."""
        return np.asarray(np.arange(self.allowed.shape[1]) == level[:, None], dtype=np.float64)

    def plan(self, level: Mapping[int, int]) -> Plan:
        """Return the plan that has module m at level ``level[m]`` and no other module."""
        return Plan.of({(c.site, c.op): self[m].sizes[k] for m, k in level.items() for c in self[m].choices})

    def levels_of(self, plan: Plan) -> dict[int, int]:
        """Return the level of every module of ``plan``; the inverse of `plan`."""
        self.space.encode(plan)
        first = {(m.choices[0].site, m.choices[0].op): n for n, m in enumerate(self)}
        return {first[key]: self[first[key]].sizes.index(size) for key, size in plan.sizes.items() if key in first}


@dataclass(frozen=True)
class Gates:
    """The gates of all modules.

    Attributes:
        on: ``[modules]``; 0 is absent.
        size: weight of each size, ``[modules, levels]``; every row sums to 1.
        probed: ``[modules]``: which closed modules are computed where gate gradients are wanted; ``None``: all of them.
    """

    on: Floats
    size: Floats
    probed: NDArray[np.bool_] | None = None

    @classmethod
    def of_plan(cls, plan: Plan, modules: Modules) -> Self:
        """Return the hard gates that make a supernet compute what ``plan`` computes."""
        levels = modules.levels_of(plan)
        level = np.array([levels.get(m, 0) for m in range(len(modules))], dtype=np.int64)
        return cls(np.isin(np.arange(len(modules)), list(levels)).astype(np.float64), modules.one_hot(level))


@dataclass(frozen=True)
class Step:
    """What one pass over a batch tells a strategy.

    Attributes:
        loss: mean over the batch.
        on: gradient of the loss with respect to `Gates.on`, ``[modules]``.
        size: gradient with respect to `Gates.size`, ``[modules, levels]``.
        saliency: sum over all parameters of the module of abs(theta * gradient), ``[modules]``; 0 where it was skipped.
        agreement: mean over the tensors of the module of the cosine between theta * gradient of this batch and of the
            last batch of the other split, ``[modules]``; 0 where either vanishes.
    """

    loss: float
    on: Floats
    size: Floats
    saliency: Floats
    agreement: Floats


@dataclass(frozen=True, slots=True)
class WeightTraining:
    """How the weights of a supernet are trained, next to its gates.

    Attributes:
        steps: over which the learning rate falls linearly to ``last_rate`` of itself; a search may end earlier.
        learning_rate: of every op; ``None``: the rates that plans are trained with, one for each op family.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        seed: of initialisation, data order and dropout.
        saliency: whether steps report `Step.saliency` and `Step.agreement`; zero otherwise.
        validation_share: share of validation rows in a batch of both halves.
        lr_scale: factor on the learning rate of every op, head included.
        last_rate: share of the learning rate that is left at the end.
        held_out: share of the training rows that are validation rows, which the weights never see.
    """

    steps: int
    learning_rate: float | None
    weight_decay: float
    clip: float
    seed: int
    saliency: bool = False
    validation_share: float = 0.25
    lr_scale: float = 1.0
    last_rate: float = 0.0
    held_out: float = 0.5


class Kept(NamedTuple):
    """A differentiable search at rest: arrays, and facts that are plain JSON."""

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
