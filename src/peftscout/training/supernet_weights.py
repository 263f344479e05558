"""The weights of a supernet in training: their optimiser and its schedule, snapshots, and their state as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from peftscout import tuner
from peftscout.gates import WeightTraining
from peftscout.space import Space
from peftscout.supernet import Supernet
from peftscout.training.evaluator import Evaluator
from peftscout.training.schedule import parameter_groups

Snapshot = tuple[list[Tensor], dict[Tensor, dict[str, Tensor]], int]
"""Weights, state of the optimiser by weight, steps taken."""


class SupernetWeights:
    """The supernet and the optimiser of its weights."""

    def __init__(self, evaluator: Evaluator, space: Space, training: WeightTraining) -> None:
        backbone, device = evaluator.backbone, evaluator.device
        with ExitStack() as taken_down:
            taken_down.enter_context(device.attention_of(backbone.model))
            self.net = Supernet.build(
                backbone.model, space, backbone.model_map, settings=evaluator.op_settings, seed=training.seed
            )
            taken_down.callback(tuner.reset, self.net.model)
            taken_down.enter_context(device.exact_heads(self.net.model))
            self.close = taken_down.pop_all().close
        self._clip = training.clip
        modules = range(len(self.net.modules))
        self.of_modules = [p for m in modules for p in self.net.parameters_of(m)]
        self.head = tuner.parameters_by_op(self.net.model).get("head", [])
        self.owner = np.array([m for m in modules for _ in self.net.parameters_of(m)])
        rates = dict(evaluator.settings.learning_rates)
        if training.learning_rate is not None:
            rates |= {op: training.learning_rate for op in rates if op != "head"}
        settings = replace(evaluator.settings, learning_rates=rates, weight_decay=training.weight_decay)
        self._optimiser = torch.optim.AdamW(
            parameter_groups(tuner.parameters_by_op(self.net.model), settings, lambda op: training.lr_scale)
        )
        self._base_rates = [group["lr"] for group in self._optimiser.param_groups]
        self.parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        self._steps, self._last_rate = training.steps, training.last_rate
        self._set_rates(0)

    def _rate_factor(self, step: int) -> float:
        """Linear decay without a warm-up."""
        return max(self._last_rate, 1 - (1 - self._last_rate) * step / self._steps)

    def _set_rates(self, step: int) -> None:
        self._step = step
        for group, rate in zip(self._optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self._rate_factor(step)

    def update(self) -> None:
        """One clipped optimiser step on the gradients; tensors without one are left alone."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self._clip)
        self._optimiser.step()
        self._set_rates(self._step + 1)

    def scaled_gradients(self) -> dict[nn.Parameter, Tensor]:
        """Return every gradient, clipped, times the learning rate of the step that was just taken."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self._clip)
        decay = self._rate_factor(self._step - 1)
        return {
            p: rate * decay * p.grad.detach().clone()
            for group, rate in zip(self._optimiser.param_groups, self._base_rates, strict=True)
            for p in group["params"]
            if p.grad is not None
        }

    def snapshot(self) -> Snapshot:
        """Return copies of weights and optimiser state."""
        state = {p: {k: v.clone() for k, v in s.items()} for p, s in self._optimiser.state.items()}
        return [p.detach().clone() for p in self.parameters], state, self._step

    def restore(self, snapshot: Snapshot) -> None:
        """Write a `snapshot` back, bit for bit."""
        values, state, step = snapshot
        with torch.no_grad():
            for p, value in zip(self.parameters, values, strict=True):
                p.copy_(value)
        self._optimiser.state.clear()
        self._optimiser.state.update({p: {k: v.clone() for k, v in s.items()} for p, s in state.items()})
        self._set_rates(step)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of weights and optimiser state as arrays."""
        arrays = {f"weights/{n}": p.detach().cpu().numpy().copy() for n, p in enumerate(self.parameters)}
        for n, p in enumerate(self.parameters):
            for name, value in self._optimiser.state.get(p, {}).items():
                arrays[f"optimiser/{n}/{name}"] = value.cpu().numpy().copy()
        return arrays

    def load(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Take up a `state` after ``step`` steps."""
        self._optimiser.state.clear()
        with torch.no_grad():
            for n, p in enumerate(self.parameters):
                p.copy_(torch.as_tensor(arrays[f"weights/{n}"]))
                if moments := below(f"optimiser/{n}/", arrays):
                    # AdamW keeps its count of steps on the CPU.
                    self._optimiser.state[p] = {
                        name: torch.tensor(a, device="cpu" if name == "step" else p.device)
                        for name, a in moments.items()
                    }
        self._set_rates(step)


def below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with ``prefix``, by the rest of their names."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
