"""The figures of docs/reliability.md: how they are added up and written, and that the page holds those that were."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import reliability
from figures import FILE, record


def test_what_tests_count_is_added_up_by_name(tmp_path, monkeypatch):
    path = tmp_path / "figures.jsonl"
    monkeypatch.delenv(FILE, raising=False)
    record("kills", 99)
    monkeypatch.setenv(FILE, str(path))
    for what, count in (("kills", 3), ("losses", 0), ("kills", 4)):
        record(what, count)
    assert reliability.figures_of(path.read_text().splitlines()) == {"kills": 7, "losses": 0}
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_the_table_takes_the_place_of_the_one_before():
    page = f"# Page\n\n{reliability.HEADER}\n|---|---|\n| old | 1 |\n\nAfter it.\n"
    made = reliability.with_table(page, reliability.table_of({"new": 1234}))
    assert made == f"# Page\n\n{reliability.HEADER}\n|---|---|\n| new | 1,234 |\n\nAfter it.\n"
    with pytest.raises(SystemExit, match="no table"):
        reliability.with_table("# Page\n", "")


def test_the_page_holds_the_figures_that_were_written_and_no_loss():
    figures = reliability.read()
    assert reliability.table_of(figures) in reliability.PAGE.read_text(encoding="utf-8")
    assert figures["kills survived"] >= 50
    assert figures["bad data refused with file, line and remedy"] >= 60
    nothing = ("lost", "run again", "differ", "went off", "changed a result", "left after")
    losses = {name: count for name, count in figures.items() if any(word in name for word in nothing)}
    assert len(losses) == 6
    assert set(losses.values()) == {0}
