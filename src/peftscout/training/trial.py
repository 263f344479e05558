"""`Trial`: one plan in training. Everything that makes its course, and that a pause must keep, is in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftscout.outcome import Fidelity
from peftscout.tasks import Encoded
from peftscout.training.batches import training_order
from peftscout.training.paused import Paused
from peftscout.training.schedule import evaluation_steps, learning_rate_factor
from peftscout.training.settings import TrainingSettings

State = dict[str, Tensor]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""


class DivergedError(ArithmeticError):
    """The loss or a prediction became NaN or infinite."""


@dataclass
class Run:
    """What a training run leaves behind.

    Attributes:
        best: metrics on the search split at the best evaluation point, the main metric first.
        best_step: its step.
        steps: optimiser steps taken.
        passes: forward-backward passes; a forward pass of an evaluation counts as a third, scaled by its batch size.
        tokens: positions computed in training and evaluation, padding included.
        real_tokens: those that hold a token.
        curve: (step, mean training loss since the last point, main metric).
    """

    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    steps: int = 0
    passes: float = 0.0
    tokens: int = 0
    real_tokens: int = 0
    curve: list[tuple[int, float | None, float | None]] = field(default_factory=list)


class Trial:
    """The training of one plan: its optimiser, schedule, data order, random stream, and what it has reached.

    Deterministic by ``seed`` on one device: the data order and the dropout masks follow from it. A trial that was
    paused and resumed is, bit for bit, the trial that went on.

    Args:
        groups: of AdamW, see `schedule.parameter_groups`.
        fidelity: how long it runs.
        seed: of data order and random stream.
        rows: to train on.
        settings: batch size, schedule, clipping.
        snapshot: returns copies of the trained tensors.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        fidelity: Fidelity,
        seed: int,
        rows: Encoded,
        settings: TrainingSettings,
        snapshot: Callable[[], State],
    ) -> None:
        self.fidelity, self.rows, self.settings = fidelity, rows, settings
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups)
        factor = learning_rate_factor(fidelity, settings.warmup)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._factor = factor
        self._snapshot = snapshot
        self._evaluate_at = evaluation_steps(fidelity, settings.evaluations)
        self._seed = seed
        self._order = training_order(rows.lengths, settings.batch_size, seed)
        self._losses: list[Tensor] = []
        self.rng = RandomStream.seeded(seed)
        self.run = Run()
        self.best_state: State = {}

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self.run.steps >= self.fidelity.steps

    @property
    def due(self) -> bool:
        """Whether it is to be scored now, before the next step."""
        return self.run.steps in self._evaluate_at

    def next_rows(self) -> np.ndarray:
        """Return the indices of the rows of the next batch."""
        return next(self._order)

    def rows_of_all_rungs(self) -> np.ndarray:
        """Return the indices, ascending, of all rows that this run and its continuations on higher rungs visit."""
        steps = self.fidelity.rungs[-1] if self.fidelity.rungs else self.fidelity.steps
        order = training_order(self.rows.lengths, self.settings.batch_size, self._seed)
        return np.unique(np.concatenate(list(islice(order, steps))))

    def update(self, loss: Tensor) -> None:
        """Take an optimiser step from the gradients that were left by ``loss``, a finite scalar."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        factor = self._factor(self.run.steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss.detach())
        self.run.steps += 1
        self.run.passes += 1

    def require_finite(self, loss: Tensor) -> None:
        """Raise a DivergedError unless ``loss`` is finite."""
        if not torch.isfinite(loss):
            raise DivergedError(f"the training loss is {loss.item()} at step {self.run.steps + 1}")

    def scored(self, metrics: dict[str, float]) -> None:
        """Take note of the metrics on the search split, the main one first; keep the state when it is the best yet."""
        score = next(iter(metrics.values()))
        self.run.curve.append((self.run.steps, torch.stack(self._losses).mean().item(), score))
        self._losses = []
        if not self.run.best or score >= next(iter(self.run.best.values())):
            self.run.best, self.run.best_step = metrics, self.run.steps
            self.best_state = self._snapshot()

    # -- pausing ------------------------------------------------------------------------------------------------------

    def pause(self) -> Paused:
        """Return everything that the rest of the run depends on. Only right after `scored`."""
        tensors = {f"best/{name}": tensor for name, tensor in self.best_state.items()} | self.rng.tensors()
        for n, parameter in enumerate(self.parameters):
            tensors[f"now/{n}"] = parameter.detach()
            tensors |= {f"{moment}/{n}": self.optimizer.state[parameter][moment] for moment in _MOMENTS}
        return Paused({name: t.cpu().contiguous() for name, t in tensors.items()}, asdict(self.run))

    def resume(self, paused: Paused) -> None:
        """Go on where ``paused`` stopped; this trial must be fresh, and of the same plan, seed and settings."""
        run = Run(**paused.run)
        run.curve = [(step, loss, score) for step, loss, score in run.curve]
        self.run, self.rng = run, RandomStream.of(paused.tensors)
        self._order = islice(training_order(self.rows.lengths, self.settings.batch_size, self._seed), run.steps, None)
        self.best_state = {
            name.removeprefix("best/"): t for name, t in paused.tensors.items() if name.startswith("best/")
        }
        with torch.no_grad():
            for n, parameter in enumerate(self.parameters):
                parameter.copy_(paused.tensors[f"now/{n}"])
                moments = {m: paused.tensors[f"{m}/{n}"].clone() for m in _MOMENTS}
                on_device = {m: t if m == "step" else t.to(parameter.device) for m, t in moments.items()}
                self.optimizer.state[parameter] = on_device


@dataclass(frozen=True)
class RandomStream:
    """The state of torch's generators: of the CPU, and of the accelerator where there is one."""

    cpu: Tensor
    cuda: Tensor | None = None

    @classmethod
    def seeded(cls, seed: int) -> RandomStream:
        """Return the state right after ``torch.manual_seed(seed)``, which is left as it was."""
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(seed)
            return cls.now()

    @classmethod
    def now(cls) -> RandomStream:
        """Return the state as it is."""
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> RandomStream:
        """Read the inverse of `tensors`."""
        return cls(tensors["rng/cpu"], tensors.get("rng/cuda"))

    def tensors(self) -> State:
        """Return the state by name."""
        return {"rng/cpu": self.cpu} | ({} if self.cuda is None else {"rng/cuda": self.cuda})

    def enter(self) -> None:
        """Let torch draw from this state from now on."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.cuda)
