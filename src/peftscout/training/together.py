"""Several plans trained at once in a stack, each on the course that it takes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftscout.stacked import Stack
from peftscout.tasks import Encoded, compute_metrics
from peftscout.training.batches import BatchMaker, evaluation_order, padded_width
from peftscout.training.device import Device
from peftscout.training.forward import Activations, token_count
from peftscout.training.frozen_prefix import Entrance, bare, entered_at, run_prefix
from peftscout.training.loop import Progress
from peftscout.training.objectives import Batch, Objective, Pass
from peftscout.training.packing import NO_CACHE, Packing, pack
from peftscout.training.scoring import in_order
from peftscout.training.trial import DivergedError, RandomStream, Trial

Part = tuple[Encoded, np.ndarray]
"""Rows of one slot: a set of rows and indices into it."""


class StackForward:
    """Passes the rows of every live slot of a stack through it at once.

    Where all slots read the same rows, what lies below the lowest tuned block is computed for one of them only.

    Args:
        stack: of plans.
        make_batch: pads rows.
        device: with its arithmetic.
        entrance: where the model may be entered above what no plan of the stack tunes.
        activations: stored ones for there.
        packs: whether rows may share sequences in passes for the loss.
    """

    def __init__(
        self,
        stack: Stack,
        make_batch: BatchMaker,
        device: Device,
        entrance: Entrance | None = None,
        activations: Activations | None = None,
        packs: bool = False,
    ) -> None:
        self.stack, self.device, self.packs = stack, device, packs
        self._make_batch, self._entrance, self._activations = make_batch, entrance, activations

    def __call__(
        self, parts: Sequence[Part], compute: Callable[[Any, Batch], Pass], *, for_loss: bool = False
    ) -> list[Pass]:
        """Return what ``compute``, a pass of an `Objective`, gives each live slot for its part.

        ``for_loss``: it is the training pass, whose outputs need not be by row.
        """
        most = max(len(indices) for _, indices in parts)
        filled = [(rows, np.concatenate([own, np.full(most - len(own), own[0])])) for rows, own in parts]
        rows, indices = filled[0]
        alike = all(other is rows and np.array_equal(own, indices) for other, own in filled[1:])
        once = slice(1 if alike else None)
        packing = self._packing(parts[once], most) if self.packs and for_loss else None
        padded = self._padded(filled[once])
        batch = self.device.put(padded if packing is None else packing.batch(padded))
        hidden = self._hidden(filled[once], batch, packing, alike)
        if alike:
            batch = {name: torch.cat([tensor] * len(parts)) for name, tensor in batch.items()}
            hidden = None if hidden is None else torch.cat([hidden] * len(parts))
        with self.device.autocast(), self._entered(hidden):
            outputs, targets = compute(self.stack.model, {**batch, **_told(packing)})
        split = zip(self.stack.split(outputs), self.stack.split(targets), parts, strict=True)
        return [(own[: len(part[1])], its[: len(part[1])]) for own, its, part in split]

    def _padded(self, parts: Sequence[Part]) -> dict[str, Tensor]:
        features = [rows.features[i] for rows, indices in parts for i in indices]
        return self._make_batch(features, np.concatenate([rows.references[indices] for rows, indices in parts]))

    def _packing(self, parts: Sequence[Part], most: int) -> Packing | None:
        lengths = [rows.lengths[indices].tolist() for rows, indices in parts]
        return pack(lengths, padded_width(max(map(max, lengths))), most)

    def _hidden(
        self, parts: Sequence[Part], batch: Mapping[str, Tensor], packing: Packing | None, alike: bool
    ) -> Tensor | None:
        """Return what enters above the frozen prefix, or ``None`` where nothing is saved by that."""
        if self._activations is not None:
            width = batch["input_ids"].shape[-1]
            stored = torch.cat([self._activations.of(rows, indices, width) for rows, indices in parts])
            return (stored if packing is None else packing.of(stored)).to(self.device.torch_device)
        if self._entrance is None or not alike:
            return None
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with self.device.autocast():
            return run_prefix(bare(self.stack.model), self._entrance.prefix, {**inputs, **_told(packing)})

    def _entered(self, hidden: Tensor | None) -> AbstractContextManager[None]:
        if hidden is None or self._entrance is None:
            return nullcontext()
        return entered_at(self.stack.model, self._entrance, hidden)


def train_together(
    trials: Mapping[int, Trial],
    forward: StackForward,
    search_rows: Encoded,
    objective: Objective,
    progress: Progress | None = None,
) -> dict[int, DivergedError]:
    """Take the trials of the slots of a stack, of equal fidelity, to their last step; return what diverged, by slot.

    What diverges leaves the stack; the others go on untouched. See `peftscout.training.loop.train`, of which this is
    the course for several: the numbers are the same up to the rounding of larger products.
    """
    stack, lost = forward.stack, dict[int, DivergedError]()
    for slot, trial in trials.items():
        with stack.rng(slot):
            trial.rng.enter()
    stack.train()
    first = next(iter(trials.values()))
    while len(stack) and not first.finished:
        live = {slot: trials[slot] for slot in stack.live}
        parts = {slot: (trial.rows, trial.next_rows()) for slot, trial in live.items()}
        outputs = forward(list(parts.values()), objective.train, for_loss=True)
        losses = {s: objective.loss(*output) for s, output in zip(live, outputs, strict=True)}
        forward.device.accelerator.backward(torch.stack(list(losses.values())).sum())
        for slot, trial in live.items():
            _count(trial, *parts[slot], packs=forward.packs)
            try:
                trial.require_finite(losses[slot])
                trial.update(losses[slot])
            except DivergedError as error:
                lost[slot] = error
        _retire(stack, lost)
        first = trials[stack.live[0]] if len(stack) else first
        if len(stack) and first.due:
            lost |= _score({slot: trials[slot] for slot in stack.live}, forward, search_rows, objective)
            _retire(stack, lost)
            stack.train()
        if progress is not None:
            progress(first.run.steps, first.fidelity.steps)
    for slot, trial in trials.items():
        with stack.rng(slot):
            trial.rng = RandomStream.now()
    return lost


@torch.inference_mode()
def _score(
    trials: Mapping[int, Trial], forward: StackForward, rows: Encoded, objective: Objective
) -> dict[int, DivergedError]:
    """Score every trial on ``rows``; return those whose outputs are not finite."""
    forward.stack.model.eval()
    lost = dict[int, DivergedError]()
    predictions: dict[int, list[np.ndarray]] = {slot: [] for slot in trials}
    totals, weights, order = dict.fromkeys(trials, 0.0), dict.fromkeys(trials, 0.0), list[np.ndarray]()
    settings = next(iter(trials.values())).settings
    for indices in evaluation_order(rows.lengths, settings.eval_batch_size):
        order.append(indices)
        passed = forward([(rows, indices)] * len(trials), objective.score)
        for slot, (outputs, targets) in zip(trials, passed, strict=True):
            try:
                predictions[slot].append(objective.predictions(outputs, targets))
                total, weight = objective.total(outputs, targets)
                totals[slot], weights[slot] = totals[slot] + total, weights[slot] + weight
            except DivergedError as error:
                lost[slot] = error
            _count(trials[slot], rows, indices)
    for slot, trial in trials.items():
        trial.run.passes += len(rows) / settings.batch_size / 3
        if slot not in lost:
            own = in_order(predictions[slot], order)
            metrics = compute_metrics(objective.metrics, own, rows.references)
            trial.scored({**metrics, "loss": totals[slot] / weights[slot]})
    return lost


def _retire(stack: Stack, slots: Mapping[int, DivergedError]) -> None:
    for slot in slots:
        if slot in stack.live:
            stack.retire(slot)


def _told(packing: Packing | None) -> Mapping[str, Any]:
    return {} if packing is None else NO_CACHE


def _count(trial: Trial, rows: Encoded, indices: np.ndarray, packs: bool = False) -> None:
    """Count the tokens that the batch has alone; in a stack it may be padded further."""
    computed, real = token_count(rows, indices, packs)
    trial.run.tokens += computed
    trial.run.real_tokens += real
