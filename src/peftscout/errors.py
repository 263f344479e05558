"""What the user can mend. Every message names the thing, its place and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PeftscoutError(Exception):
    """Base of every error that a user can mend. The command line prints its message and exits with 1."""


class PlanError(PeftscoutError):
    """A plan that cannot be: an unknown site or op, a size that does not fit."""


class BudgetError(PeftscoutError):
    """A budget that cannot be read, or that nothing fits into."""


class SpaceError(PeftscoutError):
    """A search space that is malformed or matches nothing in the model."""


class ArchitectureError(PeftscoutError):
    """A model whose structure cannot be mapped to sites."""


class ConfigError(PeftscoutError):
    """A study configuration with an unknown key or an impossible value."""


class DataError(PeftscoutError):
    """Data that cannot be trained on; names file, line and count."""


class TunerError(PeftscoutError):
    """A plan that was not realised in the model as written."""


class StudyError(PeftscoutError):
    """A study folder that cannot be opened, continued or read."""


class DiskError(StudyError):
    """A disk that is full, read-only or broken: what was running runs again when that is mended."""


class SupernetError(StudyError):
    """A supernet that cannot be trained to its end."""


class DivergedSupernetError(SupernetError):
    """A supernet whose loss is not finite any more."""


class SupernetMemoryError(SupernetError):
    """A supernet that does not fit into memory."""


class ExecutorError(PeftscoutError):
    """Workers that cannot be started, or cannot do the work of this study. What is finished stays finished."""


class NothingFeasibleError(StudyError):
    """A search that ended without a single trial that has a score. The command line exits with 2."""


class ExportError(PeftscoutError):
    """A result that cannot be written in the asked form."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the option closest to ``name``, or ``""`` if none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
