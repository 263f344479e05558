"""(plan, fidelity, seed) -> Outcome, on a backbone that stays loaded and comes out of every trial bit-identical."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from peftscout import disk, tuner
from peftscout.backbone import Backbone
from peftscout.errors import TunerError
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.plan import Plan
from peftscout.tasks import Encoded, Task
from peftscout.tasks.recipes import HEAD_KINDS
from peftscout.training.activation_cache import ActivationCache
from peftscout.training.arithmetic import FP32
from peftscout.training.batches import BatchMaker
from peftscout.training.device import Device
from peftscout.training.dropout import lowest_tuned_block, set_training
from peftscout.training.forward import Forward
from peftscout.training.initial_states import InitialStates
from peftscout.training.loop import Progress, train
from peftscout.training.memory import PeakMemory
from peftscout.training.objectives import objective_for
from peftscout.training.one_row import one_row
from peftscout.training.own_training import Candidate, OwnTraining, run_own
from peftscout.training.paused import PausedTrials
from peftscout.training.schedule import parameter_groups, rate_factors
from peftscout.training.scoring import predict
from peftscout.training.settings import TrainingSettings
from peftscout.training.shortcuts import Shortcuts
from peftscout.training.trial import DivergedError, Run, Trial

CHECK_ROWS = 4
"""Rows of the batch on which every built model is checked: from the shortest to one of median length."""


@dataclass(frozen=True)
class EncodedTask:
    """A task's rows as token ids; the report split is encoded when it is unlocked, at the end."""

    task: Task
    train: Encoded
    search: Encoded


class Evaluator:
    """Builds, trains and scores plans on one loaded backbone.

    Attributes:
        stacks: whether several plans may share it at once: until that fails, see `stack_evaluator`.

    Args:
        backbone: stays in memory; its fingerprint is checked after every trial.
        data: encoded training and search rows.
        settings: how plans are trained.
        op_settings: scale and activation of the ops.
        folder: for trials that stopped at a rung and for stored activations; ``None``: nothing is kept between trials.
        note: is told, in words, which shortcuts this model does not allow.
        own: a user's training and score, in place of ours.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: EncodedTask,
        settings: TrainingSettings,
        op_settings: tuner.OpSettings | None = None,
        folder: Path | None = None,
        note: Callable[[str], None] = lambda text: None,
        own: OwnTraining | None = None,
    ) -> None:
        self.backbone = backbone
        self.own = own
        self.data = data
        self.settings = settings
        self.note = note
        self.op_settings = op_settings or tuner.OpSettings()
        self.device = Device(settings.arithmetic, backbone.place)
        if backbone.place is None:
            backbone.model.to(self.device.torch_device)
        tokenizer = backbone.tokenizer
        self.objective = objective_for(data.task, tokenizer, backbone.model.config, data.train)
        side = tokenizer.padding_side if data.task.kind in HEAD_KINDS else "right"
        self.make_batch = BatchMaker(tokenizer.pad_token_id, side, data.task.kind == "regression")
        self.paused = PausedTrials(None if folder is None else folder / "paused")
        self.initial = InitialStates(None if folder is None else folder / "initial")
        cache = None
        if folder is not None and settings.cache_bytes > 0:
            cache = ActivationCache(folder / "activations", settings.cache_bytes)
        self.shortcuts = Shortcuts(backbone, self.make_batch, self.device, settings.eval_batch_size, cache, note)
        self.stacks = own is None and not self.objective.no_stacks
        for reason in (self.objective.no_shortcuts, self.objective.no_stacks):
            if reason and settings.shortcuts:
                note(reason)
        self._fractions: dict[float, Encoded] = {}
        self._checksum = tuner.checksum(backbone.model)

    def __call__(
        self, request: Evaluate, *, after: Callable[[Any], None] | None = None, progress: Progress | None = None
    ) -> Outcome:
        """Train and score one plan. Everything that can happen comes back as an outcome; only Ctrl-C is raised.

        ``after`` gets the adapted model in its best state, before it is taken apart: to save it or to predict with it.
        """
        cost = request.plan.cost(self.backbone.model_map.sites)
        started = time.perf_counter()
        try:
            with PeakMemory(self.device.torch_device) as memory, self.adapted(request.plan, request.seed) as model:
                run = self._train(model, request, progress)
                if after is not None:
                    after(model)
        except Exception as error:
            return failed(error, cost, time.perf_counter() - started)
        return done(run, cost, time.perf_counter() - started, memory.peak)

    @contextmanager
    def in_micro_batches(self, parts: int) -> Iterator[None]:
        """Divide every pass into so many: less memory for the same training. The batch of a step stays what it is."""
        whole = self.settings
        smaller = max(1, whole.eval_batch_size // parts)
        self.settings = replace(whole, micro_batches=parts, eval_batch_size=smaller)
        try:
            yield
        finally:
            self.settings = whole

    @contextmanager
    def adapted(self, plan: Plan, seed: int) -> Iterator[Any]:
        """Give the model with ``plan`` built in and checked; the backbone is given back bit-identical at the end.

        Raises:
            TunerError: when a site of the plan was not realised, or when the backbone came out changed (a defect).
        """
        with self.device.attention_of(self.backbone.model):
            model = tuner.build(
                self.backbone.model, plan, self.backbone.model_map, settings=self.op_settings, seed=seed
            )
            try:
                tuner.check_built(model, plan)
                tuner.check_gradients(model, plan, self.check_batch())
                with self.device.exact_heads(model):
                    yield model
            finally:
                tuner.reset(model)
                del model
                self.free_memory()
                self.check_backbone()

    def free_memory(self) -> None:
        """Give back what a trial held: models are full of reference cycles."""
        gc.collect()
        if self.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()

    def check_backbone(self) -> None:
        """Raise a TunerError unless the backbone is, bit for bit, what it was at first."""
        if tuner.checksum(self.backbone.model) != self._checksum:
            raise TunerError("the backbone was changed by a trial; scores after it would be wrong: please report this")

    def predict(self, model: Any, rows: Encoded) -> np.ndarray:
        """Return predictions of an adapted model in row order: in fp32, as whoever loads it will get them."""
        forward = Forward(model, self.make_batch, Device(FP32, self.backbone.place))
        return predict(forward, rows, self.objective, self.settings.eval_batch_size)[0]

    def _train(self, model: Any, request: Evaluate, progress: Progress | None) -> Run:
        settings = self.settings
        if request.initial:
            tuner.load_trainable_state(model, self.initial.load(request.initial))
        if self.own is not None:
            return run_own(self.own, self._candidate(model, request), request)
        trial = Trial(
            parameter_groups(
                tuner.parameters_by_op(model), settings, rate_factors(request, self.backbone.model_map.sites)
            ),
            request.fidelity,
            request.seed,
            self.rows(request.fidelity.data_fraction),
            settings,
            snapshot=lambda: tuner.trainable_state(model),
        )
        if (paused := self.paused.load(request)) is not None:
            trial.resume(paused)
        lowest = lowest_tuned_block(request.plan, self.backbone.model_map)
        with self._forward(model, request, trial) as forward:
            train(
                trial,
                forward,
                self.data.search,
                self.objective,
                training_mode=lambda: set_training(model, settings.backbone_dropout, lowest),
                progress=progress,
            )
        self.keep(trial, request)
        tuner.load_trainable_state(model, trial.best_state)
        return trial.run

    def _candidate(self, model: Any, request: Evaluate) -> Candidate:
        rows = self.rows(request.fidelity.data_fraction)
        tokenizer, task, steps = self.backbone.tokenizer, self.data.task, request.fidelity.steps
        factors = request.lr_scale, dict(request.op_lr_scales)
        return Candidate(model, tokenizer, task, rows, self.data.search, steps, request.seed, *factors)

    @contextmanager
    def _forward(self, model: Any, request: Evaluate, trial: Trial) -> Iterator[Forward]:
        """Give what passes rows through ``model``, with every shortcut that its plan allows."""
        activations, position, packs = None, None, False
        if self.shortcuts_allowed:
            batch = self.check_batch()
            entrance = self.shortcuts.entrance(model, request.plan, batch) if self.still else None
            activations = self.shortcuts.activations(model, entrance, self.visited(trial))
            position = self.shortcuts.position(model, request.plan, batch)
            packs = self.packing_allowed and self.shortcuts.packs(model, request.plan, self.data.train)
        with nullcontext() if position is None else one_row(model, self.backbone.model_map, position):
            yield Forward(model, self.make_batch, self.device, activations, packs)

    @property
    def shortcuts_allowed(self) -> bool:
        """Whether it may be tested what need not be computed."""
        return self.settings.shortcuts and not self.objective.no_shortcuts

    @property
    def packing_allowed(self) -> bool:
        """Whether it may be tested that rows share sequences in training; dropout would draw other masks then."""
        return self.settings.packing and self.settings.backbone_dropout == "off" and self.objective.packs

    @property
    def still(self) -> bool:
        """Whether what lies below the lowest tuned block draws no random numbers."""
        return self.settings.backbone_dropout != "paper"

    def visited(self, trial: Trial) -> dict[Encoded, np.ndarray]:
        """Return the sets of rows that ``trial`` passes through the model, and the indices of those it visits."""
        return {trial.rows: trial.rows_of_all_rungs(), self.data.search: np.arange(len(self.data.search))}

    def keep(self, trial: Trial, request: Evaluate) -> None:
        """Keep a trial that may go on at the next rung."""
        rungs = request.fidelity.rungs
        if rungs and request.fidelity.steps < rungs[-1]:
            self.paused.save(request, trial.pause())
        elif rungs:
            self.paused.drop(request)

    def rows(self, fraction: float) -> Encoded:
        """Return that share of the training rows: the same ones for every plan and seed."""
        if fraction not in self._fractions:
            rows = self.data.train
            chosen = np.random.default_rng(0).permutation(len(rows))[: max(1, round(fraction * len(rows)))]
            self._fractions[fraction] = rows if fraction == 1.0 else rows.subset(np.sort(chosen))
        return self._fractions[fraction]

    def check_batch(self) -> dict[str, torch.Tensor]:
        """Return the batch of a few rows on which built models are checked."""
        train = self.data.train
        order = np.argsort(train.lengths, kind="stable")
        rows = order[np.linspace(0, len(order) // 2, CHECK_ROWS).astype(np.int64).clip(max=len(order) - 1)]
        batch = self.device.put(self.make_batch([train.features[i] for i in rows], train.references[rows]))
        return self.objective.inputs(batch)


def done(run: Run, cost: int, seconds: float, peak_memory: int) -> Outcome:
    """Return the outcome of a run that came to its end."""
    return Outcome(
        State.DONE,
        cost,
        score=float(next(iter(run.best.values()))),
        metrics=run.best,
        seconds=seconds,
        steps=run.steps,
        passes=run.passes,
        tokens=run.tokens,
        real_tokens=run.real_tokens,
        peak_memory=peak_memory,
        curve=tuple(run.curve),
    )


def failed(error: Exception, cost: int, seconds: float) -> Outcome:
    """Return the outcome of an evaluation that ``error`` ended.

    Trouble with the disk is no outcome of the plan: it is raised, and the evaluation runs again when it is mended.
    """
    if disk.trouble(error) is not None:
        raise error
    match error:
        case DivergedError():
            state, message = State.DIVERGED, str(error)
        case torch.OutOfMemoryError() | MemoryError():
            state, message = State.OUT_OF_MEMORY, str(error) or "out of memory"
        case TunerError():
            state, message = State.INFEASIBLE, str(error)
        case _:
            state, message = State.FAILED, f"{type(error).__name__}: {error}"
    return Outcome(state, cost, seconds=seconds, message=message)


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter and head as PEFT does, into a fresh folder that appears only when complete."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about bases that are not on the hub
        model.save_pretrained(unfinished, safe_serialization=True)
    if folder.exists():
        raise FileExistsError(f"{folder}: is there already")
    unfinished.replace(folder)
