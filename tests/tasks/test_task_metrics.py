"""Metrics: by hand, against the field's conventions, never NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftscout.errors import DataError
from peftscout.tasks import compute_metrics
from peftscout.tasks.metrics import CLASSIFICATION, REGRESSION, metrics_for


def test_classification_metrics_by_hand() -> None:
    # true positives 2, false positives 1, false negatives 1, true negatives 4
    references = [1, 1, 1, 0, 0, 0, 0, 0]
    predictions = [1, 1, 0, 1, 0, 0, 0, 0]
    scores = compute_metrics(["accuracy", "f1", "macro_f1", "matthews"], predictions, references)
    assert scores["accuracy"] == 6 / 8
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 8 / 10) / 2)
    assert scores["matthews"] == pytest.approx((2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5))


def test_macro_f1_is_the_plain_mean_over_three_classes() -> None:
    scores = compute_metrics(["macro_f1"], [0, 0, 1, 1], [0, 0, 1, 2])
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_f1_takes_class_one_as_positive() -> None:
    assert compute_metrics(["f1"], [1, 0, 0], [1, 0, 1])["f1"] == pytest.approx(2 / 3)
    assert compute_metrics(["f1"], [0, 1, 1], [0, 1, 0])["f1"] == pytest.approx(2 / 3)


def test_regression_metrics_by_hand() -> None:
    references, predictions = [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 4.0, 9.0]
    scores = compute_metrics(list(REGRESSION), predictions, references)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(float(np.corrcoef(references, predictions)[0, 1]))
    assert scores["neg_mean_squared_error"] == -(4 + 36) / 4
    assert scores["neg_mean_absolute_error"] == -(2 + 6) / 4
    assert scores["r2"] == pytest.approx(1 - 40 / 5)


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_a_constant_has_correlation_zero(name: str) -> None:
    assert compute_metrics([name], [0.5] * 4, [0.0, 1.0, 2.0, 3.0]) == {name: 0.0}
    assert compute_metrics([name], [0.0, 1.0], [2.0, 2.0]) == {name: 0.0}
    assert compute_metrics([name], [1.0], [2.0]) == {name: 0.0}


def test_one_class_only_has_matthews_zero() -> None:
    assert compute_metrics(["matthews"], [1, 1, 1, 1], [0, 1, 0, 1]) == {"matthews": 0.0}
    assert compute_metrics(["matthews", "f1"], [0, 0], [0, 0]) == {"matthews": 0.0, "f1": 0.0}


ids = st.integers(0, 1)
numbers = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.tuples(ids, ids), min_size=1, max_size=30))
@pytest.mark.filterwarnings("error")
def test_classification_scores_are_finite_and_bounded(rows: list[tuple[int, int]]) -> None:
    predictions, references = zip(*rows, strict=True)
    scores = compute_metrics(list(CLASSIFICATION), predictions, references)
    assert all(-1 <= score <= 1 for score in scores.values())


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30))
@pytest.mark.filterwarnings("error")
def test_regression_scores_are_finite(rows: list[tuple[float, float]]) -> None:
    predictions, references = (np.array(column, dtype=np.float32) for column in zip(*rows, strict=True))
    assert all(math.isfinite(score) for score in compute_metrics(list(REGRESSION), predictions, references).values())


def test_scores_are_plain_floats() -> None:
    scores = compute_metrics(["accuracy", "matthews"], np.array([0, 1]), np.array([0, 1]))
    assert {type(score) for score in scores.values()} == {float}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        compute_metrics(["pearson"], [0.0, bad], [0.0, 1.0])


@pytest.mark.parametrize(("predictions", "references"), [([], []), ([0], [0, 1]), ([[0]], [[0]])])
def test_rows_must_match(predictions: Any, references: Any) -> None:
    with pytest.raises(ValueError, match="two equal, non-empty rows needed"):
        compute_metrics(["accuracy"], predictions, references)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"metric 'mathews': unknown \(did you mean 'matthews'\?\)"):
        compute_metrics(["mathews"], [0], [0])


def test_the_chosen_metric_comes_first_and_the_usual_ones_follow() -> None:
    assert metrics_for("classification", 2, None) == ("accuracy", "macro_f1")
    assert metrics_for("classification", 2, "f1", ("accuracy", "f1")) == ("f1", "accuracy")
    assert metrics_for("multiple_choice", 4, None) == ("accuracy",)
    assert metrics_for("regression", 0, "pearson") == ("pearson", "spearman")


def test_a_metric_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="metric 'pearson': not a metric of classification; choose from accuracy"):
        metrics_for("classification", 2, "pearson")
    with pytest.raises(DataError, match="metric 'f1': is for two classes, the task has 3 choices or classes"):
        metrics_for("classification", 3, "f1")
