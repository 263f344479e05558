"""One part of a report: a title, sentences, pictures, and tables that say the same as the pictures."""

from __future__ import annotations

from dataclasses import dataclass

from peftscout.report.drawing import Drawing
from peftscout.report.table import Table


@dataclass(frozen=True)
class Section:
    """A part of the report, from which both HTML and Markdown are made.

    Attributes:
        name: plain letters and dashes, for links.
        title: heading.
        text: paragraphs of plain text; the words of the pictures are added where the pictures cannot be seen.
        drawings: pictures.
        tables: caption and table.
        lines: preformatted plain text, such as a plan.
        half: whether half the width of a wide page is enough.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[tuple[str, Table], ...] = ()
    lines: tuple[str, ...] = ()
    half: bool = False
