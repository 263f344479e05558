"""Who runs evaluations: this process, worker processes, or the machines of a Ray cluster; see `executors.base`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from peftscout.errors import ConfigError
from peftscout.executors.base import Event, Executor, Finished, Job, Lost
from peftscout.executors.local import LocalExecutor
from peftscout.executors.messages import Start
from peftscout.executors.processes import ProcessExecutor
from peftscout.executors.ray_cluster import Need, RayExecutor
from peftscout.executors.retries import Retrying
from peftscout.executors.work import Workplace
from peftscout.header import Header
from peftscout.preparation import Prepared
from peftscout.report.progress import Reporter
from peftscout.training.arithmetic import available_cores

__all__ = ["Event", "Executor", "Finished", "Job", "Lost", "Retrying", "Workplace", "open_executor"]


LIBRARIES = 1_000_000_000
"""Bytes of a process with torch and transformers loaded, and a task."""


def open_executor(
    prepared: Prepared, header: Header, folder: Path, workplace: Workplace, reporter: Reporter
) -> Retrying:
    """Return the executor that the configuration asks for; whoever opens it closes it. No worker is started yet.

    Args:
        prepared: the study.
        header: of the study: its workers must find the same.
        folder: of the study.
        workplace: of this process, for the executor that works in it.
        reporter: is told notes and steps.

    Raises:
        ConfigError: when what the study needs cannot be had in another process.
    """
    return Retrying(
        _chosen(prepared, header, folder, workplace, reporter),
        prepared.backbone.model_map.sites,
        retries=prepared.config.executor.retries,
        halves=prepared.own_training is None,
        note=reporter.note,
    )


def _chosen(prepared: Prepared, header: Header, folder: Path, workplace: Workplace, reporter: Reporter) -> Executor:
    config = prepared.config.executor
    if config.kind == "ray":
        return _on_ray(prepared, header, folder, reporter)
    gpus = torch.cuda.device_count()
    per_trial = config.gpus_per_trial
    if per_trial is not None and per_trial > max(gpus, 1):
        raise ConfigError(f"executor.gpus_per_trial {per_trial:g}: this machine has {gpus}")
    workers = config.workers or (1 if per_trial is None else max(1, math.floor(gpus / per_trial)))
    together = math.ceil(per_trial or 1)
    asked = config.isolate == "process" or workers > 1 or together > 1 or config.trial_timeout is not None
    if reason := prepared.tied_to_this_process:
        if asked:
            raise ConfigError(f"executor: {reason}, so evaluations cannot leave it; use one worker and isolate: none")
    elif asked or (config.isolate == "auto" and gpus and prepared.backbone.place is None):
        return ProcessExecutor(
            start_of(prepared, header, folder, steps=workers == 1, processes=together),
            workers,
            folder / "workers",
            trial_timeout=config.trial_timeout,
            environments=environments(workers, gpus, prepared.config.training.threads, together),
            progress=reporter.step,
            note=reporter.note,
        )
    return LocalExecutor(workplace, reporter.step)


def _on_ray(prepared: Prepared, header: Header, folder: Path, reporter: Reporter) -> Executor:
    config = prepared.config.executor
    if reason := prepared.tied_to_this_process:
        raise ConfigError(f"executor.kind ray: {reason}, so evaluations cannot leave it")
    return RayExecutor(
        start_of(prepared, header, folder),
        Need(gpus=config.gpus_per_trial, memory=memory_of_worker(prepared)),
        most=config.workers,
        address=config.address,
        trial_timeout=config.trial_timeout,
        note=reporter.note,
    )


def memory_of_worker(prepared: Prepared) -> int:
    """Return the main memory that a worker takes, in bytes: libraries, the weights of every task, one of them twice.

    While weights are loaded they are there twice.
    """
    models = [one.backbone.model for one in (prepared, *prepared.others.values())]
    weights = [sum(int(p.numel() * p.element_size()) for p in model.parameters()) for model in models]
    return LIBRARIES + sum(weights) + max(weights)


def start_of(prepared: Prepared, header: Header, folder: Path, *, steps: bool = False, processes: int = 1) -> Start:
    """Return what the workers of a study are told first; a search that time limits goes plan by plan."""
    data, cache = json.loads(json.dumps(header.to_json())), str((folder / "cache").resolve())
    stacks = prepared.config.time is None
    return Start(header=data, cache=cache, stacks=stacks, steps=steps, processes=processes)


def environments(workers: int, gpus: int, threads: int | None, together: int = 1) -> list[Mapping[str, str]]:
    """Return the variables of each worker in turn: its GPUs, as many as work ``together``, or its share of cores."""
    if gpus:
        visible = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        visible = visible or [str(gpu) for gpu in range(gpus)]
        groups = [visible[first : first + together] for first in range(0, gpus - together + 1, together)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups]
    if threads is not None or workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{}]
    return [{"OMP_NUM_THREADS": str(max(1, available_cores() // workers))}]
