"""What the model card of an export tells of its study: the verdict, what decided it, what it took, the comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftscout.header import Header
from peftscout.report.chart_data import comparison_table
from peftscout.report.facts import facts
from peftscout.report.rendering import environment, table_lines
from peftscout.report.view import View


def study_card(summary: Mapping[str, Any], header: Header) -> str:
    """Return that text as Markdown."""
    view = View(summary)
    known = [(name, _without_folders(name, text)) for name, text in facts(view, header)]
    return (
        environment()
        .get_template("study_card.md.j2")
        .render(
            verdict=summary["verdict"],
            facts=known,
            labels=summary.get("labels") or (),
            comparison=table_lines(comparison_table(view)),
        )
    )


def _without_folders(name: str, text: str) -> str:
    """Return the model's name without the folders of the machine that it lay on."""
    return text.rstrip("/").rpartition("/")[2] if name == "model" and text.startswith(("/", ".", "~")) else text
