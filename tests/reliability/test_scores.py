"""R8: what is no finite number is a result with a reason, and never a number in a front or a surrogate."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_studies import TRAINING

from figures import record
from peftscout.api import Result
from peftscout.engine import run_study
from peftscout.errors import NothingFeasibleError
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.report.progress import Silent
from peftscout.strategies.autopeft import autopeft
from peftscout.strategies.autopeft_options import AutoPeftOptions
from peftscout.study import read_records
from strategies.contract import done, drive, problem
from thinning import FACTOR

NO_SCORES: dict[str, tuple[Any, str]] = {
    "NaN": (math.nan, "diverged"),
    "infinity": (math.inf, "diverged"),
    "minus infinity": (-math.inf, "diverged"),
    "NaN of numpy": (np.float32("nan"), "diverged"),
    "NaN among others": ({"accuracy": 0.5, "loss": math.nan}, "diverged"),
    "None": (None, "failed"),
    "a complex number": (1j, "failed"),
    "text": ("0.9", "failed"),
    "a list": ([0.9], "failed"),
    "nothing by name": ({}, "failed"),
    "text by name": ({"accuracy": "0.9"}, "failed"),
    "an array": (np.array([0.9, 0.1]), "failed"),
    "a tensor of two": (torch.tensor([0.9, 0.1]), "failed"),
    "a decimal": (Decimal("0.9"), "failed"),
    "too large a number": (10**400, "failed"),
}


def answers(values: list[Any]) -> Callable[[Any], Any]:
    given_out = iter(values)

    def own(candidate: Any) -> Any:
        return next(given_out)

    return own


def test_what_is_no_score_is_an_outcome_with_a_reason_and_never_on_the_front(prepared, tmp_path):
    own = answers([0.25, *(value for value, _ in NO_SCORES.values()), np.float32(0.5)])
    trials = len(NO_SCORES) + 2
    settings = {"strategy": "random", "trials": trials, "steps": 1, "final": {"seeds": 0}, "training": TRAINING}
    ready = prepared(**settings)
    from dataclasses import replace

    summary = run_study(replace(ready, own_training=own), tmp_path / "s", Silent())
    states = [trial["state"] for trial in summary["trials"]]
    assert states == ["done", *(state for _, state in NO_SCORES.values()), "done"]
    assert all(trial["message"] for trial in summary["trials"] if trial["state"] != "done")
    assert [r.outcome.score for r in read_records(tmp_path / "s") if r.outcome.done] == [0.25, 0.5]
    assert set(Result(tmp_path / "s", summary).front["score"]) <= {0.25, 0.5}
    record("scores that are no numbers", len(NO_SCORES))


def test_a_learning_rate_of_a_thousand_ends_the_study_with_words(prepared, tmp_path):
    wild = {**TRAINING, "learning_rates": {"lora": 1e30, "head": 1e30}, "clip": 1e30}
    ready = prepared(strategy="random", space="lora", trials=2, steps=3, final={"seeds": 0}, training=wild)
    with pytest.raises(NothingFeasibleError, match="diverged"):
        run_study(ready, tmp_path / "s", Silent())
    assert {str(r.outcome.state) for r in read_records(tmp_path / "s")} == {"diverged"}


@settings(max_examples=5 * FACTOR)
@example([State.DONE] * 9)
@given(st.lists(st.sampled_from([*State, State.DONE, State.DONE]), min_size=9, max_size=9))
def test_the_surrogate_is_fitted_to_finite_numbers_only(states):
    """Every number that reaches a Gaussian process is looked at, whatever became of the trials before."""
    from peftscout.strategies import autopeft_model

    fitted: list[np.ndarray] = []
    original = dict(autopeft_model.FITS)

    def watching(fit):
        def watched(inputs, targets, *args, **kwargs):
            fitted.extend([np.asarray(inputs), np.asarray(targets)])
            return fit(inputs, targets, *args, **kwargs)

        return watched

    def answer(p, request: Evaluate) -> Outcome:
        state = states[int(request.key, 16) % len(states)]
        if state is State.DONE:
            return done(p, request)
        return Outcome(state, request.plan.cost(p.sites), metrics={"loss": math.nan}, message="on purpose")

    try:
        for name, fit in original.items():
            autopeft_model.FITS[name] = watching(fit)
        quick = AutoPeftOptions(initial=4, random_starts=8, starts=2)
        drive(lambda q: autopeft(q, quick), problem(trials=8, space="autopeft"), answer)
    finally:
        autopeft_model.FITS.update(original)
    assert all(np.isfinite(numbers).all() for numbers in fitted)
    assert fitted or set(states) != {State.DONE}
