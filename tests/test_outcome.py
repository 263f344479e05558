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
    outcome = Outcome(State.DONE, 7, score, {"accuracy": score}, 1.5, 3, 3.5, 1 << 30, tuple(curve), "fine")
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


def test_a_request_survives_json_and_keeps_its_key():
    request = Evaluate(PLAN, Fidelity(10, 0.5), 3, 0.33, "a label")
    again = Evaluate.from_json(json.loads(json.dumps(request.to_json())))
    assert again == request
    assert again.key == request.key
    assert again.label == "a label"


def test_the_key_of_a_request_changes_with_everything_but_its_label():
    base = Evaluate(PLAN, Fidelity(10), 3)
    others = [
        Evaluate(Plan.of({("layers.0.attention.q", "lora"): 3}), Fidelity(10), 3),
        Evaluate(PLAN, Fidelity(11), 3),
        Evaluate(PLAN, Fidelity(10, 0.5), 3),
        Evaluate(PLAN, Fidelity(10), 4),
        Evaluate(PLAN, Fidelity(10), 3, 2.0),
    ]
    assert len({base.key, *(o.key for o in others)}) == 6
    assert Evaluate(PLAN, Fidelity(10), 3, label="x").key == base.key


@pytest.mark.parametrize(("steps", "fraction"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, 1.5)])
def test_impossible_fidelities_are_refused(steps, fraction):
    with pytest.raises(ValueError, match="steps|data_fraction"):
        Fidelity(steps, fraction)
