"""Settings of the small studies that tests of reliability share, and what they are when they have ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftscout.preparation import Prepared

TRAINING = {"threads": 1, "batch_size": 8, "precision": "fp32", "evaluations": 1, "shortcuts": False}
RANDOM = {
    "strategy": "random",
    "space": "lora",
    "trials": 2,
    "steps": 2,
    "final": {"seeds": 1, "lr_scales": [1.0]},
    "training": TRAINING,
}
SCOUT = {
    "strategy": "scout",
    "space": "lora",
    "trials": 2,
    "steps": 2,
    "final": {"seeds": 0},
    "training": TRAINING,
    "strategy_options": {"steps": 4, "keep_every": 2, "ranking_rows": 8},
}


@dataclass(frozen=True)
class Finished:
    """A study that ended, and what it was made of."""

    folder: Path
    prepared: Prepared
    summary: dict[str, Any]
