"""The training loop of one plan: forward, backward, step; scored when due; best state kept.

Several processes, as accelerate starts them, may train one plan: each passes its part of every batch, gradients are
brought together, and all take the same step. They score the same rows, all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from peftscout.tasks import Encoded
from peftscout.training.forward import Forward
from peftscout.training.objectives import Objective
from peftscout.training.scoring import evaluate
from peftscout.training.trial import RandomStream, Trial

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def train(
    trial: Trial,
    forward: Forward,
    search_rows: Encoded,
    objective: Objective,
    *,
    training_mode: Callable[[], None],
    progress: Progress | None = None,
) -> None:
    """Take ``trial`` from where it stands to its last step, scoring it on ``search_rows`` whenever it is due.

    Args:
        trial: of the model behind ``forward``.
        forward: passes rows through the model.
        search_rows: the search split.
        objective: of the task.
        training_mode: puts the model into training mode.
        progress: is told after every step.

    Raises:
        DivergedError: when the loss or a prediction is not finite.
    """
    run, settings = trial.run, trial.settings
    training_mode()
    trial.rng.enter()
    while not trial.finished:
        before = forward.tokens, forward.real_tokens
        trial.update(_backward(trial, forward, objective))
        if trial.due:
            trial.scored(evaluate(forward, search_rows, objective, settings.eval_batch_size))
            run.passes += len(search_rows) / settings.batch_size / 3
            training_mode()
        run.tokens += forward.tokens - before[0]
        run.real_tokens += forward.real_tokens - before[1]
        if progress is not None:
            progress(run.steps, trial.fidelity.steps)
    trial.rng = RandomStream.now()


def _backward(trial: Trial, forward: Forward, objective: Objective) -> Tensor:
    """Leave the gradients of the loss on the next batch in the trained tensors; return that loss.

    With micro-batches, or with several processes, the batch is passed in parts, each weighted by what its mean is over:
    rows, or tokens. So the gradient is that of the whole batch, however it is divided.
    """
    indices, accelerator = trial.next_rows(), forward.device.accelerator
    passes = trial.settings.micro_batches * accelerator.num_processes
    if passes == 1:
        loss = objective.loss(*forward(trial.rows, indices, objective.train, for_loss=True))
        trial.require_finite(loss)
        accelerator.backward(loss)
        return loss
    sums = torch.zeros(2, device=forward.device.torch_device)
    for part in np.array_split(indices, passes)[accelerator.process_index :: accelerator.num_processes]:
        if len(part):
            outputs, targets = forward(trial.rows, part, objective.train, for_loss=True)
            weight = objective.weight(outputs, targets)
            weighted = objective.loss(outputs, targets) * weight
            accelerator.backward(weighted)
            sums += torch.stack([weighted.detach().float(), sums.new_tensor(weight)])
    loss = _mean(trial.parameters, sums, accelerator)
    trial.require_finite(loss)
    return loss


def _mean(parameters: Sequence[Tensor], sums: Tensor, accelerator: Accelerator) -> Tensor:
    """Divide the gradients in ``parameters``, summed over all processes, by the weight; return the mean loss.

    Args:
        parameters: hold the gradient of the weighted losses of this process.
        sums: weighted loss and weight of this process, ``[2]``.
        accelerator: of all processes. One reduction brings everything together.
    """
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    reached = sums.new_tensor([float(p.grad is not None) for p in parameters])
    if accelerator.num_processes > 1:
        flat = accelerator.reduce(torch.cat([sums, reached, *(g.flatten().float() for g in grads)]), "sum")
        sums, reached, *rest = flat.split([2, len(grads), *(g.numel() for g in grads)])
        grads = [g.view_as(p).to(p.dtype) for g, p in zip(rest, parameters, strict=True)]
    loss, weight = sums[0], sums[1].clamp(min=1)
    for parameter, grad, here in zip(parameters, grads, reached.tolist(), strict=True):
        parameter.grad = grad / weight if here else None
    return loss / weight
