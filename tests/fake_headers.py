"""Headers of studies that were never run."""

from __future__ import annotations

import json

from peftscout.config import StudyConfig
from peftscout.header import Header


def header(changes: dict | None = None, **config) -> Header:
    """The header of a study; ``changes`` go into the manifest of its data."""
    mapping = StudyConfig.from_mapping({"model": "m", "budget": "5%", "data": {"source": "rte"}, **config}).deciding()
    data = {
        "task": "rte",
        "kind": "classification",
        "labels": ["no", "yes"],
        "metrics": ["accuracy"],
        "splits": {name: {"rows": 8, "sha256": name * 10} for name in ("train", "search", "report")},
    }
    model = {"fingerprint": "f", "parameters": 12_000, "reference": {"name_or_path": mapping["model"]}}
    return Header(json.loads(json.dumps(mapping)), {**data, **(changes or {})}, model, {})
