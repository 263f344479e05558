"""What a search would do and how long it would take, without doing it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peftscout.engine import evaluations_after_search
from peftscout.errors import StudyError
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.preparation import Prepared, make_evaluator

PROBE_STEPS = 4
"""Steps of the probe that the time estimate rests on."""


def dry_run(prepared: Prepared) -> dict[str, Any]:
    """Return what a search would do: sites, space, cheapest and dearest plan, evaluations, and the time from a probe.

    The probe trains the baseline for a few steps in a temporary folder; nothing of it stays.

    Raises:
        StudyError: when the probe does not end with a score.
    """
    config, space, sites = prepared.config, prepared.space, prepared.backbone.model_map.sites
    with TemporaryDirectory() as cache:
        evaluator = make_evaluator(prepared, Path(cache))
        short, longer = (
            evaluator(Evaluate(prepared.baseline.plan, Fidelity(steps), config.seed)) for steps in (1, 1 + PROBE_STEPS)
        )
    for outcome in (short, longer):
        if not outcome.done:
            raise StudyError(f"the probe of {prepared.baseline.label} ended {outcome.state}: {outcome.message}")
    per_step = max(0.0, longer.seconds - short.seconds) / PROBE_STEPS
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
        "seconds": evaluations * (short.seconds * config.training.evaluations + per_step * prepared.fidelity.steps),
    }
