"""Search strategies: each turns a space and a budget into plans worth having."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from peftscout.errors import ConfigError, nearest
from peftscout.strategies.auto import AutoOptions, auto
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.bipeft import bipeft
from peftscout.strategies.bipeft_options import BipeftOptions
from peftscout.strategies.design_spaces import DesignSpacesOptions, design_spaces
from peftscout.strategies.early_stop import EarlyStop
from peftscout.strategies.halving import SuccessiveHalving
from peftscout.strategies.multi_fidelity_options import (
    EarlyStopOptions,
    FidelityOptions,
    HalvingOptions,
    OneEpochOptions,
)
from peftscout.strategies.one_epoch import OneEpoch
from peftscout.strategies.random import random_search
from peftscout.strategies.s3delta import S3DeltaOptions, s3delta
from peftscout.strategies.scout import scout
from peftscout.strategies.scout_options import ScoutOptions
from peftscout.strategies.uniform import uniform

__all__ = [
    "FIDELITIES",
    "STRATEGIES",
    "EarlyStopOptions",
    "FidelityOptions",
    "HalvingOptions",
    "OneEpochOptions",
    "Problem",
    "Strategy",
    "check_fidelity",
    "check_learns_from_others",
    "check_strategy",
    "make_strategy",
    "with_fidelity",
]

STRATEGIES: Mapping[str, tuple[Callable[..., Strategy], type | None]] = {
    "auto": (auto, AutoOptions),
    "scout": (scout, ScoutOptions),
    "autopeft": (autopeft, AutoPeftOptions),
    "design-spaces": (design_spaces, DesignSpacesOptions),
    "bipeft": (bipeft, BipeftOptions),
    "s3delta": (s3delta, S3DeltaOptions),
    "random": (random_search, None),
    "uniform": (uniform, None),
}
"""Name -> (factory, its options dataclass or ``None``). A factory takes the problem and, where it has some, options."""

FIDELITIES: Mapping[str, type[FidelityOptions] | None] = {
    "full": None,
    "halving": HalvingOptions,
    "early-stop": EarlyStopOptions,
    "one-epoch": OneEpochOptions,
}
"""Name -> options dataclass of how much training plans get; ``full``: all of them the full training."""

_OWN_FIDELITIES = {
    "scout": "searches on one supernet and has only the plans that it ranks first trained",
    "bipeft": "searches on one supernet and has only its results trained",
    "s3delta": "searches on one supernet and has only its results trained",
    "design-spaces": "halves groups of plans by itself (strategy_options.rungs)",
}
"""Strategies that do not go with rungs, and why."""

_LEARN_FROM_OTHERS = ("autopeft", "auto")
"""Strategies that make use of `Problem.observed` and `Problem.related`."""

_SEVERAL_TASKS = ("design-spaces",)
"""Strategies that make use of `Problem.tasks`."""


def check_strategy(name: str, options: Mapping[str, Any]) -> Any:
    """Return the options object for strategy ``name`` (``None`` where it has no options).

    Raises:
        ConfigError: on an unknown strategy or option, naming the nearest, or on an impossible value.
    """
    if name not in STRATEGIES:
        raise ConfigError(
            f"strategy {name!r}: not known{nearest(name, STRATEGIES)}; there are {', '.join(sorted(STRATEGIES))}"
        )
    _, kind = STRATEGIES[name]
    return _checked("strategy_options", f"strategy {name!r}", kind, options)


def check_learns_from_others(name: str) -> None:
    """Raise a ConfigError unless strategy ``name`` can begin with what another study found."""
    if name not in _LEARN_FROM_OTHERS:
        raise ConfigError(
            f"from_study: strategy {name!r} learns nothing from another study; use {', '.join(_LEARN_FROM_OTHERS)}"
        )


def check_judges_by_several(name: str) -> None:
    """Raise a ConfigError unless strategy ``name`` can judge plans by several tasks."""
    if name not in _SEVERAL_TASKS:
        raise ConfigError(f"also: strategy {name!r} judges by one task; use {', '.join(_SEVERAL_TASKS)}")


def make_strategy(name: str, problem: Problem, options: Mapping[str, Any]) -> Strategy:
    """Return the strategy ``name`` for ``problem``; raises as `check_strategy` does."""
    checked = check_strategy(name, options)
    factory, _ = STRATEGIES[name]
    return factory(problem) if checked is None else factory(problem, checked)


def check_fidelity(name: str, strategy: str, options: Mapping[str, Any]) -> FidelityOptions | None:
    """Return the options object for fidelity ``name`` under ``strategy``; ``None`` for the full training of every plan.

    Raises:
        ConfigError: on an unknown fidelity or option, naming the nearest, on an impossible value, or when the strategy
            cannot have it.
    """
    if name not in FIDELITIES:
        raise ConfigError(f"fidelity {name!r}: not known{nearest(name, FIDELITIES)}; there are {', '.join(FIDELITIES)}")
    kind = FIDELITIES[name]
    if kind is not None and strategy in _OWN_FIDELITIES:
        raise ConfigError(f"fidelity {name!r}: strategy {strategy!r} {_OWN_FIDELITIES[strategy]}; use fidelity: full")
    checked: FidelityOptions | None = _checked("fidelity_options", f"fidelity {name!r}", kind, options)
    return checked


def with_fidelity(
    options: FidelityOptions | None, factory: Callable[[Problem], Strategy], problem: Problem
) -> Strategy:
    """Return the strategy of ``factory`` for ``problem``, under the fidelity that ``options`` stand for.

    Args:
        options: as `check_fidelity` returns them.
        factory: makes a trial-based strategy; called more than once when halving has to begin again.
        problem: its fidelity is the full one on the ladder of these options: ``options.ladder(fidelity, epoch_steps)``.
            The baseline, which the engine evaluates at that fidelity, is then trained as the others are.
    """
    if options is None:
        return factory(problem)
    if not (problem.fidelity.rungs and problem.fidelity.full):
        raise ValueError(f"{problem.fidelity}: must be the full fidelity on a ladder, see options.ladder")
    if isinstance(options, HalvingOptions):
        return SuccessiveHalving(factory, problem, options)
    if isinstance(options, EarlyStopOptions):
        return EarlyStop(factory, problem, options)
    return OneEpoch(factory, problem, options)


def _checked(place: str, what: str, kind: type | None, options: Mapping[str, Any]) -> Any:
    known = [] if kind is None else [f.name for f in fields(kind)]
    for option in options:
        if option not in known:
            there = f"its options are {', '.join(known)}" if known else "it has no options"
            raise ConfigError(f"{place}.{option}: {what} does not know it{nearest(option, known)}; {there}")
    if kind is None:
        return None
    try:
        return kind(**options)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"{place}: {error}") from None
