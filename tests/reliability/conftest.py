"""What the tests of reliability share: two small finished studies, and what was prepared for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_studies import RANDOM, SCOUT, Finished

from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.preparation import Prepared, prepare
from peftscout.report.progress import Silent
from tiny_task import save_tiny_model, write_task


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
