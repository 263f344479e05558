"""``docs/models.md`` says what the code does: every op and export, and a share of the searches, are tried again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from models_table import (
    DOCUMENT,
    FAMILIES,
    STRATEGIES_HEAD,
    THINNED,
    WORKS,
    Refusal,
    Searches,
    first_sections,
    refusals_section,
    strategies_section,
)
from peftscout.strategies import STRATEGIES
from tiny_models import MORE_NAMES, TINY_NAMES

CELLS = [(family, strategy) for family in FAMILIES for strategy in STRATEGIES]


def thinned() -> list[tuple[int, int]]:
    """Indices of the searches that are repeated: a diagonal pattern, so that every row and column has some."""
    every = 1 if os.environ.get("MODELS_TABLE") == "all" else THINNED
    return [(f, s) for f in range(len(FAMILIES)) for s in range(len(STRATEGIES)) if (f + s) % every == 0]


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def searches(tmp_path_factory: pytest.TempPathFactory) -> Searches:
    return Searches(tmp_path_factory.mktemp("searches"))


@pytest.fixture(scope="module")
def written() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def test_every_tiny_model_is_in_the_table() -> None:
    assert {family.name for family in FAMILIES} == {*TINY_NAMES, *MORE_NAMES, "bart"}


def test_the_share_of_searches_touches_every_family_and_every_strategy() -> None:
    families, strategies = zip(*thinned(), strict=True)
    assert set(families) == set(range(len(FAMILIES)))
    assert set(strategies) == set(range(len(STRATEGIES)))


@pytest.mark.slow
def test_the_page_says_of_ops_and_exports_what_the_code_does(written: str, tmp_path: Path) -> None:
    for section in first_sections(tmp_path):
        assert section in written


@pytest.mark.slow
@pytest.mark.parametrize(("f", "s"), thinned())
def test_a_search_ends_as_the_page_says(f: int, s: int, written: str, searches: Searches) -> None:
    family, strategy = FAMILIES[f], list(STRATEGIES)[s]
    verdict = searches(family, strategy)
    section = written[written.index("## Strategies") :]
    row = next(line for line in section.splitlines() if line.startswith(f"| {family.title} |"))
    cell = [part.strip() for part in row.strip("|").split("|")][1 + s]
    if verdict == WORKS:
        assert cell == WORKS
    else:
        assert cell == "no"
        assert f"`{verdict}`" in section


def test_only_the_model_without_texts_is_refused_by_strategies(written: str) -> None:
    section = written[written.index("## Strategies") :]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    refused = [row.split("|")[1].strip() for row in rows if "no" in [part.strip() for part in row.split("|")[2:]]]
    assert len(rows) == len(FAMILIES)
    assert refused == ["ViT"]
    assert "reads no texts" in section


def test_what_does_not_work_is_grouped_by_reason_and_named_with_an_example() -> None:
    place = "layers.0.ffn"
    refusals = [
        Refusal("merged", op, family, f"{place}: {op} does not fold into a {leaf}; export as composite")
        for op in ("serial", "parallel")
        for family, leaf in (("BERT", "Linear"), ("GPT-2", "Conv1D"))
    ]
    other = Refusal("merged", "bias", "Llama", f"{place}.down: bias does not fold into a Linear without a bias")
    lines = refusals_section([*refusals, other]).splitlines()
    assert [line.split("|")[2].strip() for line in lines[-2:]] == ["`serial`, `parallel`", "`bias`"]
    assert [line.split("|")[3].strip() for line in lines[-2:]] == ["BERT, GPT-2", "Llama"]
    assert "`layers.0.ffn: serial does not fold into a Linear; export as composite`" in lines[-2]


def test_an_error_stands_below_the_table_once_with_its_families() -> None:
    verdicts = {(family.name, strategy): WORKS for family, strategy in CELLS}
    verdicts |= {("bert", strategy): "no luck" for strategy in STRATEGIES}
    section = strategies_section(verdicts)
    assert section.startswith(STRATEGIES_HEAD.format(thinned=THINNED))
    assert section.count("no luck") == 1
    assert "- BERT: `no luck`" in section
