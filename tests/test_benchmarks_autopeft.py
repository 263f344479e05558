"""The benchmark of AutoPEFT on real data: what it makes of its rows."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import autopeft_real as bench
import csv_rows
from fake_sites import fake_sites
from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan


def row(contender="autopeft", seed=0, number=1, cost=1000, score="0.80000", full="True", so_far=110, **changes):
    fields = {
        "task": "sst2", "contender": contender, "seed": str(seed), "number": str(number), "label": "a plan",
        "state": "done", "full": full, "cost": str(cost), "score": score, "steps": "110", "steps_so_far": str(so_far),
        "steps_allowed": "440", "reference_score": "0.50000", "budget": "8000", "plan": f"plan {number}",
    }  # fmt: skip
    return {**fields, **changes}


def test_the_hypervolume_is_the_area_over_log_cost_between_the_majority_score_and_the_front():
    rows = [row(cost=1000, score="0.80000"), row(number=2, cost=100, score="0.60000"), row(number=3, score="0.30000")]
    assert bench.volume(rows) == pytest.approx(0.1 * 1 + 0.3 * np.log10(10_000 / 1000))


def test_only_full_trainings_with_a_score_within_the_steps_count():
    rows = [
        row(number=1, so_far=110),
        row(number=2, so_far=330, cost=10, score="0.90000"),
        row(number=3, so_far=100, cost=10, score="0.99000", full="False"),
        row(number=4, so_far=100, score=""),
    ]
    assert [r["number"] for r in bench.evaluated(rows)] == ["1", "2"]
    assert [r["number"] for r in bench.evaluated(rows, 0.5)] == ["1"]
    assert bench.volume(rows, 0.5) < bench.volume(rows)
    assert bench.volume(rows, 0.01) == 0


def test_the_table_gives_means_over_seeds_and_differences_seed_by_seed():
    ours = [row(seed=s, score=f"0.{8 + s}0000") for s in (0, 1)]
    theirs = [row("random", seed=s, score="0.70000") for s in (0, 1)]
    text = bench.table(ours + theirs)
    assert "| sst2 | autopeft | 2 | 1 | 0.3500 | 0.3500 | 0.3500 | 0.8500 |" in text
    assert text.endswith("hypervolume of autopeft minus random, by seed 0, 1: +0.1000, +0.2000")


def test_the_figure_is_drawn_also_where_a_search_has_no_score(tmp_path):
    bench.figure([row(), row(number=2, cost=200), row("random", score="")], tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_goes_on_from_a_rung_takes_the_steps_in_between_and_the_baseline_takes_none(monkeypatch):
    sites = fake_sites("encoder")
    plans = [Plan.of({("layers.1.ffn", "serial"): n}) for n in (1, 2, 4)]

    def record(number, plan, steps):
        request = Evaluate(plan, Fidelity(steps, rungs=(10, 30)), 0, label="x")
        return Record(number, "search", request, Outcome(State.DONE, plan.cost(sites), 0.5, steps=steps))

    class Problem:
        fidelity, reference_score = Fidelity(30, rungs=(10, 30)), 0.5
        budget = type("B", (), {"parameters": 500})

    prepared = type("P", (), {"problem": Problem, "config": type("C", (), {"trials": 4})})
    records = [record(0, plans[0], 30), record(1, plans[1], 10), record(2, plans[2], 10), record(3, plans[1], 30)]
    rows = list(bench.rows_of(bench.Cell("sst2", "early-stop", 0), prepared, records))
    assert [r["steps_so_far"] for r in rows] == [10, 20, 40]
    assert [r["full"] for r in rows] == [False, False, True]
    assert {r["steps_allowed"] for r in rows} == {90}


def test_rows_are_read_back_as_they_were_written(tmp_path):
    path = tmp_path / "results" / "rows.csv"
    csv_rows.append(path, bench.COLUMNS, iter([row()]))
    csv_rows.append(path, bench.COLUMNS, iter([row(seed=1)]))
    assert csv_rows.read(path) == [row(), row(seed=1)]
    assert csv_rows.read(tmp_path / "none.csv") == []
