import numpy as np
import pytest

from peftscout.comparison import compare


def accuracy(predictions, references):
    return float(np.mean(predictions == references))


def noisy(references, error, rng):
    return np.where(rng.random(len(references)) < error, 1 - references, references)


def experiment(rng, rows, seeds, error_a, error_b):
    references = rng.integers(2, size=rows)
    a = [noisy(references, error_a, rng) for _ in range(seeds)]
    b = [noisy(references, error_b, rng) for _ in range(seeds)]
    return compare(a, b, references, accuracy)


def test_means_spreads_and_difference_are_those_of_the_scores():
    references = np.array([0, 0, 1, 1])
    best = [np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])]
    baseline = [np.array([0, 0, 0, 0]), np.array([0, 1, 1, 0])]
    c = compare(best, baseline, references, accuracy)
    assert c.best.values == (1.0, 0.75)
    assert c.baseline.values == (0.5, 0.5)
    assert c.difference == pytest.approx(0.375)
    assert c.best.std == pytest.approx(np.std([1, 0.75], ddof=1))
    assert c.interval[0] < c.difference < c.interval[1]


def test_a_clear_gain_is_seen():
    c = experiment(np.random.default_rng(0), 1000, 4, 0.05, 0.3)
    assert c.gain
    assert not c.loss


def test_a_clear_loss_is_seen():
    c = experiment(np.random.default_rng(0), 1000, 4, 0.3, 0.05)
    assert c.loss
    assert not c.gain


def test_equal_plans_are_called_different_no_more_often_than_the_level_allows():
    rng = np.random.default_rng(1)
    called = sum(c.gain or c.loss for c in (experiment(rng, 200, 3, 0.2, 0.2) for _ in range(100)))
    assert called <= 8


def test_with_one_seed_nothing_is_proven():
    c = experiment(np.random.default_rng(0), 500, 1, 0.0, 0.5)
    assert c.interval is None
    assert c.best.std is None
    assert not c.gain


def test_few_report_rows_widen_the_interval():
    rng = np.random.default_rng(2)
    few, many = experiment(rng, 40, 3, 0.2, 0.25), experiment(rng, 4000, 3, 0.2, 0.25)
    assert few.interval[1] - few.interval[0] > 3 * (many.interval[1] - many.interval[0])


def test_the_same_predictions_give_the_same_interval():
    first, second = (experiment(np.random.default_rng(5), 100, 3, 0.2, 0.3) for _ in range(2))
    assert first == second
