"""``summary.json`` of a study, and its verdict in words. The format is documented in ``docs/summary.md``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from peftscout.comparison import LEVEL, Comparison, Scores
from peftscout.config import StudyConfig
from peftscout.earlier import Earlier
from peftscout.header import SCHEMA, Change
from peftscout.ledger import Record
from peftscout.outcome import Outcome, State
from peftscout.report.plan_words import describe
from peftscout.strategies.base import Problem
from peftscout.strategies.multi_fidelity_options import EarlyStopOptions
from peftscout.strategies.stop_rule import StopRule
from peftscout.tasks import Task


@dataclass(frozen=True)
class SupernetSpent:
    """What a one-shot search took before there were plans to evaluate.

    Attributes:
        steps: optimiser steps of the supernet's weights.
        passes: forward-backward passes, held-out batches counted as a third of one.
        seconds: wall time.
    """

    steps: int = 0
    passes: float = 0.0
    seconds: float = 0.0


def summarise(
    config: StudyConfig,
    task: Task,
    problem: Problem,
    records: Sequence[Record],
    *,
    best: Record,
    baseline: Record,
    comparison: Comparison | None,
    total: int,
    supernet: SupernetSpent | None = None,
    earlier: Earlier | None = None,
    changes: Sequence[Change] = (),
) -> dict[str, Any]:
    """Return the summary of a finished study as plain data.

    Args:
        config: of the study.
        task: what was learnt.
        problem: as the strategy saw it.
        records: the whole ledger.
        best: record of the chosen plan with its best learning rate.
        baseline: likewise of uniform LoRA.
        comparison: on the report split, or ``None`` when there was none.
        total: parameters of the backbone.
        supernet: what the one-shot search took, where there was one.
        earlier: what was taken from another study, where there was one.
        changes: that were accepted while it ran.
    """
    return {
        "schema": SCHEMA,
        "model": config.model,
        "parameters": total,
        "task": task.name,
        "metric": task.metrics[0],
        "labels": list(task.labels),
        "budget": {"parameters": problem.budget.parameters, "text": problem.budget.text},
        "strategy": config.strategy,
        "space": problem.space.name,
        "sites": [asdict(site) for site in problem.sites.values()],
        "trials": [_trial(r) for r in records],
        "best": _contender(best),
        "baseline": _contender(baseline),
        "final": None if comparison is None else _final(comparison),
        "verdict": verdict(task, problem, best, baseline, comparison, total),
        "spent": _spent(records, supernet or SupernetSpent()),
        "rungs": _rungs(records, problem),
        "from_study": None if earlier is None else earlier.summary(),
        "changes": [change.to_json() for change in changes],
    }


def _rungs(records: Sequence[Record], problem: Problem) -> list[dict[str, Any]]:
    """Return, for each rung below the full training, how well its ranks agree with those at the end."""
    furthest: dict[str, Outcome] = {}
    for r in sorted((r for r in records if r.stage == "search" and r.outcome is not None), key=_steps):
        assert r.outcome is not None
        ended = r.outcome.done and r.request.fidelity == problem.fidelity
        furthest[r.request.course] = r.outcome if ended else replace(r.outcome, state=State.PRUNED, score=None)
    rule = StopRule(EarlyStopOptions(), problem.budget.parameters)
    for outcome in furthest.values():
        rule.learn(outcome)
    seen = [(rung, rule.agreement(rung)) for rung in problem.fidelity.rungs[:-1]]
    return [{"steps": rung, "rank_correlation": a.correlation, "plans": a.plans} for rung, a in seen]


def _steps(record: Record) -> int:
    return record.request.fidelity.steps


def _spent(records: Sequence[Record], supernet: SupernetSpent) -> dict[str, Any]:
    """Sum up what was computed, by a supernet too; a run that went on from a lower rung counts once, with its end."""
    outcomes = [(r.request.course, r.outcome) for r in records if r.outcome is not None]
    furthest = dict(sorted(outcomes, key=lambda entry: entry[1].steps))
    computed, real = (sum(getattr(o, name) for o in furthest.values()) for name in ("tokens", "real_tokens"))
    return {
        "seconds": sum(outcome.seconds for _, outcome in outcomes) + supernet.seconds,
        "forward_backward_passes": sum(o.passes for o in furthest.values()) + supernet.passes,
        "supernet": asdict(supernet) if supernet.passes else None,
        "tokens": computed,
        "tokens_per_real_token": computed / real if real else None,
    }


def _trial(record: Record) -> dict[str, Any]:
    r, o = record.request, record.outcome
    return {
        "number": record.number,
        "stage": record.stage,
        "label": r.label,
        "task": r.task,
        "state": "running" if o is None else str(o.state),
        "cost": None if o is None else o.cost,
        "score": None if o is None else o.score,
        "seconds": None if o is None else o.seconds,
        "steps": None if o is None else o.steps,
        "passes": None if o is None else o.passes,
        "full": r.fidelity.full,
        "peak_memory": None if o is None else o.peak_memory,
        "seed": r.seed,
        "lr_scale": r.lr_scale,
        "message": "" if o is None else o.message,
        "plan": r.plan.to_json(),
    }


def _contender(record: Record) -> dict[str, Any]:
    assert record.outcome is not None
    return {
        "plan": record.request.plan.to_json(),
        "cost": record.outcome.cost,
        "score": record.outcome.score,
        "lr_scale": record.request.lr_scale,
        "label": record.request.label,
        "trial": record.number,
    }


def _final(c: Comparison) -> dict[str, Any]:
    def scores(s: Scores) -> dict[str, Any]:
        return {"scores": list(s.values), "mean": s.mean, "std": s.std}

    return {
        "best": scores(c.best),
        "baseline": scores(c.baseline),
        "difference": c.difference,
        "interval": None if c.interval is None else list(c.interval),
    }


def verdict(
    task: Task, problem: Problem, best: Record, baseline: Record, comparison: Comparison | None, total: int
) -> str:
    """Return the result of a study in one or two sentences with numbers, or the honest null."""
    assert best.outcome is not None
    plan = best.request.plan
    cost = best.outcome.cost
    what = f"{describe(plan, problem.sites)}, {cost:,} trainable parameters ({share(cost, total)})"
    metric = task.metrics[0]
    if comparison is None:
        why = (
            "" if baseline.outcome is not None and baseline.outcome.done else " Uniform LoRA did not train to a score."
        )
        return f"{what}: {metric} {best.outcome.score:.4f} on the search split; not compared on the report split.{why}"
    c = comparison
    ours, theirs = _mean_and_spread(c.best), _mean_and_spread(c.baseline)
    if plan == baseline.request.plan:
        return f"No plan was better than uniform LoRA in this search. {what}: {metric} {ours} on the report split."
    in_words, in_short = (_plain, _plain) if metric.startswith(_WITHOUT_BOUNDS) else (_points, _percent)
    points = f"{in_words(abs(c.difference))} {'above' if c.difference >= 0 else 'below'}"
    if c.interval is None:
        return (
            f"{what}: {metric} {ours}, {points} uniform LoRA at the same budget ({theirs}); "
            "with a single seed nobody knows the spread, so nothing is proven."
        )
    low, high = map(in_short, c.interval)
    between = f"{LEVEL:.0%} interval {low} to {high}"
    numbers = f"{metric} {ours}, {points} uniform LoRA at the same budget ({theirs}; {between})"
    if c.gain:
        return f"{what}: {numbers}."
    if c.loss:
        return f"Uniform LoRA is better: {what} reached {numbers}. Use uniform LoRA."
    return f"No significant gain over uniform LoRA at the same budget. {what}: {numbers}."


_WITHOUT_BOUNDS = "neg_"
"""How the metrics begin that are no shares of anything, so that a hundredth of one is no point."""


def _points(difference: float) -> str:
    return f"{difference * 100:.1f} points"


def _percent(difference: float) -> str:
    return f"{difference * 100:.1f}"


def _plain(difference: float) -> str:
    return f"{difference:.4f}"


def share(cost: int, total: int) -> str:
    """Return cost as a percentage of ``total`` with two significant digits: ``0.35 %``."""
    percent = 100 * cost / total
    digits = 2 if percent >= 0.1 else 4
    return f"{percent:.{digits}f} %"


def _mean_and_spread(scores: Scores) -> str:
    return f"{scores.mean:.4f}" if scores.std is None else f"{scores.mean:.4f} +- {scores.std:.4f}"
