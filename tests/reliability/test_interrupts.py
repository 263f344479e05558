"""R21: Ctrl-C in a terminal, once and twice. See `interrupting.py`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from figures import record

DRIVER = Path(__file__).with_name("interrupting.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_ctrl_c_ends_a_search_at_once_with_a_word_and_nothing_is_lost(model, data, tmp_path):
    command = [sys.executable, str(DRIVER), str(model), str(data), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    endings = json.loads(done.stdout.splitlines()[-1])
    assert len(endings) == 4
    for case, ending in endings.items():
        assert ending["code"] in ((130,) if case.startswith("once") else (130, -signal.SIGINT)), (case, ending)
        assert ending["told"] or case.startswith("twice"), (case, ending)
        assert not ending["traceback"], (case, ending)
        assert ending["seconds"] < 20, (case, ending)
        assert not ending["left"], case
        assert ending["finished"] >= 1, case
        assert ending["same"], case
    record("interrupts by Ctrl-C", sum(2 if case.startswith("twice") else 1 for case in endings))
