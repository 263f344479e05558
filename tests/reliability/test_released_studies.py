"""R22: a study of every version that was released opens, is reported, and hands over the adapter that it had."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from figures import record
from peftscout import __version__
from peftscout.api import open_study, read_plan, study_standing, study_status
from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.errors import StudyError
from peftscout.header import versions
from peftscout.preparation import prepare
from peftscout.report.page import write_report
from peftscout.report.progress import Silent
from peftscout.study import read_config
from released_studies import PROBE, outputs_of

ASSETS = Path(__file__).parent.parent / "assets" / "studies"
RELEASED = sorted(path.stem for path in ASSETS.glob("*.zip"))


@pytest.fixture(params=RELEASED)
def study(request, tmp_path, monkeypatch) -> Path:
    with zipfile.ZipFile(ASSETS / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("study")


def test_this_version_has_its_study():
    assert __version__ in RELEASED, "python tests/make_study_asset.py"


def test_its_states_front_and_report_are_there(study):
    rows = study_status(study)
    assert [row["state"] for row in rows] == ["done"] * len(rows)
    assert {row["stage"] for row in rows} >= {"search", "final"}
    assert study_standing(study)
    result = open_study(study)
    assert len(result.trials) == len(rows)
    assert result.best.score in set(result.front["score"])
    assert read_plan(study / "summary.json") == result.best.plan
    written = write_report(study)
    assert result.verdict.split(".")[0][:40] in written.markdown.read_text(encoding="utf-8")
    record("studies of releases opened", 1)


def test_its_adapter_says_what_it_said(study):
    torch.testing.assert_close(outputs_of(study), load_file(PROBE)["outputs"], rtol=0, atol=1e-5)


def still_says(new: Any, old: Any) -> bool:
    """Whether everything that a summary said is there, unchanged; new fields may come at any time."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and still_says(new[key], value) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(new) == len(old) and all(map(still_says, new, old))
    return bool(new == old)


def test_it_goes_on_or_says_why_not(study):
    """With the versions that it was made with it is finished at once; with others the difference is told."""
    config = StudyConfig.from_mapping(read_config(study).to_mapping())
    before = open_study(study).summary
    try:
        assert still_says(run_study(prepare(config), study, Silent()), before)
    except StudyError as error:
        told = str(error)
        assert "made with something else" in told
        assert any(f"versions.{name}: " in told for name in versions())
