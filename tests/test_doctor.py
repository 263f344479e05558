"""What the doctor looks at."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from peftscout import doctor, tuner
from peftscout.report.tables import findings


@pytest.fixture(scope="module")
def found() -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.diagnose()}


def test_everything_that_peftscout_needs_is_named_with_its_version(found):
    for name in (
        "python",
        "torch",
        "transformers",
        "peft",
        "optuna",
        "processor",
        "accelerator",
        "cache",
        "self-check",
    ):
        assert name in found
    assert "pytest" not in found, "extras are not needed"
    assert all(finding.fine for finding in found.values()), found


def test_the_self_check_trains_and_takes_seconds(found):
    assert "was built, trained and removed" in found["self-check"].text
    assert float(found["self-check"].text.rpartition("(")[2].split()[0]) < 60


def test_a_wrong_version_and_a_missing_package_are_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch<1", "no-such-package>=2", "x; extra == 'dev'"])
    wrong, missing = doctor._packages()
    assert not wrong.fine
    assert "but <1 is needed; pip install 'torch<1'" in wrong.text
    assert not missing.fine
    assert missing.text == "is missing; pip install 'no-such-package>=2'"


def test_a_cache_that_cannot_be_written_or_is_nearly_full_is_told(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "there" / "yet"))
    assert doctor._cache().fine
    monkeypatch.setattr(doctor, "LITTLE", 10**18)
    assert "make room" in doctor._cache().text
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot be written: set HF_HOME" in doctor._cache().text


def test_a_backbone_that_is_left_changed_is_found(monkeypatch):
    numbers = iter([[("w", "x", 1)], [("w", "x", 2)]])
    monkeypatch.setattr(tuner, "checksum", lambda model: next(numbers))
    finding = doctor._self_check()
    assert not finding.fine
    assert "the backbone is not as it was before" in finding.text


def test_whatever_goes_wrong_in_the_self_check_is_a_finding(monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr(tuner, "build", broken)
    assert "RuntimeError: no kernel for this device" in doctor._self_check().text


def test_what_is_wrong_stands_out_without_colours():
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(findings([doctor.Finding("a", "fine"), doctor.Finding("b", "[bad]", False)]))
    assert [line.split() for line in console.file.getvalue().splitlines()] == [
        ["ok", "a", "fine"],
        ["WRONG", "b", "[bad]"],
    ]
