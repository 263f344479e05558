"""One training run of an adapted model: AdamW, linear warm-up and decay, clipping, best state kept in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftscout.tasks import Encoded, compute_metrics
from peftscout.training.batches import BatchMaker, evaluation_order, training_order
from peftscout.training.device import Device
from peftscout.training.settings import TrainingSettings

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""

State = dict[str, Tensor]


class DivergedError(ArithmeticError):
    """The loss or a prediction became NaN or infinite."""


@dataclass(frozen=True)
class Predictor:
    """How model outputs become predictions, and predictions metrics."""

    metrics: tuple[str, ...]
    regression: bool

    def predictions(self, logits: Tensor) -> np.ndarray:
        """Return class ids [B], or values [B] for regression, from logits [B, labels] ([B, choices])."""
        logits = logits.float()
        if not torch.isfinite(logits).all():
            raise DivergedError("the model's outputs are NaN or infinite")
        out = logits.view(-1) if self.regression else logits.argmax(-1)
        return np.asarray(out.cpu().numpy())


@dataclass
class Run:
    """What a training run leaves behind.

    Attributes:
        best: metrics on the search split at the best evaluation point, the main metric first.
        best_state: the trained tensors there.
        best_step: its step.
        steps: optimiser steps taken.
        passes: forward-backward passes; a forward pass of an evaluation counts as a third, scaled by its batch size.
        curve: (step, mean training loss since the last point, main metric).
    """

    best: dict[str, float] = field(default_factory=dict)
    best_state: State = field(default_factory=dict)
    best_step: int = 0
    steps: int = 0
    passes: float = 0.0
    curve: list[tuple[int, float | None, float | None]] = field(default_factory=list)


def parameter_groups(
    by_op: Mapping[str, Sequence[nn.Parameter]], settings: TrainingSettings, lr_scale: float
) -> list[dict[str, Any]]:
    """Return AdamW groups: the learning rate of each op family times ``lr_scale``; weight decay on matrices only."""
    groups = []
    for op, parameters in by_op.items():
        for matrices in (True, False):
            members = [p for p in parameters if (p.dim() >= 2) is matrices]
            if members:
                decay = settings.weight_decay if matrices else 0.0
                groups.append({"params": members, "lr": settings.learning_rates[op] * lr_scale, "weight_decay": decay})
    return groups


def warmup_then_decay(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the learning-rate factor at a step: linear from 0 over ``warmup`` * ``steps``, then linear to 0."""
    rising = max(1, math.ceil(warmup * steps))
    return lambda step: (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


def set_training(model: Any, backbone_dropout: str) -> None:
    """Switch to training; with ``backbone_dropout`` "off" the backbone stays in evaluation mode, head and ops train."""
    model.train()
    if backbone_dropout == "off":
        base = model.get_base_model()
        getattr(base, base.base_model_prefix, base).eval()


def train(
    model: Any,
    groups: list[dict[str, Any]],
    train_rows: Encoded,
    search_rows: Encoded,
    make_batch: BatchMaker,
    predictor: Predictor,
    settings: TrainingSettings,
    device: Device,
    *,
    steps: int,
    seed: int,
    snapshot: Callable[[], State],
    progress: Progress | None = None,
) -> Run:
    """Train for ``steps`` optimiser steps and keep the state that scores best on the search split.

    Deterministic by ``seed`` on one device: the data order and the dropout masks follow from it.

    Raises:
        DivergedError: when the loss or a prediction is not finite.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_then_decay(steps, settings.warmup))
    trained = [p for group in groups for p in group["params"]]
    batches = training_order(train_rows.lengths, settings.batch_size, seed)
    evaluate_at = {math.ceil(steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    run, losses = Run(), []
    set_training(model, settings.backbone_dropout)
    for step, rows in enumerate(islice(batches, steps), start=1):
        batch = device.put(make_batch([train_rows.features[i] for i in rows], train_rows.references[rows]))
        with device.autocast():
            loss = model(**batch).loss
        if not torch.isfinite(loss):
            raise DivergedError(f"the training loss is {loss.item()} at step {step}")
        device.accelerator.backward(loss)
        device.accelerator.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        run.steps, run.passes = step, run.passes + 1
        if step in evaluate_at:
            metrics = evaluate(model, search_rows, make_batch, predictor, settings, device)
            run.passes += len(search_rows) / settings.batch_size / 3
            score = next(iter(metrics.values()))
            run.curve.append((step, torch.stack(losses).mean().item(), score))
            losses = []
            if not run.best or score >= next(iter(run.best.values())):
                run.best, run.best_state, run.best_step = metrics, snapshot(), step
            set_training(model, settings.backbone_dropout)
        if progress is not None:
            progress(step, steps)
    return run


@torch.inference_mode()
def predict(
    model: nn.Module,
    rows: Encoded,
    make_batch: BatchMaker,
    predictor: Predictor,
    settings: TrainingSettings,
    device: Device,
) -> tuple[np.ndarray, float]:
    """Return predictions in row order and the mean loss."""
    model.eval()
    out: np.ndarray | None = None
    total = 0.0
    for indices in evaluation_order(rows.lengths, settings.eval_batch_size):
        batch = device.put(make_batch([rows.features[i] for i in indices], rows.references[indices]))
        with device.autocast():
            result = model(**batch)
        predictions = predictor.predictions(result.logits)
        if out is None:
            out = np.empty(len(rows), dtype=predictions.dtype)
        out[indices] = predictions
        total += result.loss.item() * len(indices)
    assert out is not None
    return out, total / len(rows)


def evaluate(
    model: nn.Module,
    rows: Encoded,
    make_batch: BatchMaker,
    predictor: Predictor,
    settings: TrainingSettings,
    device: Device,
) -> dict[str, float]:
    """Return the metrics of the task on ``rows``, the main one first, and ``loss`` last."""
    predictions, loss = predict(model, rows, make_batch, predictor, settings, device)
    return {**compute_metrics(predictor.metrics, predictions, rows.references), "loss": loss}
