"""A user's own training in place of ours: a function that trains an adapted model and scores it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from peftscout.errors import ConfigError
from peftscout.outcome import Evaluate
from peftscout.tasks import Encoded, Task
from peftscout.training.trial import DivergedError, Run


@dataclass(frozen=True)
class Candidate:
    """What a user's function gets: one plan to train and score.

    Attributes:
        model: a ``PeftModel`` with the plan built in; only what is to be trained asks for gradients. Train it in place.
        tokenizer: of the model.
        task: with its labels and metrics; the report split stays locked.
        train: rows to train on, as token ids.
        search: rows to score on, as token ids.
        steps: how many optimiser steps are meant.
        seed: of everything that is drawn.
        lr_scale: factor on every learning rate, tuned by the search.
        op_lr_scales: further factors on the learning rate of single op families.
    """

    model: Any
    tokenizer: Any
    task: Task
    train: Encoded
    search: Encoded
    steps: int
    seed: int
    lr_scale: float
    op_lr_scales: Mapping[str, float] = field(default_factory=dict)


Score = float | Mapping[str, float]
"""A score, or scores by name with the main one first. Higher is better."""

OwnTraining = Callable[[Candidate], Score]


def name_of(own: OwnTraining) -> str:
    """Return how the header of a study calls a function: its module and name."""
    named = own if hasattr(own, "__qualname__") else type(own)
    return f"{named.__module__}.{named.__qualname__}"


def run_own(own: OwnTraining, candidate: Candidate, request: Evaluate) -> Run:
    """Let ``own`` train and score ``candidate``; return what it did as a run.

    Raises:
        ConfigError: when what it returns is no score.
        DivergedError: when the score is not finite.
    """
    returned = own(candidate)
    named = returned if isinstance(returned, Mapping) else {candidate.task.metric: returned}
    numbers = isinstance(named, Mapping) and all(isinstance(value, Real) for value in named.values())
    if not named or not numbers:
        raise ConfigError(
            f"{name_of(own)}: returned {returned!r:.80}; return a number, or numbers by name, higher is better"
        )
    metrics = {str(name): float(value) for name, value in named.items()}
    if not all(map(math.isfinite, metrics.values())):
        raise DivergedError(f"{name_of(own)} returned {metrics}")
    steps = request.fidelity.steps
    curve: list[tuple[int, float | None, float | None]] = [(steps, None, next(iter(metrics.values())))]
    return Run(best=metrics, best_step=steps, steps=steps, passes=steps, curve=curve)
