"""What is asked of an evaluator and what comes back: Evaluate and Outcome. Pure data, JSON-able."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from peftscout.plan import Plan


class State(StrEnum):
    """Everything that can become of an evaluation."""

    DONE = "done"
    PRUNED = "pruned"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How much training an evaluation gets.

    Attributes:
        steps: optimiser steps.
        data_fraction: share of the training rows that are used, in (0, 1].
    """

    steps: int
    data_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: at least one is needed")
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"data_fraction {self.data_fraction}: must be in (0, 1]")


@dataclass(frozen=True, slots=True)
class Evaluate:
    """A request: train ``plan`` from its initialisation at ``fidelity`` with ``seed`` and report its score.

    Attributes:
        plan: what to build.
        fidelity: how long to train.
        seed: decides initialisation, data order and dropout.
        lr_scale: factor on the learning rate of every op family (the nuisance axis).
        label: for people, such as ``uniform lora r=8 on q,v``; not part of the identity.
    """

    plan: Plan
    fidelity: Fidelity
    seed: int
    lr_scale: float = 1.0
    label: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """Identity of the request: equal requests give equal outcomes and are never run twice."""
        identity = [self.plan.digest, self.fidelity.steps, self.fidelity.data_fraction, self.seed, self.lr_scale]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the inverse of `from_json`."""
        return {
            "plan": self.plan.to_json(),
            "fidelity": asdict(self.fidelity),
            "seed": self.seed,
            "lr_scale": self.lr_scale,
            "label": self.label,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        return cls(
            Plan.from_json(data["plan"]), Fidelity(**data["fidelity"]), data["seed"], data["lr_scale"], data["label"]
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one evaluation. Only `State.DONE` outcomes have a score, and it is finite.

    Attributes:
        state: see `State`.
        cost: trainable parameters of the built model, head excluded.
        score: main metric on the search-validation split, higher is better; ``None`` unless done.
        metrics: every metric of the task on the same rows, and ``loss``.
        seconds: wall time, building included.
        steps: optimiser steps taken.
        passes: forward-backward passes over a batch, evaluation batches counted as a third of one.
        peak_memory: bytes: of the accelerator, or of the process on a CPU.
        curve: (step, mean training loss since the point before, validation score or ``None``) over the run.
        message: for people: why it is not done.
    """

    state: State
    cost: int
    score: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    passes: float = 0.0
    peak_memory: int = 0
    curve: tuple[tuple[int, float | None, float | None], ...] = ()
    message: str = ""

    def __post_init__(self) -> None:
        finite = isinstance(self.score, float) and math.isfinite(self.score)
        if (self.state is State.DONE) != finite:
            raise ValueError(f"an outcome {self.state} cannot have the score {self.score!r}")

    @property
    def done(self) -> bool:
        """Whether there is a score to trust."""
        return self.state is State.DONE

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the inverse of `from_json`."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "state": str(self.state),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        curve = tuple((step, loss, score) for step, loss, score in data["curve"])
        return cls(**{**data, "state": State(data["state"]), "curve": curve})
