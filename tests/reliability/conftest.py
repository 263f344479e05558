"""What the tests of reliability share: two small finished studies, and what was prepared for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.preparation import Prepared, prepare
from peftscout.report.progress import Silent
from tiny_task import save_tiny_model, write_task

TRAINING = {"threads": 1, "batch_size": 8, "precision": "fp32", "evaluations": 1, "shortcuts": False}
RANDOM = {
    "strategy": "random",
    "space": "lora",
    "trials": 2,
    "steps": 2,
    "final": {"seeds": 1, "lr_scales": [1.0]},
    "training": TRAINING,
}
SCOUT = {
    "strategy": "scout",
    "space": "lora",
    "trials": 2,
    "steps": 2,
    "final": {"seeds": 0},
    "training": TRAINING,
    "strategy_options": {"steps": 4, "keep_every": 2, "ranking_rows": 8},
}


@dataclass(frozen=True)
class Finished:
    """A study that ended, and what it was made of."""

    folder: Path
    prepared: Prepared
    summary: dict[str, Any]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("data"), train=40, validation=16)


@pytest.fixture(scope="session")
def prepared(model, data):
    """Return what is prepared for a study of these settings."""

    def make(**settings: Any) -> Prepared:
        mapping = {"model": str(model), "data": {"source": str(data)}, "budget": "8%", **settings}
        return prepare(StudyConfig.from_mapping(mapping))

    return make


@pytest.fixture(scope="session")
def random_study(prepared, tmp_path_factory) -> Finished:
    return _finished(prepared(**RANDOM), tmp_path_factory.mktemp("random") / "s")


@pytest.fixture(scope="session")
def scout_study(prepared, tmp_path_factory) -> Finished:
    return _finished(prepared(**SCOUT), tmp_path_factory.mktemp("scout") / "s")


def _finished(prepared: Prepared, folder: Path) -> Finished:
    return Finished(folder, prepared, run_study(prepared, folder, Silent()))
