"""R1, R2: killed at any moment and run again, a study ends as the one that was left alone. See `killing.py`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from figures import record
from peftscout.strategies import STRATEGIES
from thinning import FACTOR
from tiny_task import save_tiny_model, write_task

DRIVER = Path(__file__).with_name("killing.py")
KILLS = 6 * FACTOR
"""For each of the variants."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Any]:
    model = save_tiny_model(tmp_path_factory.mktemp("model"))
    data = write_task(tmp_path_factory.mktemp("data"), train=40, validation=16)
    command = [sys.executable, str(DRIVER), str(model), str(data), str(tmp_path_factory.mktemp("studies")), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout.splitlines()[-1])
    record("kills survived", sum(r["kills"] for r in reports.values()))
    record("finished trials lost", sum(r["lost"] for r in reports.values()))
    record("finished trials run again", sum(r["rerun"] for r in reports.values()))
    record("trials that differ from those of a study left alone", sum(r["different"] for r in reports.values()))
    return reports


def variants() -> list[str]:
    """What the driver goes through, read from its source: importing it would import torch before it is wanted."""
    tree = ast.parse(DRIVER.read_text(encoding="utf-8"))
    return [
        key.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "VARIANTS"
        for key in node.value.keys
    ]


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants())
def test_a_study_that_is_killed_again_and_again_ends_as_the_one_that_was_not(reports, variant):
    report = reports[variant]
    assert report["kills"] == KILLS
    assert report["lost"] == report["rerun"] == report["different"] == 0
    assert all(course == sorted(course) for course in report["finished"])
    assert report["same_search"]
    assert report["same_summary"]
    assert report["trials"] >= 3


@pytest.mark.slow
def test_there_were_at_least_fifty_kills_over_all_strategies(reports):
    assert sum(report["kills"] for report in reports.values()) >= 50
    chosen = ast.unparse(ast.parse(DRIVER.read_text(encoding="utf-8")))
    assert all(f"'strategy': '{name}'" in chosen for name in STRATEGIES)
