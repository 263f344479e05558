"""Search strategies: each turns a space and a budget into plans worth having."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from peftscout.errors import ConfigError, nearest
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.bipeft import bipeft
from peftscout.strategies.bipeft_options import BipeftOptions
from peftscout.strategies.design_spaces import DesignSpacesOptions, design_spaces
from peftscout.strategies.random import random_search
from peftscout.strategies.s3delta import S3DeltaOptions, s3delta
from peftscout.strategies.uniform import uniform

__all__ = ["STRATEGIES", "Problem", "Strategy", "check_strategy", "make_strategy"]

STRATEGIES: Mapping[str, tuple[Callable[..., Strategy], type | None]] = {
    "autopeft": (autopeft, AutoPeftOptions),
    "design-spaces": (design_spaces, DesignSpacesOptions),
    "bipeft": (bipeft, BipeftOptions),
    "s3delta": (s3delta, S3DeltaOptions),
    "random": (random_search, None),
    "uniform": (uniform, None),
}
"""Name -> (factory, its options dataclass or ``None``). A factory takes the problem and, where it has some, options."""


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
    known = [] if kind is None else [f.name for f in fields(kind)]
    for option in options:
        if option not in known:
            there = f"its options are {', '.join(known)}" if known else "it has no options"
            raise ConfigError(
                f"strategy_options.{option}: strategy {name!r} does not know it{nearest(option, known)}; {there}"
            )
    if kind is None:
        return None
    try:
        return kind(**options)
    except (TypeError, ValueError, ConfigError) as error:
        raise ConfigError(f"strategy_options: {error}") from None


def make_strategy(name: str, problem: Problem, options: Mapping[str, Any]) -> Strategy:
    """Return the strategy ``name`` for ``problem``; raises as `check_strategy` does."""
    checked = check_strategy(name, options)
    factory, _ = STRATEGIES[name]
    return factory(problem) if checked is None else factory(problem, checked)
