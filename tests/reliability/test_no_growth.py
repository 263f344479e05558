"""R7: thirty trials in one process leave nothing behind: no memory, no attribute, no bit of the backbone changed."""

from __future__ import annotations

import gc
import random

import numpy as np
import psutil
import torch
from small_studies import TRAINING

from figures import record
from peftscout import tuner
from peftscout.outcome import Evaluate, Fidelity
from peftscout.preparation import make_evaluator

TRIALS = 30


def bytes_of_tensors() -> int:
    gc.collect()
    return sum(found.nbytes for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter))


def attributes(model: torch.nn.Module) -> set[tuple[str, str]]:
    return {(path, name) for path, module in model.named_modules() for name in vars(module)}


def test_thirty_trials_leave_nothing_behind(prepared, tmp_path):
    """Of every op, some of them ending in an error, in divergence, or in the middle."""
    settings = prepared(space="all", training=TRAINING | {"shortcuts": True})
    evaluator, rng, draw = make_evaluator(settings, tmp_path), np.random.default_rng(0), random.Random(0)
    model = settings.backbone.model

    def run(n: int) -> None:
        plan = settings.space.repair(settings.space.sample(rng), settings.budget, rng)
        request = Evaluate(plan, Fidelity(2), n, 1e30 if n % 7 == 3 else 1.0)

        def after(adapted):
            if draw.random() < 0.2:
                raise RuntimeError("on purpose")

        outcome = evaluator(request, after=after)
        states.add(str(outcome.state))

    states: set[str] = set()
    untouched = attributes(model), tuner.fingerprint(model)
    for n in range(5):
        run(n)
    before = bytes_of_tensors(), psutil.Process().memory_info().rss
    for n in range(TRIALS):
        run(n)
    assert {"done", "diverged", "failed"} <= states
    assert (attributes(model), tuner.fingerprint(model)) == untouched
    assert bytes_of_tensors() == before[0]
    assert psutil.Process().memory_info().rss <= 1.02 * before[1]
    record("trials in one process", TRIALS)
    record("bytes of tensors left after them", bytes_of_tensors() - before[0])
