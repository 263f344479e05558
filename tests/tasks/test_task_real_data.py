"""The nine real tasks: row counts, labels and metrics as their notes say, splits as promised."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftscout.tasks import Task, encode, load_task

# rows of train and validation, rows of the carved search split, repeated rows of train, validation rows also in train
TASKS: dict[str, tuple[int, int, int, int, int]] = {
    "rte": (2490, 277, 498, 2, 0),
    "cola": (8551, 1043, 1000, 19, 16),
    "sst2": (20000, 872, 1000, 36, 0),
    "stsb": (5749, 1500, 1000, 43, 6),
    "wnli": (635, 71, 127, 0, 0),
    "qnli": (4136, 1327, 827, 0, 0),
    "boolq": (2603, 667, 521, 0, 0),
    "cb": (250, 56, 50, 0, 0),
    "copa": (400, 100, 80, 0, 0),
}

LABELS = {
    "rte": {"entailment": (1249, 146), "not_entailment": (1241, 131)},
    "cola": {"unacceptable": (2528, 322), "acceptable": (6023, 721)},
    "sst2": {"negative": (8786, 428), "positive": (11214, 444)},
    "wnli": {"not_entailment": (323, 40), "entailment": (312, 31)},
    "qnli": {"entailment": (2047, 655), "not_entailment": (2089, 672)},
    "boolq": {"false": (978, 259), "true": (1625, 408)},
    "cb": {"entailment": (115, 23), "contradiction": (119, 28), "neutral": (16, 5)},
    "copa": {"choice1": (195, 55), "choice2": (205, 45)},
}


@cache
def loaded(folder: Path) -> Task:
    return load_task(folder)


@pytest.fixture(params=TASKS)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def task(shared_data: Path, name: str) -> Task:
    return loaded(shared_data / name)


def test_rows_are_all_there(task: Task, name: str) -> None:
    train, validation, search, _, _ = TASKS[name]
    assert len(task.report) == validation
    assert len(task.search) == search
    assert len(task.train) + len(task.search) == train
    assert task.name == name


def test_labels_are_as_published(task: Task, name: str) -> None:
    splits = task.manifest()["splits"]
    if name == "stsb":
        assert (task.kind, task.labels) == ("regression", ())
        assert splits["report"]["range"] == {"min": 0.0, "max": 5.0, "mean": pytest.approx(2.364, abs=5e-4)}
        return
    assert task.labels == tuple(LABELS[name])
    for label, (in_train, in_validation) in LABELS[name].items():
        assert splits["train"]["labels"][label] + splits["search"]["labels"][label] == in_train
        assert splits["report"]["labels"][label] == in_validation


@pytest.mark.parametrize("name", LABELS)
def test_the_search_split_keeps_the_proportions_of_train(shared_data: Path, name: str) -> None:
    task = loaded(shared_data / name)
    train, search = (np.bincount(s.references.astype(int)) for s in (task.train, task.search))
    share = len(task.search) / (len(task.search) + len(task.train))
    assert np.abs(search - share * (train + search)).max() <= 2


def test_known_repeats_and_overlaps_are_reported(task: Task, name: str) -> None:
    *_, repeats, overlap = TASKS[name]
    notes = "\n".join(task.notes)
    assert (f"{repeats} rows repeat the texts of another" in notes) == (repeats > 0)
    assert task.overlap["train-search"] == 0
    assert task.overlap["train-report"] + task.overlap["search-report"] == overlap
    assert ("overlap: " in notes) == (overlap > 0)


def test_the_recipe_is_noted_and_the_source_files_are_hashed(task: Task, name: str, shared_data: Path) -> None:
    assert f"recipe {name}, by name" in task.notes
    readme = (shared_data / "README.md").read_text(encoding="utf-8")
    for role, facts in task.manifest()["files"].items():
        assert f"{facts['sha256']}  {name}/{role}.jsonl" in readme


def test_loading_again_gives_the_same_manifest(task: Task, name: str, shared_data: Path) -> None:
    assert json.dumps(load_task(shared_data / name).manifest()) == json.dumps(task.manifest())


def test_copa_asks_its_questions_in_words(shared_data: Path) -> None:
    task = loaded(shared_data / "copa")
    assert (task.kind, task.num_choices) == ("multiple_choice", 2)
    (first,) = [texts for texts in task.train.texts + task.search.texts if texts[0].startswith("My body cast a shadow")]
    assert first == (
        "My body cast a shadow over the grass. What was the cause of this?",
        "The sun was rising.",
        "The grass was cut.",
    )


def test_the_majority_baseline_is_near_the_published_shares(shared_data: Path) -> None:
    assert loaded(shared_data / "boolq").majority == pytest.approx(1625 / 2603, abs=0.01)
    assert loaded(shared_data / "cola").majority == 0.0
    assert loaded(shared_data / "stsb").majority == 0.0


@pytest.mark.parametrize(("name", "shape"), [("cb", None), ("copa", 2)])
def test_real_rows_encode_with_the_packaged_tokenizer(
    shared_data: Path, minilm_path: Path, name: str, shape: int | None
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    task = loaded(shared_data / name)
    encoded = encode(task.search, tokenizer, max_length=128)
    assert len(encoded) == len(task.search)
    assert encoded.lengths.max() <= 128
    first = encoded[0]["input_ids"]
    assert (len(first) == shape) if shape else isinstance(first[0], int)


def test_part_of_a_real_task_keeps_its_search_split(shared_data: Path) -> None:
    full = loaded(shared_data / "sst2")
    part = load_task(shared_data / "sst2", max_train_rows=4000)
    assert len(part.train) == 4000
    assert (part.search.digest, part.report.digest) == (full.search.digest, full.report.digest)
    assert part.train.references.mean() == pytest.approx(full.train.references.mean(), abs=1e-3)


def test_another_seed_carves_another_search_split_of_the_same_report(shared_data: Path) -> None:
    one, other = loaded(shared_data / "cb"), load_task(shared_data / "cb", seed=1)
    assert one.search.digest != other.search.digest
    assert one.report.digest == other.report.digest
    assert np.array_equal(np.bincount(one.search.references), np.bincount(other.search.references))
