import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan

PLAN = Plan.of({("layers.0.attention.q", "lora"): 2})


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, None, "0.5", 1, 1 + 2j])
def test_a_done_outcome_needs_a_finite_float_score(score):
    with pytest.raises(ValueError, match="cannot have the score"):
        Outcome(State.DONE, 10, score=score)


@pytest.mark.parametrize("state", [s for s in State if s is not State.DONE])
def test_only_done_outcomes_have_a_score(state):
    assert not Outcome(state, 10).done
    with pytest.raises(ValueError, match="cannot have the score"):
        Outcome(state, 10, score=0.5)


@given(
    score=st.floats(allow_nan=False, allow_infinity=False),
    curve=st.lists(st.tuples(st.integers(1, 99), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))),
)
def test_an_outcome_survives_json(score, curve):
    outcome = Outcome(State.DONE, 7, score, {"accuracy": score}, 1.5, 3, 3.5, 64, 60, 1 << 30, tuple(curve), "fine")
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_a_request_survives_json_and_keeps_its_key():
    request = Evaluate(PLAN, Fidelity(10, 0.5), 3, 0.33, "a label")
    again = Evaluate.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert again.key == request.key
    assert again.label == "a label"


def test_a_request_of_a_warm_start_survives_json_and_one_of_fresh_weights_says_nothing_of_it():
    warm = Evaluate(PLAN, Fidelity(10), 3, initial="0123456789abcdef")
    assert Evaluate.from_json(json.loads(json.dumps(warm.to_json()))) == warm
    assert "initial" not in Evaluate(PLAN, Fidelity(10), 3).to_json()


def test_the_key_of_a_request_changes_with_everything_but_its_label():
    base = Evaluate(PLAN, Fidelity(10), 3)
    others = [
        Evaluate(Plan.of({("layers.0.attention.q", "lora"): 3}), Fidelity(10), 3),
        Evaluate(PLAN, Fidelity(11), 3),
        Evaluate(PLAN, Fidelity(10, 0.5), 3),
        Evaluate(PLAN, Fidelity(10), 4),
        Evaluate(PLAN, Fidelity(10), 3, 2.0),
        Evaluate(PLAN, Fidelity(10), 3, initial="0123456789abcdef"),
        Evaluate(PLAN, Fidelity(10), 3, task="cola"),
        Evaluate(PLAN, Fidelity(10), 3, op_lr_scales=(("bias", 0.3), ("lora", 3.0))),
    ]
    assert len({base.key, *(o.key for o in others)}) == 1 + len(others)
    assert base.course not in {o.course for o in others}
    assert [Evaluate.from_json(json.loads(json.dumps(o.to_json()))) for o in others] == others
    assert Evaluate(PLAN, Fidelity(10), 3, label="x").key == base.key


def test_identities_in_ledgers_of_earlier_releases_stay_what_they_are():
    plan = Plan.of({("layers.0.attention.q", "lora"): 2})
    assert Evaluate(plan, Fidelity(10), 3).key == "5f01e1988dd52ecb"
    assert Evaluate(plan, Fidelity(10), 3).course == "6d50243aabe6030d"
    assert Evaluate(plan, Fidelity(10, rungs=(5, 10)), 3, 2.0, initial="0123456789abcdef").key == "a65d9f73d7ea159b"


@pytest.mark.parametrize(("steps", "fraction"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, 1.5)])
def test_impossible_fidelities_are_refused(steps, fraction):
    with pytest.raises(ValueError, match="steps|data_fraction"):
        Fidelity(steps, fraction)


# -- ladders of rungs -------------------------------------------------------------------------------------------------

LADDER = (10, 30, 90)


@st.composite
def on_a_ladder(draw):
    rungs = tuple(sorted(draw(st.sets(st.integers(1, 500), min_size=2, max_size=5))))
    return Fidelity(draw(st.sampled_from(rungs)), draw(st.sampled_from([0.25, 1.0])), rungs)


@pytest.mark.parametrize(
    ("steps", "rungs", "message"),
    [
        (20, LADDER, r"steps 20: must be one of the rungs \(10, 30, 90\)"),
        (10, (10,), "at least two ascending"),
        (10, (30, 10), "at least two ascending"),
        (10, (10, 10), "at least two ascending"),
        (10, (0, 10), "from 1"),
        (10, [10, 30], "must be a tuple"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(steps, rungs, message):
    with pytest.raises(ValueError, match=message):
        Fidelity(steps, rungs=rungs)


def test_only_the_last_rung_is_the_full_training():
    assert [Fidelity(steps, rungs=LADDER).full for steps in LADDER] == [False, False, True]
    assert Fidelity(10).full


@given(fidelity=on_a_ladder())
def test_a_request_on_a_ladder_survives_json_and_keeps_its_key(fidelity):
    request = Evaluate(PLAN, fidelity, 3)
    again = Evaluate.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert again.key == request.key
    assert hash(again) == hash(request)


def test_a_request_without_a_ladder_has_the_key_and_the_json_that_it_had_before_there_were_any():
    request = Evaluate(PLAN, Fidelity(10, 0.5), 3, 0.33)
    identity = [PLAN.digest, 10, 0.5, 3, 0.33]
    assert request.key == hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    assert request.to_json()["fidelity"] == {"steps": 10, "data_fraction": 0.5}


def test_requests_of_other_rungs_or_of_other_ladders_have_other_keys():
    fidelities = [Fidelity(10), Fidelity(10, rungs=LADDER), Fidelity(30, rungs=LADDER), Fidelity(10, rungs=(10, 90))]
    assert len({Evaluate(PLAN, fidelity, 3).key for fidelity in fidelities}) == 4


def test_outcomes_of_before_tokens_were_counted_still_read():
    old = {k: v for k, v in Outcome(State.DONE, 7, 0.5).to_json().items() if k not in ("tokens", "real_tokens")}
    assert Outcome.from_json(old) == Outcome(State.DONE, 7, 0.5)
