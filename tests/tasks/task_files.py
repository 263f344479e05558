"""Small data files for the tests of tasks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from peftscout.tasks import Split


def jsonl(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write rows, or ready lines, as JSON Lines."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def reviews(count: int, labels: tuple[Any, ...] = (0, 1)) -> list[dict[str, Any]]:
    """Rows with distinct texts and labels in turn."""
    return [{"text": f"review number {i}", "label": labels[i % len(labels)]} for i in range(count)]


def folder_of(path: Path, **splits: Iterable[Mapping[str, Any] | str]) -> Path:
    """Write one JSONL file a split and return the folder."""
    for name, rows in splits.items():
        jsonl(path / f"{name}.jsonl", rows)
    return path


def split_of(texts: Iterable[str | tuple[str, ...]], references: Iterable[int], kind: Any = "classification") -> Split:
    """Build a split in memory."""
    rows = tuple((text,) if isinstance(text, str) else text for text in texts)
    return Split("train", rows, np.array(list(references), dtype=np.int64), kind)
