"""What a search would do and how long it would take, without doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from peftscout.config import StudyConfig
from peftscout.engine import evaluations_after_search
from peftscout.errors import StudyError
from peftscout.gates import Gates, Kept, Step, WeightTraining
from peftscout.outcome import Evaluate, Fidelity, Outcome
from peftscout.plan import Plan
from peftscout.preparation import Prepared, make_evaluator
from peftscout.strategies import make_strategy
from peftscout.strategies.one_shot import OneShot, Split
from peftscout.training.evaluator import Evaluator
from peftscout.training.one_shot import one_shot_factory

PROBE_STEPS = 4
"""Steps of the probe that the time estimate rests on."""


def dry_run(prepared: Prepared) -> dict[str, Any]:
    """Return what a search would do: sites, space, cheapest and dearest plan, evaluations, and the time from a probe.

    The probe trains the baseline for a few steps in a temporary folder, and so it does the supernet of a strategy that
    searches on one; nothing of it stays.

    Raises:
        StudyError: when the probe does not end with a score, or nothing can be taken from ``config.from_study``.
    """
    config, space, sites = prepared.config, prepared.space, prepared.backbone.model_map.sites
    with TemporaryDirectory() as cache:
        prepared = prepared.continuing(Path(cache))
        evaluator = make_evaluator(prepared, Path(cache))
        short, longer = (
            evaluator(Evaluate(prepared.baseline.plan, Fidelity(steps), config.seed)) for steps in (1, 1 + PROBE_STEPS)
        )
        for outcome in (short, longer):
            if not outcome.done:
                raise StudyError(f"the probe of {prepared.baseline.label} ended {outcome.state}: {outcome.message}")
        supernet = _probe_supernet(prepared, evaluator, Path(cache), longer)
    per_step = max(0.0, longer.seconds - short.seconds) / PROBE_STEPS
    of_supernet = supernet["seconds"] if supernet else 0.0
    of_evaluation = short.seconds * config.training.evaluations + per_step * prepared.fidelity.steps
    evaluations = config.trials + evaluations_after_search(config)

    def priced(plan: Plan) -> dict[str, Any]:
        return {"cost": plan.cost(sites), "plan": plan.to_json()}

    return {
        "model": config.model,
        "parameters": prepared.backbone.model_map.total,
        "task": prepared.task.name,
        "rows": {"train": len(prepared.task.train), "search": len(prepared.task.search)},
        "budget": {"parameters": prepared.budget.parameters, "text": prepared.budget.text},
        "sites": len(sites),
        "space": {"name": space.name, "choices": len(space.choices), "plans": space.cardinality()},
        "cheapest": priced(space.cheapest()),
        "dearest": priced(space.dearest()),
        "baseline": {"label": prepared.baseline.label, **priced(prepared.baseline.plan)},
        "strategy": config.strategy,
        "evaluations": evaluations,
        "steps": prepared.fidelity.steps,
        "seconds_per_step": per_step,
        "supernet": supernet,
        "from_study": None if prepared.earlier is None else prepared.earlier.note,
        "seconds": one_after_the_other(config) * of_evaluation + of_supernet,
    }


def one_after_the_other(config: StudyConfig) -> int:
    """Return how many evaluations follow each other, as far as workers are numbered: the others run beside them.

    The baseline is evaluated before all others.
    """
    workers = config.executor.workers or 1
    return 1 + math.ceil((config.trials - 1) / workers) + math.ceil(evaluations_after_search(config) / workers)


def _probe_supernet(prepared: Prepared, evaluator: Evaluator, folder: Path, baseline: Outcome) -> dict[str, Any] | None:
    """Return the steps of the supernet that the strategy begins with, and their time; ``None`` where there is none."""
    probes: list[SupernetProbe] = []
    factory = one_shot_factory(evaluator, prepared.space, folder / "supernet")

    @contextmanager
    def opened(training: WeightTraining) -> Iterator[SupernetProbe]:
        with factory(training) as one_shot:
            probes.append(SupernetProbe(one_shot, training.steps))
            yield probes[-1]

    config, problem = prepared.config, replace(prepared.problem, one_shot=opened)
    with suppress(ProbeEnded):
        strategy = make_strategy(config.strategy, problem, config.strategy_options)
        strategy.tell(Evaluate(problem.baseline, problem.fidelity, problem.seed), baseline)
        strategy.ask(1)
    return probes[0].found if probes else None


class ProbeEnded(Exception):  # noqa: N818 - it is no error
    """The supernet has taken the steps of the probe."""


class SupernetProbe:
    """A `OneShot` that ends the search after a few steps on the weights, and says how long all of them would take.

    Args:
        inner: a supernet.
        steps: on the weights that a whole search takes.
    """

    def __init__(self, inner: OneShot, steps: int) -> None:
        self.modules = inner.modules
        self._inner, self._steps = inner, steps
        self._ends: list[float] = []

    @property
    def found(self) -> dict[str, Any]:
        """Steps and seconds of a whole search. The first step is not counted: it sets things up."""
        spans = [after - before for before, after in pairwise(self._ends)]
        return {"steps": self._steps, "seconds": self._steps * (sum(spans) / len(spans) if spans else 0.0)}

    def step(self, gates: Gates, split: Split, *, gate_gradients: bool, update_weights: bool) -> Step:
        """As the supernet does; a step on the weights counts."""
        step = self._inner.step(gates, split, gate_gradients=gate_gradients, update_weights=update_weights)
        if update_weights:
            self._count()
        return step

    def split(self, train: Gates, validation: Gates) -> tuple[Step, Step]:
        """As the supernet does; it counts."""
        steps = self._inner.split(train, validation)
        self._count()
        return steps

    def held_out_loss(self, gates: Gates, rows: int) -> float:
        """As the supernet does."""
        return self._inner.held_out_loss(gates, rows)

    def unrolled(self, gates: Gates) -> Step:
        """As the supernet does."""
        return self._inner.unrolled(gates)

    def keep(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Keep nothing."""

    def resume(self) -> Kept | None:
        """Start afresh."""
        return None

    def keep_slice(self, plan: Plan) -> str:
        """As the supernet does; in a search that is shorter than the probe."""
        return self._inner.keep_slice(plan)

    def log(self, event: Mapping[str, Any]) -> None:
        """Log nothing."""

    def _count(self) -> None:
        self._ends.append(time.perf_counter())
        if len(self._ends) > PROBE_STEPS:
            raise ProbeEnded
