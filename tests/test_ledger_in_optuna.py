"""The ledger as other tools see it: Optuna alone, in a process that knows nothing of peftscout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peftscout.ledger import Ledger
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan

LOOK = """
import json, sys
import optuna
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

place = sys.argv[1]
storage = RDBStorage(place) if "://" in place else JournalStorage(JournalFileBackend(place))
study = optuna.load_study(storage=storage, study_name="peftscout")
assert not [name for name in sys.modules if name.startswith(("peftscout", "torch"))]
words = ("plan", "label", "stage", "cost")
trials = [
    {"state": t.state.name, "value": t.value, **{w: t.user_attrs.get(w) for w in words}} for t in study.trials
]
print(json.dumps({"trials": trials, "best": study.best_trial.number, "direction": study.direction.name}))
"""
"""What optuna-dashboard does to show a study."""


def seen_by_optuna(place: str, folder: Path) -> dict:
    """What a fresh process without peftscout on its path finds in the ledger."""
    command = [sys.executable, "-P", "-c", LOOK, place]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def request(site: str, rank: int, label: str) -> Evaluate:
    return Evaluate(Plan.of({(site, "lora"): rank, (site, "bias"): 1}), Fidelity(10), seed=0, label=label)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["journal", "database"])
def test_optuna_alone_opens_a_ledger_and_shows_plans_scores_and_what_is_still_running(kind, tmp_path):
    place = tmp_path / "ledger.journal" if kind == "journal" else f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger.at(place)
    first = ledger.start(request("layers.0.attention.q", 8, "uniform LoRA 8 on q"), "search")
    ledger.finish(first, Outcome(State.DONE, 512, 0.75))
    second = ledger.start(request("layers.1.ffn.up", 2, "random"), "search")
    ledger.finish(second, Outcome(State.FAILED, 128, message="on purpose"))
    ledger.start(request("layers.1.ffn.up", 4, "scout"), "final")

    found = seen_by_optuna(str(place), tmp_path)
    assert found["direction"] == "MAXIMIZE"
    assert found["best"] == first
    assert found["trials"] == [
        {
            "state": "COMPLETE",
            "value": 0.75,
            "plan": "layers.0.attention.q: lora 8; layers.0.attention.q: bias",
            "label": "uniform LoRA 8 on q",
            "stage": "search",
            "cost": 512,
        },
        {
            "state": "FAIL",
            "value": None,
            "plan": "layers.1.ffn.up: lora 2; layers.1.ffn.up: bias",
            "label": "random",
            "stage": "search",
            "cost": 128,
        },
        {
            "state": "RUNNING",
            "value": None,
            "plan": "layers.1.ffn.up: lora 4; layers.1.ffn.up: bias",
            "label": "scout",
            "stage": "final",
            "cost": None,
        },
    ]
