"""The one style of all figures, and figures as SVG that follow the page into the dark.

Figures are drawn in the colours of the light theme; in the SVG each becomes a CSS variable with that colour as its
fallback, so that one drawing serves light, dark and print. Colours are of the palette of Okabe and Ito (2008), which
colour-blind people tell apart; marks differ in shape, too.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from peftscout.report.table import plain

INK, MUTED, GRID, PAPER = "#222326", "#6b6e75", "#d9dbdf", "#fefefe"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#a8578a"

VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
}
"""Colour of the light theme -> CSS variable of the page."""

WIDTH, HEIGHT = 4.8, 3.3
"""Of a figure, in inches: so narrow that its text can still be read on a phone."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "text.color": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "hatch.color": GRID,
}


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Draw in the style of the house; ``salt`` makes the ids of one drawing its own and always the same."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        yield


@dataclass(frozen=True)
class Drawing:
    """One picture and what it shows in words.

    Attributes:
        svg: markup, to stand in a page.
        words: for those who do not see it.
    """

    svg: Markup
    words: str


def drawing(figure: Figure, name: str, words: str) -> Drawing:
    """Return ``figure`` as SVG for a page: colours as CSS variables, ids of its own, no metadata, any width.

    Args:
        figure: drawn within `style`.
        name: plain letters, digits and dashes; different for each figure of a page.
        words: what it shows.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.04)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    for colour, variable in VARIABLES.items():
        text = re.sub(re.escape(colour), f"var(--{variable}, {colour})", text, flags=re.IGNORECASE)
    text = _as_styles(text)
    width = re.search(r'viewBox="0 0 ([0-9.]+)', text)
    natural = f"{float(width[1]) * 4 / 3:.0f}px" if width else "100%"
    opening = f'<svg role="img" aria-label="{Markup.escape(plain(words))}" style="width: {natural}"'
    text = re.sub(r'<svg (?:width|height)="[^"]*"|<svg', opening, text, count=1)
    text = re.sub(r'( (?:width|height)="[0-9.]+pt")', "", text, count=2)
    return Drawing(Markup(text.strip()), words)


def label(text: str, longest: int = 26) -> str:
    """Return a name from outside as it can be drawn: one line, not too long, and seen by legends (no ``_`` before)."""
    shown = plain(text).lstrip("_") or "-"
    return shown if len(shown) <= longest else f"{shown[: longest - 3]}..."


def _as_styles(svg: str) -> str:
    """Move colours from attributes, which take no variables, to styles."""
    return re.sub(r'\b(fill|stroke)="(var\([^"]*\))"', r'style="\1: \2"', svg)
