"""One comparison of options: guarded successive halving over models and steps, then the decision on the last rung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from statistics import mean

import numpy as np

from peftscout.strategies.design_spaces import statistics as st
from peftscout.strategies.design_spaces.bench import Bench, Procedure
from peftscout.strategies.design_spaces.decision import Comparison, compare, decide, let_go
from peftscout.strategies.design_spaces.options import DesignSpacesOptions
from peftscout.strategies.design_spaces.populations import Population
from peftscout.strategies.design_spaces.stages import Row, Rung, StageReport, Verdict, complete, empty_row, rows_of
from peftscout.strategies.design_spaces.statistics import Array

_FAILED = "more than half of its models ended without a score"

_LEAST_COMPARED = 2
"""Base models without which nothing can be said about a spread."""


def race(
    bench: Bench,
    name: str,
    axis: str,
    population: Population,
    rungs: Sequence[float],
    options: DesignSpacesOptions,
    stream: Sequence[int],
) -> Procedure[StageReport]:
    """Compare the options of ``population``: at each rung some are let go, on the last one it is decided.

    Args:
        bench: has the models trained.
        name: of the stage.
        axis: whose options they are.
        population: the same base models under every option.
        rungs: shares of the full number of steps, ascending, the last one 1.
        options: thresholds.
        stream: seed of the bootstrap and of the permutation test.
    """
    report = yield from _race(bench, name, axis, population, rungs, options, stream)
    costs = {label: mean(c.compiled.cost for c in models) for label, models in population.models.items()}
    return replace(report, rows=tuple(replace(row, cost=costs[row.option]) for row in report.rows))


def _race(
    bench: Bench,
    name: str,
    axis: str,
    population: Population,
    rungs: Sequence[float],
    options: DesignSpacesOptions,
    stream: Sequence[int],
) -> Procedure[StageReport]:
    going, gone, reports = list(population.options), list[Row](), list[Rung]()
    available = len(population.models[going[0]])
    for share, count in schedule(available, rungs, options):
        raw = yield from bench.measure(
            [population.models[option][:count] for option in going],
            share,
            [f"{name} {axis}: {option}" for option in going],
        )
        whole, models = complete(raw)
        failed = {option: raw[n] for n, option in enumerate(going) if n not in whole}
        gone += [empty_row(option, "failed", _FAILED, scores.mean(axis=1)) for option, scores in failed.items()]
        table, left = raw[whole][:, models], [going[n] for n in whole]
        if len(left) < 2 or len(models) < _LEAST_COMPARED:
            reports.append(Rung(bench.steps(share), count, tuple(going), tuple(failed)))
            return _without_comparison(name, axis, left or going, len(models), gone, reports)
        comparison = _compare(table, options, [*stream, 1, len(reports)])
        if share < 1:
            staying = let_go(comparison, options.keep_share)
            dropped = [option for n, option in enumerate(left) if n not in staying]
            gone += [
                _dropped_row(left.index(option), table, left, comparison, bench.steps(share)) for option in dropped
            ]
            reports.append(Rung(bench.steps(share), count, tuple(going), (*failed, *dropped)))
            going = [option for option in left if option not in dropped]
        else:
            reports.append(Rung(bench.steps(share), count, tuple(going), tuple(failed)))
            return _decided(name, axis, left, table, comparison, options, gone, reports, stream)
    raise AssertionError("the last rung is full training")


def schedule(models: int, rungs: Sequence[float], options: DesignSpacesOptions) -> list[tuple[float, int]]:
    """Return the (share of the steps, base models) of each rung: ``models`` on the last one, fewer on each one before.

    A rung that would have as many models as the last one saves nothing and is left out.
    """
    last = len(rungs) - 1
    counts = [max(options.least_models, ceil(models * options.keep_share ** (last - r))) for r in range(last)]
    return [(share, n) for share, n in zip(rungs, counts, strict=False) if n < models] + [(rungs[last], models)]


def _compare(table: Array, options: DesignSpacesOptions, stream: Sequence[int]) -> Comparison:
    return compare(st.standardise(table), options.alpha, options.resamples, np.random.default_rng(stream))


def _decided(
    name: str,
    axis: str,
    labels: Sequence[str],
    table: Array,
    comparison: Comparison,
    options: DesignSpacesOptions,
    gone: Sequence[Row],
    rungs: Sequence[Rung],
    stream: Sequence[int],
) -> StageReport:
    """Apply the decision rule to the scores ``[options, models, tasks]`` of the last rung."""
    decision = decide(comparison, options.delta, options.alpha)
    bootstrap = st.Resamples.draw(table.shape[1], options.resamples, np.random.default_rng([*stream, 0]))
    alpha = options.alpha / len(st.pairs_of(len(labels)))  # as Holm's correction starts
    detectable = st.detectable(comparison.models, comparison.spread, alpha=alpha)
    if decision.verdict == "decided":
        why = f"{labels[decision.kept[0]]}: {decision.why[decision.kept[0]]}"
    else:
        why = (
            f"{len(decision.kept)} of {len(labels)} options stay: {comparison.models} models show differences of "
            f"{detectable:.2f} SD four times out of five, delta is {options.delta:g} SD"
        )
    return StageReport(
        name=name,
        axis=axis,
        verdict=decision.verdict,
        kept=tuple(labels[i] for i in decision.kept),
        why=why,
        rows=(*rows_of(labels, table, comparison, decision, bootstrap), *gone),
        models=comparison.models,
        spread=comparison.spread,
        detectable=detectable,
        edf={label: st.edf(table[i].mean(axis=1)) for i, label in enumerate(labels)},
        rungs=tuple(rungs),
    )


def _without_comparison(
    name: str, axis: str, labels: Sequence[str], models: int, gone: Sequence[Row], rungs: Sequence[Rung]
) -> StageReport:
    """Say what follows when too little was left to compare."""
    if len(labels) == 1:
        verdict: Verdict = "fixed"
        why = f"{labels[0]}: the models of every other option failed"
    else:
        verdict, why = "undecided", f"{models} base models have a score under every option; nothing can be compared"
    failed = {row.option for row in gone}
    rows = [empty_row(label, "kept" if verdict == "fixed" else "open", why) for label in labels if label not in failed]
    return StageReport(name, axis, verdict, tuple(labels), why, (*rows, *gone), models, rungs=tuple(rungs))


def _dropped_row(position: int, table: Array, labels: Sequence[str], comparison: Comparison, steps: int) -> Row:
    leader = int(np.argmax(comparison.means))
    difference = comparison.means[leader] - comparison.means[position]
    why = f"let go at {steps} steps: worse than {labels[leader]} by {difference:.2f} SD"
    return empty_row(labels[position], "dropped", why, table[position].mean(axis=1))
