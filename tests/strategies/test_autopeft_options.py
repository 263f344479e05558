import math

import numpy as np
import pytest

from peftscout.errors import ConfigError
from peftscout.strategies.autopeft import PAPER, AutoPeftOptions


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("surrogate", "nuts"),
        ("staircase", "mean"),
        ("cost_axis", "log2"),
        ("initial", 1),
        ("starts", 0),
        ("random_starts", 0),
        ("scan_limit", -1),
        ("scan_limit", 2**32),
        ("reference_margin", -0.1),
        ("reference_margin", math.nan),
        ("reference_quantile", 1.5),
        ("reference_score", math.inf),
        ("outlier_fence", -1.0),
    ],
)
def test_an_impossible_value_is_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=option):
        AutoPeftOptions(**{option: value})


def test_the_initial_design_is_a_quarter_of_the_trials_within_bounds():
    assert [AutoPeftOptions().initial_for(n) for n in (8, 40, 60, 400, None)] == [4, 10, 15, 20, 20]
    assert AutoPeftOptions(initial=7).initial_for(400) == 7


def test_the_constants_of_the_paper_are_there_by_name():
    assert (PAPER.initial, PAPER.surrogate, PAPER.cost_axis) == (100, "saas", "linear")
    assert (PAPER.reference_score, PAPER.starts, PAPER.scan_limit) == (0.7, 10, 0)


def test_the_reference_cost_lies_above_the_budget_on_either_axis():
    log, linear = AutoPeftOptions(), AutoPeftOptions(cost_axis="linear")
    assert log.reference_cost(1000) == pytest.approx(math.log10(1250))
    assert linear.reference_cost(1000) == pytest.approx(1250)
    for options in (log, linear):
        assert options.axis(np.array([1000]))[0] < options.reference_cost(1000)


def test_collapsed_runs_are_pulled_in_to_the_fence_and_others_left_alone():
    scores = np.array([0.70, 0.72, 0.74, 0.76, 0.78, 0.10])
    pulled = AutoPeftOptions(outlier_fence=1.5).pull_in(scores)
    np.testing.assert_array_equal(pulled[:5], scores[:5])
    assert 0.10 < pulled[5] < 0.70
    np.testing.assert_array_equal(AutoPeftOptions().pull_in(scores[:5]), scores[:5])


def test_options_cannot_be_changed():
    with pytest.raises(AttributeError):
        AutoPeftOptions().initial = 3  # type: ignore[misc]
