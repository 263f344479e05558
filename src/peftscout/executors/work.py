"""The work itself, wherever it is done: jobs become outcomes, and what they make is left in their staging folders."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.numpy import save_file

from peftscout.executors.base import Job
from peftscout.outcome import Outcome
from peftscout.preparation import Prepared, encode_split, make_evaluators
from peftscout.tasks import Encoded
from peftscout.training.evaluator import Evaluator, save_adapter
from peftscout.training.loop import Progress
from peftscout.training.stack_evaluator import capacity, evaluate_together


class Workplace:
    """A prepared study with its evaluators, which are made when they are first needed.

    Args:
        prepared: model and data, loaded.
        cache: folder of token ids, stored activations, paused trials and initial states.
        stacks: whether jobs may share passes.
        note: is told which shortcuts the model does not allow.
    """

    def __init__(
        self, prepared: Prepared, cache: Path, *, stacks: bool = True, note: Callable[[str], None] = lambda text: None
    ) -> None:
        self.prepared = prepared
        self._cache, self._stacks, self._note = cache, stacks, note

    @cached_property
    def evaluators(self) -> Mapping[str, Evaluator]:
        """By `Evaluate.task`, with their backbones on their device."""
        return make_evaluators(self.prepared, self._cache, self._note)

    @property
    def evaluator(self) -> Evaluator:
        """That of the study's own task."""
        return self.evaluators[""]

    @property
    def on_gpu(self) -> bool:
        """Whether the evaluators take, or will take, the memory of a GPU."""
        return bool((self.prepared.backbone.place or Accelerator().device).type == "cuda")

    def vacate(self) -> None:
        """Give the GPU's memory back; the evaluators are made again when they are needed again."""
        evaluators = self.__dict__.pop("evaluators", {})
        for evaluator in evaluators.values():
            if evaluator.backbone.place is None:
                evaluator.backbone.model.to("cpu")
            evaluator.free_memory()

    @cached_property
    def report_rows(self) -> Encoded:
        """The report split, unlocked for the final comparison."""
        return encode_split(self.prepared, self.prepared.task.report.unlock(), self._cache)

    @property
    def together(self) -> int:
        """Jobs that are worth sharing their passes."""
        alone = not self._stacks or self.evaluator.device.accelerator.num_processes > 1
        return 1 if alone else min(map(capacity, self.evaluators.values()))

    def do(self, jobs: Sequence[Job], progress: Progress | None = None) -> list[Outcome]:
        """Return the outcomes of ``jobs``, in order; those that share passes are of one task. Only Ctrl-C is raised."""
        if len(jobs) == 1 or any(job.alone for job in jobs):
            return [self._alone(job, progress) for job in jobs]
        requests = [job.request for job in jobs]
        evaluator = self.evaluators[requests[0].task]
        return evaluate_together(
            evaluator, requests, after=lambda n, model: self._leave(jobs[n], model), progress=progress
        )

    def _alone(self, job: Job, progress: Progress | None) -> Outcome:
        evaluator = self.evaluators[job.request.task]
        with evaluator.in_micro_batches(job.micro_batches):
            return evaluator(job.request, after=lambda model: self._leave(job, model), progress=progress)

    def _leave(self, job: Job, model: Any) -> None:
        """Write what a job made; what it left when it failed after that is gone with its staging folder."""
        if not self.evaluator.device.accelerator.is_main_process:
            return
        job.staging.mkdir(parents=True, exist_ok=True)
        save_adapter(model, job.staging / "adapter")
        if job.predict:
            predictions = self.evaluator.predict(model, self.report_rows)
            save_file({"predictions": predictions}, job.staging / "predictions.safetensors")


@contextmanager
def loaded_for_good() -> Iterator[None]:
    """Keep the garbage collector from going through everything that is loaded by now, after every trial."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
