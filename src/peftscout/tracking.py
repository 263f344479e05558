"""What a running study tells TensorBoard, trackio, wandb and the like, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import ProjectConfiguration

from peftscout.errors import ConfigError, nearest
from peftscout.ledger import Record, Stage
from peftscout.outcome import Evaluate
from peftscout.report.progress import Reporter

PROJECT = "peftscout"
"""What the runs are filed under, where a tracker has projects; a run has the name of its study's folder."""

FOLDER = "tracking"
"""Inside of the study's folder: what trackers that write files write."""

_NAMED = ("wandb", "trackio")
"""Trackers whose runs can be named."""

_INSTALL = {"tensorboard": "'peftscout[track]'", "comet_ml": "comet_ml", "aim": "aim"}


def check_trackers(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` without repetitions, when accelerate knows all of them and their packages are here.

    Raises:
        ConfigError: naming the tracker, and what is there or what to install.
    """
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise ConfigError(f"report_to {name!r}: not known{nearest(name, LOGGER_TYPE_TO_CLASS)}; there are {known}")
        if name not in installed:
            package = _INSTALL.get(name, name)
            raise ConfigError(f"report_to {name!r}: its package is not installed: pip install {package}")
    return tuple(dict.fromkeys(names))


class Tracked:
    """Shows everything as ``shown`` does, and tells the trackers of every evaluation that ends.

    For an evaluation of stage ``search``, ``tune`` or ``final`` they get ``<stage>/score`` (main metric on the search
    split, where there is one), ``<stage>/cost`` (trainable parameters), ``<stage>/seconds`` and ``best_in_budget``;
    the step is the number of the trial. What was in the ledger already is not told again.

    Args:
        shown: gets every event, too.
        names: as `check_trackers` returns them.
        folder: of the study.
        config: of the study, as plain nested data; the trackers keep it as the hyper-parameters of the run.
    """

    def __init__(self, shown: Reporter, names: Sequence[str], folder: Path, config: Mapping[str, Any]) -> None:
        self._shown = shown
        self._names = list(names)
        self._folder = folder
        self._config = config
        self._accelerator: Any = None

    def __enter__(self) -> Self:
        files = ProjectConfiguration(project_dir=str(self._folder), logging_dir=str(self._folder / FOLDER))
        self._accelerator = Accelerator(log_with=self._names, project_config=files)
        named = {name: {"name": self._folder.resolve().name} for name in _NAMED}
        self._accelerator.init_trackers(PROJECT, config=flat(self._config), init_kwargs=named)
        self._shown.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._shown.__exit__(*raised)
        for tracker in self._accelerator.trackers:
            tracker.finish()

    def note(self, text: str) -> None:
        """Shown only."""
        self._shown.note(text)

    def planned(self, evaluations: int) -> None:
        """Shown only."""
        self._shown.planned(evaluations)

    def started(self, number: int, stage: Stage, request: Evaluate, cost: int) -> None:
        """Shown only."""
        self._shown.started(number, stage, request, cost)

    def searching(self, choices: int, steps: int) -> None:
        """Shown only."""
        self._shown.searching(choices, steps)

    def step(self, done: int, total: int) -> None:
        """Shown only."""
        self._shown.step(done, total)

    def finished(self, record: Record, best: float | None, recalled: bool) -> None:
        """Shown, and told to the trackers when it was run just now."""
        self._shown.finished(record, best, recalled)
        if not recalled:
            self._accelerator.log(scalars(record, best), step=record.number)


def scalars(record: Record, best: float | None) -> dict[str, float]:
    """Return what trackers are told of an evaluation that ended; see `Tracked`."""
    values: dict[str, float] = {} if best is None else {"best_in_budget": best}
    if (outcome := record.outcome) is None:
        return values
    values |= {f"{record.stage}/cost": outcome.cost, f"{record.stage}/seconds": outcome.seconds}
    return values if outcome.score is None else values | {f"{record.stage}/score": outcome.score}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return nested plain data as ``{"training.batch_size": 32}``; lists as text, and without what is not given."""
    found: dict[str, str | int | float | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return found
