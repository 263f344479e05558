"""What decided a study and what it took, in words: for its report and for the model card of its export."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from peftscout.header import Change, Header
from peftscout.report.view import View


def facts(view: View, header: Header) -> list[tuple[str, str]]:
    """Return what decided the study, for people."""
    s, spent = view.summary, view.summary["spent"]
    budget, total = s["budget"], s.get("parameters") or header.model.get("parameters")
    share = f", {100 * view.budget / total:.2g} % of {total:,}" if total else ""
    found = [
        ("model", str(s["model"])),
        ("task", f"{s['task']}, {s['metric']}"),
        ("budget", f"{budget['text']} = {view.budget:,} trainable parameters{share}; the task head is not counted"),
        ("search", f"{s['strategy']} over the space {s['space']}, {len(view.trials)} evaluations in all"),
        ("search cost", _cost(spent)),
        ("seeds", f"search {header.config.get('seed', 0)}; final {_seeds(view)}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in header.versions.items())),
        ("arithmetic", ", ".join(f"{key} {value}" for key, value in header.arithmetic.items() if value)),
    ]
    found += [("changed", str(Change.from_json(change))) for change in s.get("changes", ())]
    if rows := _rows(header.data):
        found.insert(2, ("rows", rows))
    return found


def _cost(spent: Mapping[str, Any]) -> str:
    passes = f"{spent['forward_backward_passes']:,.0f} forward-backward passes"
    text = f"{timedelta(seconds=round(spent['seconds']))} h, {passes}"
    if supernet := spent.get("supernet"):
        own = timedelta(seconds=round(supernet["seconds"]))
        text += f", of them the supernet's {own} h and {supernet['passes']:,.0f} passes"
    return text


def _seeds(view: View) -> str:
    return ", ".join(str(seed) for seed in sorted({t.seed for t in view.trials if t.stage == "final"})) or "none"


def _rows(manifest: Mapping[str, Any]) -> str:
    """Rows and fingerprint of every split, as the manifest of the data has them."""
    splits = manifest.get("splits")
    if not isinstance(splits, Mapping):
        return ""
    return "; ".join(
        f"{name} {split.get('rows', '?')} rows, sha256 {str(split.get('sha256', '?'))[:12]}"
        for name, split in splits.items()
        if isinstance(split, Mapping)
    )
