"""What is asked of an evaluator and what comes back: Evaluate and Outcome. Pure data, JSON-able."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import pairwise
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

    With ``rungs`` it is a place on a ladder (multi-fidelity): the run is evaluated at the end of every rung up to
    ``steps``; its learning rate is constant after the warm-up and falls only within the last rung, between
    ``rungs[-2]`` and ``rungs[-1]``. So the run to a lower rung is the beginning of the run to a higher one, and the
    outcome does not depend on whether it was resumed there or trained from the start.

    Attributes:
        steps: optimiser steps.
        data_fraction: share of the training rows that are used, in (0, 1].
        rungs: the ladder, in steps: at least two, ascending, ``steps`` among them, the last one the full training.
            Empty: no ladder; evaluations and learning rate follow from ``steps`` alone.
    """

    steps: int
    data_fraction: float = 1.0
    rungs: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps}: at least one is needed")
        if not 0 < self.data_fraction <= 1:
            raise ValueError(f"data_fraction {self.data_fraction}: must be in (0, 1]")
        if self.rungs:
            self._check_rungs()

    def _check_rungs(self) -> None:
        rungs = self.rungs
        if (
            type(rungs) is not tuple
            or len(rungs) < 2
            or rungs[0] < 1
            or any(low >= high for low, high in pairwise(rungs))
        ):
            raise ValueError(f"rungs {rungs!r}: must be a tuple of at least two ascending numbers of steps, from 1")
        if self.steps not in rungs:
            raise ValueError(f"steps {self.steps}: must be one of the rungs {rungs}")

    @property
    def full(self) -> bool:
        """Whether this is the whole training: there is no ladder, or it ends here."""
        return not self.rungs or self.steps == self.rungs[-1]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the inverse of `from_json`. Without a ladder it says nothing of rungs."""
        data = asdict(self)
        if not self.rungs:
            del data["rungs"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON form, also of before there were rungs."""
        return cls(**{**data, "rungs": tuple(data.get("rungs", ()))})


@dataclass(frozen=True, slots=True)
class Evaluate:
    """A request: train ``plan`` at ``fidelity`` with ``seed`` and report its score.

    Attributes:
        plan: what to build.
        fidelity: how long to train.
        seed: decides initialisation, data order and dropout.
        lr_scale: factor on the learning rate of every op family (the nuisance axis).
        label: for people, such as ``uniform lora r=8 on q,v``; not part of the identity.
        initial: name of the state to start from, such as a slice of a trained supernet; empty: fresh weights by seed.
        task: name of the task to train on; empty: the study's own, see `Problem.tasks`.
        op_lr_scales: further factors on the learning rate of single op families, such as ``(("lora", 3.0),)``.
    """

    plan: Plan
    fidelity: Fidelity
    seed: int
    lr_scale: float = 1.0
    label: str = field(default="", compare=False)
    initial: str = ""
    task: str = ""
    op_lr_scales: tuple[tuple[str, float], ...] = ()

    def lr_factor(self, op: str) -> float:
        """Return the factor on the learning rate of an op family, or of the head."""
        return self.lr_scale * dict(self.op_lr_scales).get(op, 1.0)

    @property
    def key(self) -> str:
        """Identity of the request: equal requests give equal outcomes and are never run twice."""
        f = self.fidelity
        return self._digest(
            [self.plan.digest, f.steps, f.data_fraction, self.seed, self.lr_scale, *[f.rungs] * bool(f.rungs)]
        )

    @property
    def course(self) -> str:
        """What requests have in common of which one continues the other on a ladder of rungs: all but the steps."""
        f = self.fidelity
        return self._digest([self.plan.digest, f.data_fraction, list(f.rungs) or f.steps, self.seed, self.lr_scale])

    def _digest(self, identity: list[Any]) -> str:
        """What came later counts only where it is used: identities in older ledgers stay what they are."""
        later: list[Any] = [self.initial] if self.initial else []
        later += [{"task": self.task}] if self.task else []
        later += [{"op_lr_scales": self.op_lr_scales}] if self.op_lr_scales else []
        return hashlib.sha256(json.dumps(identity + later).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; the inverse of `from_json`. The default of a later field is left out."""
        data = {
            "plan": self.plan.to_json(),
            "fidelity": self.fidelity.to_json(),
            "seed": self.seed,
            "lr_scale": self.lr_scale,
            "label": self.label,
        }
        later = {"initial": self.initial, "task": self.task, "op_lr_scales": [list(s) for s in self.op_lr_scales]}
        return data | {name: value for name, value in later.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the JSON form."""
        fidelity = Fidelity.from_json(data["fidelity"])
        later = {name: data[name] for name in ("initial", "task") if name in data}
        later["op_lr_scales"] = tuple((op, scale) for op, scale in data.get("op_lr_scales", ()))
        return cls(Plan.from_json(data["plan"]), fidelity, data["seed"], data["lr_scale"], data["label"], **later)


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
        tokens: positions computed in training and evaluation, padding included.
        real_tokens: those of them that hold a token.
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
    tokens: int = 0
    real_tokens: int = 0
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
