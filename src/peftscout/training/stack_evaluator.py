"""Evaluate several plans at once: K requests in a stack on one backbone, with the outcomes of K single evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from peftscout import disk, tuner
from peftscout.outcome import Evaluate, Outcome
from peftscout.plan import union
from peftscout.stacked import Stack, stacked
from peftscout.training.evaluator import Evaluator, done, failed
from peftscout.training.frozen_prefix import bare
from peftscout.training.loop import Progress
from peftscout.training.memory import PeakMemory
from peftscout.training.one_row import one_row
from peftscout.training.schedule import parameter_groups, rate_factors
from peftscout.training.together import StackForward, train_together
from peftscout.training.trial import Trial

After = Callable[[int, Any], None]
"""Gets the index of a request and its adapted model in its best state."""

SWEET_SPOT = {"cpu": 2048, "cuda": 8192}
"""Most tokens in a training step up to which more plans are stacked; see docs/performance.md for the measurements."""

MOST = 16
"""Most plans in a stack."""


def capacity(evaluator: Evaluator) -> int:
    """Return how many plans are worth stacking in this evaluator: 1 where stacking gains nothing or is not exact."""
    settings = evaluator.settings
    if not evaluator.stacks or not settings.shortcuts or settings.backbone_dropout != "off":
        return 1
    lengths = evaluator.data.train.lengths
    tokens = settings.batch_size * float(lengths.mean())
    return max(1, min(MOST, int(SWEET_SPOT.get(evaluator.device.torch_device.type, 0) / tokens)))


def evaluate_together(
    evaluator: Evaluator,
    requests: Sequence[Evaluate],
    *,
    after: After | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Return the outcomes of ``requests``, in order, as if they had been evaluated one by one.

    Those of equal fidelity that nothing is known of yet share a stack. What cannot be stacked, and what is left when a
    stack fails as a whole (out of memory, a model that mixes rows), is evaluated alone. Only Ctrl-C is raised.
    """

    def alone(n: int) -> Outcome:
        return evaluator(requests[n], after=None if after is None else lambda model: after(n, model), progress=progress)

    outcomes: dict[int, Outcome] = {}
    for group in _groups(evaluator, requests):
        if len(group) > 1 and evaluator.stacks:
            try:
                outcomes |= _stacked(evaluator, {n: requests[n] for n in group}, after, progress)
            except Exception as error:
                if disk.trouble(error) is not None:
                    raise
                evaluator.stacks = False
                evaluator.note(f"{len(group)} plans are evaluated one by one: {type(error).__name__}: {error}")
        outcomes |= {n: alone(n) for n in group if n not in outcomes}
    return [outcomes[n] for n in range(len(requests))]


def _groups(evaluator: Evaluator, requests: Sequence[Evaluate]) -> list[list[int]]:
    """Return the indices of requests that can share a stack: of equal fidelity, and none that goes on from a rung."""
    groups: dict[object, list[int]] = {}
    for n, request in enumerate(requests):
        alone = evaluator.paused.load(request) is not None
        groups.setdefault(n if alone else request.fidelity, []).append(n)
    return list(groups.values())


def _stacked(
    evaluator: Evaluator, requests: dict[int, Evaluate], after: After | None, progress: Progress | None
) -> dict[int, Outcome]:
    """Return the outcome of each request, by its number."""
    sites = evaluator.backbone.model_map.sites
    costs = {n: request.plan.cost(sites) for n, request in requests.items()}
    started = time.perf_counter()
    with PeakMemory(evaluator.device.torch_device) as memory, _built(evaluator, list(requests.values())) as stack:
        trials = {slot: _trial(evaluator, stack, slot, request) for slot, request in enumerate(requests.values())}
        with _forward(evaluator, stack, trials) as forward:
            lost = train_together(trials, forward, evaluator.data.search, evaluator.objective, progress)
        for slot, request in enumerate(requests.values()):
            if slot not in lost:
                evaluator.keep(trials[slot], request)
    seconds = (time.perf_counter() - started) / len(requests)
    outcomes: dict[int, Outcome] = {}
    for slot, (n, request) in enumerate(requests.items()):
        finishing = time.perf_counter()
        error: Exception | None = lost.get(slot)
        if error is None and after is not None:
            error = _finish(evaluator, request, trials[slot], lambda model, n=n: after(n, model))  # type: ignore[misc]
        own = seconds + time.perf_counter() - finishing
        outcomes[n] = (
            done(trials[slot].run, costs[n], own, memory.peak) if error is None else failed(error, costs[n], own)
        )
    return outcomes


@contextmanager
def _built(evaluator: Evaluator, requests: Sequence[Evaluate]) -> Iterator[Stack]:
    backbone, device = evaluator.backbone, evaluator.device
    plans, seeds = [request.plan for request in requests], [request.seed for request in requests]
    with device.attention_of(backbone.model):
        try:
            with stacked(
                backbone.model, plans, backbone.model_map, seeds=seeds, settings=evaluator.op_settings
            ) as stack:
                stack.check(evaluator.check_batch())
                with device.exact_heads(stack.model):
                    yield stack
        finally:
            evaluator.free_memory()
            evaluator.check_backbone()


def _trial(evaluator: Evaluator, stack: Stack, slot: int, request: Evaluate) -> Trial:
    if request.initial:
        stack.load_trainable_state(slot, evaluator.initial.load(request.initial))
    return Trial(
        parameter_groups(
            stack.parameters_by_op(slot), evaluator.settings, rate_factors(request, evaluator.backbone.model_map.sites)
        ),
        request.fidelity,
        request.seed,
        evaluator.rows(request.fidelity.data_fraction),
        evaluator.settings,
        snapshot=lambda: stack.trainable_state(slot),
    )


@contextmanager
def _forward(evaluator: Evaluator, stack: Stack, trials: dict[int, Trial]) -> Iterator[StackForward]:
    """Give what passes rows through the stack, with the shortcuts that all of its plans allow."""
    shortcuts, batch = evaluator.shortcuts, evaluator.check_batch()
    if not evaluator.shortcuts_allowed:
        yield StackForward(stack, evaluator.make_batch, evaluator.device)
        return
    positions, packs = set(), evaluator.packing_allowed
    for slot, plan in enumerate(stack.plans):
        with stack.alone(slot) as model:
            positions.add(shortcuts.position(model, plan, batch))
            packs = packs and shortcuts.packs(model, plan, evaluator.data.train)
    with stack.alone(0) as model:
        entrance = shortcuts.entrance(model, union(stack.plans), batch) if evaluator.still else None
    visited = {trial: evaluator.visited(trial) for trial in trials.values()}
    same_rows = len({tuple(indices.tobytes() for indices in sets.values()) for sets in visited.values()}) == 1
    activations = None
    if same_rows:
        activations = shortcuts.activations(bare(stack.model), entrance, next(iter(visited.values())))
    position = positions.pop() if len(positions) == 1 else None
    with nullcontext() if position is None else one_row(stack.model, evaluator.backbone.model_map, position):
        yield StackForward(stack, evaluator.make_batch, evaluator.device, entrance, activations, packs)


def _finish(evaluator: Evaluator, request: Evaluate, trial: Trial, after: Callable[[Any], None]) -> Exception | None:
    """Build the model of one slot for itself, in its best state, and hand it on; return what went wrong."""
    try:
        with evaluator.adapted(request.plan, request.seed) as model:
            tuner.load_trainable_state(model, trial.best_state)
            after(model)
    except Exception as error:
        return error
    return None
