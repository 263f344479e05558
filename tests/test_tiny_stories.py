"""The benchmark on a tiny real Llama: stories that can be learnt, and what a row says; a search where the model is."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import tiny_stories
from peftscout.strategies import STRATEGIES
from tiny_stories import (
    ANIMALS,
    RESULTS,
    Row,
    references,
    search_row,
    story,
    study_config,
    table,
    write_stories,
)
from tiny_task import save_tiny_writer

ROW = Row("scout", 2600, -0.5, 0.01, -0.6, -0.7, -0.55, -1.7, 8, 50.0)
SMALL = {"steps": 2, "trials": 2, "final": {"seeds": 1, "lr_scales": [1.0]}}


def test_a_story_says_of_its_animal_what_is_always_so() -> None:
    rng = random.Random(1)
    for _ in range(50):
        text = story(rng)
        animal = next(a for a in ANIMALS if f"a little {a} " in text)
        assert all(fact in text for fact in ANIMALS[animal])
        assert text.count(".") == 5


def test_no_story_is_in_both_files_and_the_seed_decides(tmp_path: Path) -> None:
    one, same, other = (write_stories(tmp_path / str(n), 30, 10, seed) for n, seed in enumerate((0, 0, 1)))
    texts = [[json.loads(line)["text"] for line in (one / f"{n}.jsonl").open()] for n in ("train", "validation")]
    assert [len(part) for part in texts] == [30, 10]
    assert not set(texts[0]) & set(texts[1])
    assert (one / "train.jsonl").read_text() == (same / "train.jsonl").read_text()
    assert (one / "train.jsonl").read_text() != (other / "train.jsonl").read_text()


@pytest.mark.parametrize(("found", "beats"), [(-0.5, True), (-0.71, False), (-1.8, False)])
def test_a_plan_has_to_beat_the_frozen_model_and_the_mean_random_plan(found: float, beats: bool) -> None:
    assert replace(ROW, found=found).beats is beats


def test_rows_are_kept_in_a_file_and_printed_as_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_stories, "RESULTS", tmp_path / "rows.csv")
    assert tiny_stories.read() == []
    rows = [ROW, replace(ROW, strategy="uniform", found=-0.72)]
    for row in rows:
        tiny_stories.append(row)
    assert tiny_stories.read() == rows
    printed = table(rows).splitlines()
    assert printed[2].startswith("| `scout` | 2,600 | 0.500 +- 0.010 | yes |")
    assert "| no |" in printed[3]
    assert printed[-1].startswith("Frozen model: 1.700. Random plans: 0.700 in the mean, 0.550 the best")


def test_the_committed_rows_have_every_strategy_and_one_task() -> None:
    rows = tiny_stories.read()
    assert RESULTS.exists()
    assert {row.strategy for row in rows} == set(STRATEGIES)
    assert all(row.beats for row in rows), "docs/results.md says so"
    assert len({(row.frozen, row.random_mean, row.uniform) for row in rows}) == 1
    assert all(row.cost <= 2600 for row in rows), "1 % of 260,032"
    assert all(row.found > row.frozen for row in rows)


@pytest.mark.slow
def test_references_and_a_row_on_a_random_model(tmp_path: Path) -> None:
    model, data = save_tiny_writer(tmp_path / "model", "llama"), write_stories(tmp_path / "data", 24, 8)
    config = study_config(model, data, "random", budget="10%", **SMALL)
    against = references(config, plans=2)
    assert against.random_mean <= against.random_best
    row = search_row("random", config, tmp_path / "study", against)
    assert (row.strategy, row.trials, row.frozen) == ("random", 2, against.frozen)
    assert row.found > row.frozen, "two steps are enough to get better than a random model"


@pytest.mark.slow
def test_a_short_search_on_the_real_llama_beats_the_frozen_model(shared_models: Path, tmp_path: Path) -> None:
    model = shared_models / "stories260k-llama"
    data = write_stories(tmp_path / "data", 120, 40)
    final = {"seeds": 1, "lr_scales": [1.0]}
    config = study_config(model, data, "scout", steps=30, trials=3, final=final)
    row = search_row("scout", config, tmp_path / "study", references(config, plans=1))
    assert row.cost <= 2600
    assert row.found > row.frozen + 0.3
