"""peftscout: finds which PEFT modules to put where, and how large, within a budget of trainable parameters.

With this package imported, ``PeftModel.from_pretrained`` loads composite adapters. Heavy parts are imported when they
are first used; ``peftscout.plan``, ``peftscout.space`` and the like stay free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from peftscout.when_peft import register_when_peft_is_imported

if TYPE_CHECKING:
    from peftscout.api import Result, apply, map_model, open_study, search
    from peftscout.architecture import ModelMap
    from peftscout.config import StudyConfig
    from peftscout.errors import PeftscoutError
    from peftscout.plan import Budget, Plan
    from peftscout.space import Space, load_space

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "ModelMap",
    "PeftscoutError",
    "Plan",
    "Result",
    "Space",
    "StudyConfig",
    "apply",
    "load_space",
    "map_model",
    "open_study",
    "search",
]

_HOME = {
    "Budget": "plan",
    "ModelMap": "architecture",
    "PeftscoutError": "errors",
    "Plan": "plan",
    "Result": "api",
    "Space": "space",
    "StudyConfig": "config",
    "apply": "api",
    "load_space": "space",
    "map_model": "api",
    "open_study": "api",
    "search": "api",
}


register_when_peft_is_imported()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'peftscout' has no attribute {name!r}")
    return getattr(importlib.import_module(f"peftscout.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
