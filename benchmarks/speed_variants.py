"""The ways to train one plan that `evaluator_speed.py` compares: what users write, AutoPEFT's settings, peftscout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import optuna
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from peftscout.backbone import quiet_loading
from peftscout.config import StudyConfig
from peftscout.outcome import Evaluate, Fidelity
from peftscout.preparation import make_evaluator, prepare
from peftscout.training import evaluator as evaluator_module
from speed_cases import MAX_LENGTH, RANK, Case
from speed_rows import Measured

BATCH = 32

LEVERS: Mapping[str, Mapping[str, Any]] = {
    "peftscout": {},
    "peftscout-fp32": {"precision": "fp32"},
    "peftscout-dropout": {"backbone_dropout": "paper"},
    "peftscout-no-cache": {"cache_bytes": 0},
    "peftscout-no-shortcuts": {"shortcuts": False},
    "fp32-no-shortcuts": {"precision": "fp32", "shortcuts": False},
    "buckets-only": {"precision": "fp32", "backbone_dropout": "paper", "shortcuts": False},
}
"""Variant -> where its ``training`` section differs from the defaults. From the last to the first each adds a lever:
length buckets, quiet backbone, bf16, one row in the last block, stored activations."""

VARIANTS = ("autopeft", "trainer", *LEVERS)


class Variant(Protocol):
    """One way to train the plan of a case."""

    def __call__(self) -> Measured:
        """Train for one epoch, evaluate once, and return what it took."""

    def warm_up(self) -> Measured | None:
        """Do what only a first call does; return what it took where that is worth a row."""


class Stopwatch:
    """Sums up process CPU time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - started


class HfTrainer:
    """An Optuna objective around `transformers.Trainer` and peft, fp32: ``TrainingArguments`` as they come.

    Only the batch size, the number of steps and that nothing is saved or logged are set. The rows are tokenised once,
    outside of the objective.

    Args:
        case: what is trained.
        model: folder of the pretrained model.
        data: rows with ``text`` and ``label``.
        tokenizer: of the model.
        pad_to_longest: pad every row to `MAX_LENGTH` as AutoPEFT does; else the trainer's own collator pads a batch to
            its longest row.
    """

    def __init__(self, case: Case, model: Path, data: DatasetDict, tokenizer: Any, pad_to_longest: bool) -> None:
        self._case, self._model, self._tokenizer = case, model, tokenizer
        padding = "max_length" if pad_to_longest else False
        encode = partial(tokenizer, truncation=True, max_length=MAX_LENGTH, padding=padding)
        with _no_progress_bars():
            self._rows = data.map(lambda rows: encode(rows["text"]), batched=True, remove_columns="text")
        self.parameters = 0

    def __call__(self) -> Measured:
        return self._search(-(-self._case.train_rows // BATCH))

    def warm_up(self) -> None:
        self._search(steps=1)

    def _search(self, steps: int) -> Measured:
        whole, loop = Stopwatch(), Stopwatch()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with whole.running(), tempfile.TemporaryDirectory() as folder, quiet_loading():
            study = optuna.create_study(direction="maximize")
            study.optimize(lambda trial: self._objective(trial, steps, loop, Path(folder)), n_trials=1)
        return Measured(whole.seconds, loop.seconds, self.parameters)

    def _objective(self, trial: optuna.Trial, steps: int, loop: Stopwatch, folder: Path) -> float:
        rank = trial.suggest_categorical("r", [RANK])
        model = AutoModelForSequenceClassification.from_pretrained(self._model, num_labels=2)
        config = LoraConfig(
            task_type="SEQ_CLS", r=rank, target_modules=["query", "value"], layers_to_transform=list(self._case.layers)
        )
        model = get_peft_model(model, config)
        self.parameters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name and p.requires_grad)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            label_names=["labels"],
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=self._rows["train"],
            eval_dataset=self._rows["validation"],
            processing_class=self._tokenizer,
            compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
            callbacks=[_TimedTraining(loop)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        with loop.running():
            return float(trainer.evaluate()["eval_accuracy"])


class Peftscout:
    """The evaluator that ``peftscout search`` makes from its configuration.

    Args:
        case: what is trained.
        model: folder of the pretrained model.
        data: rows with ``text`` and ``label``.
        folder: of the caches that a study keeps.
        training: where the ``training`` section differs from its defaults; one evaluation, as the others do.
    """

    def __init__(self, case: Case, model: Path, data: DatasetDict, folder: Path, training: Mapping[str, Any]) -> None:
        config = StudyConfig.from_mapping(
            {
                "model": str(model),
                "budget": "50%",
                "data": {"source": "memory", "max_length": MAX_LENGTH},
                "space": "lora",
                "training": {"batch_size": BATCH, "evaluations": 1, "threads": 1, **training},
            }
        )
        prepared = prepare(config, data)
        self.evaluate = make_evaluator(prepared, folder)
        self.arithmetic = prepared.arithmetic
        self._request = Evaluate(case.plan, Fidelity(-(-case.train_rows // BATCH)), seed=0)

    def __call__(self) -> Measured:
        whole = Stopwatch()
        with timed(evaluator_module, "train") as loop, whole.running():
            outcome = self.evaluate(self._request)
        if not outcome.done:
            raise RuntimeError(f"the trial ended {outcome.state}: {outcome.message}")
        if not loop.seconds:
            raise RuntimeError("the evaluator trains elsewhere than in peftscout.training.evaluator.train: fix `timed`")
        return Measured(whole.seconds, loop.seconds, outcome.cost)

    def warm_up(self) -> Measured:
        return self()


def make_variant(name: str, case: Case, model: Path, data: DatasetDict, tokenizer: Any, folder: Path) -> Variant:
    """Return a variant by name, see `VARIANTS`."""
    if name in LEVERS:
        return Peftscout(case, model, data, folder / name, LEVERS[name])
    return HfTrainer(case, model, data, tokenizer, pad_to_longest=name == "autopeft")


@contextmanager
def timed(module: Any, function: str) -> Iterator[Stopwatch]:
    """Sum up the CPU time of a module's function while inside."""
    watch, original = Stopwatch(), getattr(module, function)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with watch.running():
            return original(*args, **kwargs)

    with patch.object(module, function, wrapped):
        yield watch


def process_start(model: Path) -> float:
    """Return the CPU seconds of a process that imports what a trial needs and loads the model."""
    code = (
        "import sys, torch, transformers, peft; torch.set_num_threads(1); "
        "m = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1]); "
        "transformers.AutoTokenizer.from_pretrained(sys.argv[1]); transformers.Trainer; "
        "peft.get_peft_model(m, peft.LoraConfig(target_modules=['query', 'value']))"
    )
    before = os.times()
    subprocess.run([sys.executable, "-c", code, str(model)], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


class _TimedTraining(TrainerCallback):
    """Times a trainer's steps, without what comes before and after them."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self._end: Callable[..., Any] = lambda *_: None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        context = self._watch.running()
        context.__enter__()
        self._end = context.__exit__

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._end(None, None, None)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from datasets import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
