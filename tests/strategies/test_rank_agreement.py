import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from peftscout.strategies.rank_agreement import Agreement, Band, rank_agreement


def best_third(correlation: float, plans: int, rng: np.random.Generator) -> Band:
    """A band whose rungs have this Spearman correlation over all plans, of which the best third went on."""
    pearson = 2 * math.sin(math.pi * correlation / 6)
    early = rng.standard_normal(plans)
    late = pearson * early + math.sqrt(1 - pearson**2) * rng.standard_normal(plans)
    through = [int(i) for i in np.argsort(early)[: plans // 3]]
    return Band([float(v) for v in early], through, [float(v) for v in late[through]])


@given(
    values=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30),
)
def test_when_every_plan_went_on_it_is_spearmans_correlation_ties_included(values):
    early, late = zip(*values, strict=True)
    agreement = rank_agreement([Band(early, range(len(early)), late)])
    if len(set(early)) == 1 or len(set(late)) == 1:
        assert agreement.correlation is None
    else:
        assert agreement.correlation == pytest.approx(spearmanr(early, late)[0], abs=1e-12)
    assert agreement.plans == len(values)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5, 0.7, 0.9])
def test_the_correlation_of_all_plans_is_recovered_from_the_best_third(correlation):
    rng = np.random.default_rng(0)
    bands = [best_third(correlation, 300, rng) for _ in range(30)]
    agreement = rank_agreement(bands)
    assert agreement.plans == 3000
    assert agreement.correlation == pytest.approx(correlation, abs=0.05)


def test_without_the_correction_the_best_third_would_look_as_if_the_rungs_disagreed():
    rng = np.random.default_rng(0)
    bands = [best_third(0.8, 300, rng) for _ in range(30)]
    plain = np.mean([spearmanr([b.early[i] for i in b.through], b.late)[0] for b in bands])
    assert plain < 0.6
    assert rank_agreement(bands).correlation == pytest.approx(0.8, abs=0.05)


def test_eight_plans_hardly_ever_condemn_rungs_that_agree_and_more_plans_do_condemn_those_that_do_not():
    rng = np.random.default_rng(1)

    def condemned(correlation: float, plans: int) -> float:
        return float(np.mean([rank_agreement([best_third(correlation, plans, rng)]).upper < 0.5 for _ in range(300)]))

    assert condemned(0.85, 24) < 0.05
    assert condemned(0.0, 24) > 0.25
    assert condemned(0.0, 120) > 0.75


@pytest.mark.parametrize(("plans", "error"), [(4, 1.0), (7, 0.5), (28, 0.2)])
def test_the_upper_value_is_a_standard_error_up_on_fishers_scale(plans, error):
    rng = np.random.default_rng(2)
    seen = rank_agreement([Band(rng.uniform(size=plans), range(plans), rng.uniform(size=plans))])
    assert math.atanh(seen.upper) - math.atanh(seen.correlation) == pytest.approx(error)


def test_three_plans_bound_nothing():
    assert rank_agreement([Band([1, 2, 3], [0, 1, 2], [3, 1, 2])]).upper == 1.0


@given(st.integers(2, 12), st.randoms(use_true_random=False))
def test_equal_orders_agree_and_opposite_orders_disagree_completely(n, random):
    early = random.sample(range(1000), n)
    through = sorted(random.sample(range(n), random.randint(2, n)))
    same = [early[i] * 2 + 1 for i in through]
    assert rank_agreement([Band(early, through, same)]).correlation == pytest.approx(1.0)
    assert rank_agreement([Band(early, through, [-v for v in same])]).correlation == pytest.approx(-1.0)


def test_bands_are_ranked_apart():
    """Between the bands the order is kept, within them it is turned round: only the latter counts."""
    cheap, dear = Band([5, 6, 7], [0, 1, 2], [7, 6, 5]), Band([1, 2, 3], [0, 1, 2], [3, 2, 1])
    assert rank_agreement([cheap, dear]) == Agreement(pytest.approx(-1.0), pytest.approx(-1.0), 6)


@pytest.mark.parametrize(
    ("bands", "plans"),
    [([], 0), ([Band([1.0], [0], [1.0])], 0), ([Band([1, 2, 3], [], [])], 0), ([Band([1, 1], [0, 1], [1, 2])], 2)],
)
def test_where_nothing_can_be_compared_there_is_no_correlation(bands, plans):
    assert rank_agreement(bands) == Agreement(None, None, plans)
