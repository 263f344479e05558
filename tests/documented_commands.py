"""Whether a command that we print or document is one that the command line would take, without running it."""

from __future__ import annotations

from typing import Any

import typer


class WrongCommandError(AssertionError):
    """A documented command that the command line would refuse."""


def parse_command(words: list[str]) -> dict[str, Any]:
    """Parse ``["peftscout", "search", ...]`` as the command line does and return the values of its parameters.

    Raises:
        WrongCommandError: with the command line's own message, or when a strategy, space or setting does not exist.
    """
    from peftscout.cli import app

    program, *arguments = words
    assert program == "peftscout", words
    group: Any = typer.main.get_command(app)
    try:
        context = group.make_context(program, list(arguments))
        remaining = [*context._protected_args, *context.args]
        if not remaining:
            return dict(context.params)
        name, command, rest = group.resolve_command(context, remaining)
        values = dict(command.make_context(name, rest, parent=context).params)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise WrongCommandError(f"{' '.join(words)}: {error.format_message()}") from None
    _check_names(values)
    return values


def _check_names(values: dict[str, Any]) -> None:
    """Names that the parser takes as plain text: strategies, presets of spaces, and keys of ``--set``."""
    from peftscout.config import StudyConfig, override
    from peftscout.errors import PeftscoutError
    from peftscout.space import presets
    from peftscout.strategies import STRATEGIES

    if (strategy := values.get("strategy")) is not None and strategy not in STRATEGIES:
        raise WrongCommandError(f"--strategy {strategy}: there are {', '.join(STRATEGIES)}")
    space = values.get("space")
    if space is not None and not space.endswith((".yaml", ".yml")) and space not in presets():
        raise WrongCommandError(f"--space {space}: there are {', '.join(presets())}")
    try:
        base = {"model": "a model", "budget": "1%", "data": {"source": "data"}}
        StudyConfig.from_mapping(override(base, values.get("set_") or []))
    except PeftscoutError as error:
        raise WrongCommandError(f"--set: {error}") from None
