"""One `import peftscout` is enough, whatever is imported before, after or between."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROBE = (
    "; import sys; from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known; "
    "print('PEFTSCOUT' in known, any(type(f).__name__ == '_AfterPeft' for f in sys.meta_path))"
)


def outcome(imports: str) -> list[str]:
    """Whether our type is known, and whether the import hook is still there, in a fresh process."""
    run = subprocess.run([sys.executable, "-c", imports + PROBE], capture_output=True, text=True, check=True)
    return run.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import peftscout, peft",
        "import peft, peftscout",
        "import peftscout; from importlib.util import find_spec; find_spec('peft'); find_spec('peft'); import peft",
    ],
    ids=["before", "after", "spec-looked-for-between"],
)
def test_our_type_is_known_once_both_are_imported_and_the_hook_is_gone(imports: str) -> None:
    assert outcome(imports) == ["True", "False"]


def test_importing_peftscout_alone_does_not_import_peft() -> None:
    code = "import sys, peftscout; print('peft' in sys.modules, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
