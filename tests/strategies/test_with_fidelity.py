from dataclasses import replace
from itertools import pairwise

import pytest
from contract import problem
from hypothesis import given
from hypothesis import strategies as st
from learning_curves import laddered

from peftscout.errors import ConfigError
from peftscout.outcome import Fidelity
from peftscout.strategies import (
    FIDELITIES,
    STRATEGIES,
    EarlyStopOptions,
    HalvingOptions,
    OneEpochOptions,
    check_fidelity,
    make_strategy,
    with_fidelity,
)
from peftscout.strategies.early_stop import EarlyStop
from peftscout.strategies.halving import SuccessiveHalving
from peftscout.strategies.one_epoch import OneEpoch
from peftscout.strategies.random import random_search

BY_TRIALS = ("auto", "autopeft", "random", "uniform")


# -- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", BY_TRIALS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", None),
        ("halving", HalvingOptions()),
        ("early-stop", EarlyStopOptions()),
        ("one-epoch", OneEpochOptions()),
    ],
)
def test_every_fidelity_goes_with_every_strategy_that_evaluates_trials(strategy, name, options):
    assert check_fidelity(name, strategy, {}) == options


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - set(BY_TRIALS)))
@pytest.mark.parametrize("name", sorted(set(FIDELITIES) - {"full"}))
def test_strategies_with_a_supernet_or_a_race_of_their_own_are_refused_with_the_reason(strategy, name):
    with pytest.raises(ConfigError, match=f"fidelity '{name}': strategy '{strategy}' .*; use fidelity: full"):
        check_fidelity(name, strategy, {})
    assert check_fidelity("full", strategy, {}) is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "havling",
            {},
            r"fidelity 'havling': not known \(did you mean 'halving'\?\); there are full, halving, early-stop, one-epo",
        ),
        ("full", {"eta": 3}, r"fidelity_options.eta: fidelity 'full' does not know it; it has no options"),
        ("halving", {"etta": 3}, r"fidelity_options.etta: .*did you mean 'eta'.*; its options are eta, r_min, rank_by"),
        ("halving", {"eta": 1}, "fidelity_options: eta 1: must be a whole number from 2"),
        ("halving", {"eta": 2.5}, "fidelity_options: eta 2.5: must be a whole number"),
        ("halving", {"eta": True}, "eta True: must be a whole number"),
        ("halving", {"r_min": 0}, "r_min 0: must be a whole number from 1"),
        ("halving", {"rank_by": "accuracy"}, "rank_by 'accuracy': must be loss or score"),
        ("halving", {"band_factor": 1}, "band_factor 1: must be above 1"),
        ("halving", {"band_factor": float("nan")}, "band_factor nan: must be above 1"),
        ("halving", {"least_agreement": 1.5}, "least_agreement 1.5: must be within -1 and 1"),
        ("halving", {"least_plans": 3}, "least_plans 3: must be a whole number from 4"),
        ("early-stop", {"quantile": 0}, "quantile 0: must be above 0"),
        ("early-stop", {"keep_share": 2.0}, "keep_share 2.0: must be above 0, and at most 1"),
        ("early-stop", {"slack": -0.1}, "slack -0.1: must be at least 0"),
        ("early-stop", {"least_plans": 2}, "least_plans 2: must be a whole number from 4"),
        ("early-stop", {"least_correlation": 2}, "least_correlation 2: must be within -1 and 1"),
        ("early-stop", {"band_factor": 0.5}, "band_factor 0.5: must be above 1"),
        ("early-stop", {"r_min": 0}, "r_min 0: must be a whole number from 1"),
        ("one-epoch", {"keep": 0}, "keep 0: must be a whole number from 1"),
        ("one-epoch", {"rank_by": "f1"}, "rank_by 'f1'"),
    ],
)
def test_a_wrong_fidelity_or_option_is_named_before_anything_is_made(name, options, message):
    with pytest.raises(ConfigError, match=message):
        check_fidelity(name, "random", options)


def test_the_options_decide_what_is_made():
    p = laddered((10, 90))
    assert isinstance(with_fidelity(HalvingOptions(), random_search, p), SuccessiveHalving)
    assert isinstance(with_fidelity(EarlyStopOptions(), random_search, p), EarlyStop)
    assert isinstance(with_fidelity(OneEpochOptions(), random_search, p), OneEpoch)
    assert with_fidelity(None, random_search, p).ask(1) == random_search(p).ask(1)


@pytest.mark.parametrize("fidelity", [Fidelity(90), Fidelity(10, rungs=(10, 90))])
def test_a_problem_that_does_not_stand_at_the_top_of_a_ladder_is_a_defect(fidelity):
    with pytest.raises(ValueError, match="must be the full fidelity on a ladder"):
        with_fidelity(HalvingOptions(), random_search, replace(problem(), fidelity=fidelity))


def test_a_strategy_made_by_its_name_runs_under_halving():
    p = laddered(space="autopeft", budget=5000)
    strategy = with_fidelity(HalvingOptions(), lambda q: make_strategy("autopeft", q, {"initial": 4}), p)
    assert [r.fidelity for r in strategy.ask(2)] == [Fidelity(10, rungs=(10, 30, 90))] * 2


# -- ladders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "options", "rungs"),
    [
        (500, HalvingOptions(), (56, 167, 500)),
        (90, HalvingOptions(), (10, 30, 90)),
        (100, HalvingOptions(), (11, 33, 100)),
        (50, HalvingOptions(), (17, 50)),  # a third rung would have six steps
        (500, HalvingOptions(eta=2), (125, 250, 500)),
        (500, HalvingOptions(eta=4, r_min=10), (31, 125, 500)),
        (500, HalvingOptions(r_min=5), (6, 19, 56, 167, 500)),
    ],
)
def test_a_ladder_is_geometric_down_from_the_full_training(steps, options, rungs):
    assert options.ladder(Fidelity(steps, 0.5), 40) == Fidelity(steps, 0.5, rungs)


@given(steps=st.integers(2, 20_000), eta=st.integers(2, 6), r_min=st.none() | st.integers(1, 300))
def test_every_ladder_ascends_by_about_eta_from_r_min_to_the_full_training(steps, eta, r_min):
    try:
        rungs = HalvingOptions(eta, r_min).ladder(Fidelity(steps), 1).rungs
    except ConfigError:
        assert steps < eta * (r_min or 10)
        return
    assert rungs[-1] == steps
    assert rungs[0] >= (r_min or 10)
    for low, high in pairwise(rungs):
        assert abs(high - eta * low) <= eta
    if r_min is None:
        assert len(rungs) <= 3
    else:
        assert rungs[0] < eta * (r_min + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (HalvingOptions(), r"29 steps are too few for a rung of 10 steps, eta 3: give steps >= 30, .* fidelity: full"),
        (
            EarlyStopOptions(),
            r"fidelity early-stop: 29 steps are too few for a rung of 10 steps, eta 3: give steps >= 30",
        ),
        (HalvingOptions(eta=2, r_min=20), r"29 steps are too few for a rung of 20 steps, eta 2: give steps >= 40"),
    ],
)
def test_too_few_steps_for_a_rung_are_refused_with_the_number_that_would_do(options, message):
    with pytest.raises(ConfigError, match=message):
        options.ladder(Fidelity(29), 10)


def test_the_number_that_the_refusal_names_does():
    assert HalvingOptions().ladder(Fidelity(30), 10).rungs == (10, 30)
    assert HalvingOptions(eta=2, r_min=20).ladder(Fidelity(40), 10).rungs == (20, 40)


def test_the_ladder_of_one_epoch_has_the_epoch_and_the_full_training():
    assert OneEpochOptions().ladder(Fidelity(90), 30) == Fidelity(90, rungs=(30, 90))


@pytest.mark.parametrize("epoch", [90, 91, 0])
def test_a_training_of_no_more_than_an_epoch_leaves_nothing_to_save(epoch):
    with pytest.raises(ConfigError, match=f"an epoch has {epoch} steps and the full training 90: give steps > {epoch}"):
        OneEpochOptions().ladder(Fidelity(90), epoch)


def test_the_plans_of_a_halving_are_counted_by_what_goes_on():
    # of 9 plans: 9 x 10 steps, 3 go on by 20 each, 1 by 60
    assert HalvingOptions().plans_within(9 * 10 + 3 * 20 + 60, (10, 30, 90)) == 9
    assert HalvingOptions().plans_within(0, (10, 30, 90)) == 0
