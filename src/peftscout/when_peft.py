"""Register our PEFT type as soon as peft is imported, without importing it (and torch with it) any earlier.

``import peftscout`` promises that composite adapters load; ``peftscout --help`` and the pure rooms promise not to wait
for torch. A one-shot import hook keeps both promises.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def register_when_peft_is_imported() -> None:
    """Register now when peft is there already, else right after its import."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


def _register() -> None:
    importlib.import_module("peftscout.tuner")


class _AfterPeft(MetaPathFinder):
    """Stays until peft is really imported: transformers and others look for its spec long before."""

    def __init__(self) -> None:
        self._looking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft" or self._looking:
            return None
        self._looking = True
        try:
            spec = find_spec("peft")
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module: ModuleType) -> None:
                sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
                execute(module)
                _register()

            spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec
