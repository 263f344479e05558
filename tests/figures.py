"""The figures of docs/reliability.md: what tests counted in their own run, for whoever asks for it.

``benchmarks/reliability.py`` names a file in ``PEFTSCOUT_RELIABILITY``; without it nothing is written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

FILE = "PEFTSCOUT_RELIABILITY"


def record(what: str, count: int) -> None:
    """Add ``count`` to the figure ``what``."""
    if path := os.environ.get(FILE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"figure": what, "count": count}) + "\n")
