"""(plan, fidelity, seed) -> Outcome, on a backbone that stays loaded and comes out of every trial bit-identical."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftscout import tuner
from peftscout.backbone import Backbone
from peftscout.errors import TunerError
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.plan import Plan
from peftscout.tasks import Encoded, Task
from peftscout.training.batches import BatchMaker, training_order
from peftscout.training.device import Device
from peftscout.training.loop import DivergedError, Predictor, Progress, Run, parameter_groups, predict, train
from peftscout.training.memory import PeakMemory
from peftscout.training.settings import TrainingSettings

CHECK_ROWS = 4
"""Rows of the batch on which every built model is checked for tensors that get no gradient."""


@dataclass(frozen=True)
class EncodedTask:
    """A task's rows as token ids; the report split is encoded when it is unlocked, at the end."""

    task: Task
    train: Encoded
    search: Encoded


class Evaluator:
    """Builds, trains and scores plans on one loaded backbone.

    Args:
        backbone: stays in memory; its fingerprint is checked after every trial.
        data: encoded training and search rows.
        settings: how plans are trained.
        op_settings: scale and activation of the ops.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: EncodedTask,
        settings: TrainingSettings,
        op_settings: tuner.OpSettings | None = None,
    ) -> None:
        self.backbone = backbone
        self.data = data
        self.settings = settings
        self.op_settings = op_settings or tuner.OpSettings()
        self.device = Device(settings.precision)
        backbone.model.to(self.device.torch_device)
        regression = data.task.kind == "regression"
        self.predictor = Predictor(data.task.metrics, regression)
        tokenizer = backbone.tokenizer
        self.make_batch = BatchMaker(tokenizer.pad_token_id, tokenizer.padding_side, regression)
        self._fingerprint = tuner.fingerprint(backbone.model)

    def __call__(
        self, request: Evaluate, *, after: Callable[[Any], None] | None = None, progress: Progress | None = None
    ) -> Outcome:
        """Train and score one plan. Everything that can happen comes back as an outcome; only Ctrl-C is raised.

        ``after`` gets the adapted model in its best state, before it is taken apart: to save it or to predict with it.
        """
        cost = request.plan.cost(self.backbone.model_map.sites)
        started = time.perf_counter()

        def ended(state: State, message: str) -> Outcome:
            return Outcome(state, cost, seconds=time.perf_counter() - started, message=message)

        try:
            with PeakMemory(self.device.torch_device) as memory, self.adapted(request.plan, request.seed) as model:
                run = self._train(model, request, progress)
                if after is not None:
                    after(model)
        except DivergedError as error:
            return ended(State.DIVERGED, str(error))
        except (torch.OutOfMemoryError, MemoryError) as error:
            return ended(State.OUT_OF_MEMORY, str(error) or "out of memory")
        except TunerError as error:
            return ended(State.INFEASIBLE, str(error))
        except Exception as error:
            return ended(State.FAILED, f"{type(error).__name__}: {error}")
        return Outcome(
            State.DONE,
            cost,
            score=float(next(iter(run.best.values()))),
            metrics=run.best,
            seconds=time.perf_counter() - started,
            steps=run.steps,
            passes=run.passes,
            peak_memory=memory.peak,
            curve=tuple(run.curve),
        )

    @contextmanager
    def adapted(self, plan: Plan, seed: int) -> Iterator[Any]:
        """Give the model with ``plan`` built in and checked; the backbone is given back bit-identical at the end.

        Raises:
            TunerError: when a site of the plan was not realised, or when the backbone came out changed (a defect).
        """
        model = tuner.build(self.backbone.model, plan, self.backbone.model_map, settings=self.op_settings, seed=seed)
        try:
            tuner.check_built(model, plan)
            tuner.check_gradients(model, plan, self._check_batch())
            yield model
        finally:
            tuner.reset(model)
            del model
            self.device.accelerator.free_memory()
            gc.collect()
            self.check_backbone()

    def check_backbone(self) -> None:
        """Raise a TunerError unless the backbone is, bit for bit, what it was at first."""
        if tuner.fingerprint(self.backbone.model) != self._fingerprint:
            raise TunerError("the backbone was changed by a trial; scores after it would be wrong: please report this")

    def predict(self, model: Any, rows: Encoded) -> np.ndarray:
        """Return predictions in row order of an adapted model on ``rows``."""
        predictions, _ = predict(model, rows, self.make_batch, self.predictor, self.settings, self.device)
        return predictions

    def _train(self, model: Any, request: Evaluate, progress: Progress | None) -> Run:
        groups = parameter_groups(tuner.parameters_by_op(model), self.settings, request.lr_scale)
        run = train(
            model,
            groups,
            self._rows(request.fidelity.data_fraction),
            self.data.search,
            self.make_batch,
            self.predictor,
            self.settings,
            self.device,
            steps=request.fidelity.steps,
            seed=request.seed,
            snapshot=lambda: tuner.trainable_state(model),
            progress=progress,
        )
        tuner.load_trainable_state(model, run.best_state)
        return run

    def _rows(self, fraction: float) -> Encoded:
        rows = self.data.train
        if fraction == 1.0:
            return rows
        chosen = np.random.default_rng(0).permutation(len(rows))[: max(1, round(fraction * len(rows)))]
        return rows.subset(np.sort(chosen))

    def _check_batch(self) -> dict[str, torch.Tensor]:
        rows = next(training_order(self.data.train.lengths, CHECK_ROWS, seed=0))
        train = self.data.train
        return self.device.put(self.make_batch([train.features[i] for i in rows], train.references[rows]))


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter and head as PEFT does, into a fresh folder that appears only when complete."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about bases that are not on the hub
        model.save_pretrained(unfinished, safe_serialization=True)
    if folder.exists():
        raise FileExistsError(f"{folder}: is there already")
    unfinished.replace(folder)
