"""What a stage reports, as plain data."""

import json

import numpy as np
import pytest

from peftscout.outcome import Outcome, State
from peftscout.strategies.design_spaces.decision import Comparison, Decision, compare, decide
from peftscout.strategies.design_spaces.stages import (
    ReferenceReport,
    Row,
    Rung,
    StageReport,
    complete,
    empty_row,
    rows_of,
    score_table,
)
from peftscout.strategies.design_spaces.statistics import Resamples, standardise


def scores(options: int = 3, models: int = 20, tasks: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(1, models, tasks))
    return 0.8 + 0.01 * (base + 0.3 * rng.normal(size=(options, models, tasks)) + np.arange(options)[:, None, None])


def rows(table: np.ndarray) -> tuple[tuple[Row, ...], Comparison, Decision]:
    comparison = compare(standardise(table), 0.05, 500, np.random.default_rng(0))
    decision = decide(comparison, 0.3, 0.05)
    labels = [f"o{i}" for i in range(len(table))]
    resamples = Resamples.draw(table.shape[1], 500, np.random.default_rng(1))
    return rows_of(labels, table, comparison, decision, resamples), comparison, decision


# -- rows --------------------------------------------------------------------------------------------------------------


def test_means_and_intervals_are_in_the_unit_of_the_metric_and_differences_are_standardised():
    table = scores()
    found, comparison, _ = rows(table)
    for i, row in enumerate(found):
        assert row.mean == pytest.approx(table[i].mean())
        assert row.interval[0] < row.mean < row.interval[1]
        assert row.interval[1] - row.interval[0] < 0.02
        assert row.difference == pytest.approx(comparison.means[i] - comparison.means[2])
    assert found[2].difference == 0
    assert found[0].difference < found[1].difference < 0


def test_the_best_option_has_no_p_value_against_itself():
    found, comparison, _ = rows(scores())
    assert found[2].p_value is None
    assert [row.p_value for row in found[:2]] == pytest.approx(comparison.p_values[:2, 2])


def test_the_decision_and_its_reason_are_in_every_row():
    found, _, decision = rows(scores())
    assert tuple(row.decision for row in found) == decision.fates == ("beaten", "beaten", "kept")
    assert all(row.why for row in found)
    assert sum(row.probability_best for row in found) == pytest.approx(1)


def test_over_several_tasks_the_mean_is_that_of_the_tasks_and_the_decision_weighs_them_equally():
    table = scores(tasks=2)
    table[..., 1] = 50 + 100 * table[..., 1]  # a metric in percent, so to say
    found, comparison, _ = rows(table)
    assert found[0].mean == pytest.approx(table[0].mean())
    alone = [standardise(table[..., [t]]).mean(axis=1) for t in range(2)]
    assert comparison.means == pytest.approx((alone[0] + alone[1]) / 2)


def test_a_row_without_a_comparison_has_what_is_known():
    bare = empty_row("spindle", "refused", "7 layers")
    assert (bare.n, bare.mean, bare.interval, bare.p_value) == (0, None, None, None)
    some = empty_row("spindle", "dropped", "worse", np.array([0.5, np.nan, 0.7]))
    assert (some.n, some.mean, some.upper_mean) == (2, pytest.approx(0.6), 0.7)


# -- plain data --------------------------------------------------------------------------------------------------------


def test_a_report_is_json_with_nothing_infinite_in_it():
    found, _, _ = rows(scores(models=3))
    report = StageReport(
        "S1",
        "grouping",
        "undecided",
        ("o0", "o1"),
        "too few",
        found,
        models=3,
        spread=float("nan"),
        detectable=float("inf"),
        edf={"o0": [(0.5, 1.0)]},
        rungs=(Rung(10, 3, ("o0", "o1", "o2"), ("o2",)),),
    )
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["spread"] is None
    assert data["detectable"] is None
    assert data["edf"] == {"o0": [[0.5, 1.0]]}
    assert data["rungs"] == [{"steps": 10, "models": 3, "options": ["o0", "o1", "o2"], "let_go": ["o2"]}]
    assert set(data["rows"][0]) == {
        "option", "n", "mean", "interval", "probability_best", "upper_mean", "difference", "p_value", "distance",
        "decision", "why", "cost",
    }  # fmt: skip


def test_a_reference_without_scores_is_json_too():
    report = ReferenceReport(0, None, None, [], (None, 0.5), "off: too few trials for a reference population")
    assert json.loads(json.dumps(report.to_json()))["taus"] == [None, 0.5]


# -- tables ------------------------------------------------------------------------------------------------------------


def outcome(score: float | None, state: State = State.DONE) -> Outcome:
    return Outcome(state, 1, score)


def test_a_diverged_model_is_as_bad_as_the_worst_of_any_option():
    table = score_table(
        [[[outcome(0.9)], [outcome(None, State.DIVERGED)]], [[outcome(0.3)], [outcome(0.6)]]],
    )
    assert table[0, 1, 0] == 0.3


@pytest.mark.parametrize("state", [State.FAILED, State.OUT_OF_MEMORY, State.PRUNED, State.INFEASIBLE])
def test_other_failures_are_missing(state):
    table = score_table([[[outcome(0.9)], [outcome(None, state)]]])
    assert np.isnan(table[0, 1, 0])


def test_where_everything_diverged_there_is_no_worst():
    assert np.isnan(score_table([[[outcome(None, State.DIVERGED)]]])).all()


def test_half_of_the_scores_of_an_option_may_be_missing_but_not_more():
    table = np.zeros((2, 4, 1))
    table[1, :2] = np.nan
    assert complete(table) == ([0, 1], [2, 3])
    table[1, 2] = np.nan
    assert complete(table) == ([0], [0, 1, 2, 3])


def test_a_model_missing_in_one_task_is_missing():
    table = np.zeros((2, 3, 2))
    table[0, 1, 1] = np.nan
    assert complete(table) == ([0, 1], [0, 2])
