"""Labels: one reading of all spellings, a stable order, classes told from numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_files import folder_of, jsonl, reviews

from peftscout.errors import DataError
from peftscout.tasks import Task, load_task
from peftscout.tasks.labels import canonical, infer_kind, is_hidden, number
from peftscout.tasks.table import MISSING


def load(tmp_path: Path, labels: list[Any], **arguments: Any) -> Task:
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    return load_task(train=jsonl(tmp_path / "train.jsonl", rows), **arguments)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(0, "0"), (0.0, "0"), ("0", "0"), ("0.0", "0"), (" 0 ", "0"), (-1.0, "-1"), ("1.", "1"), (12, "12"),
     (True, "true"), ("True", "true"), ("TRUE", "true"), ("yes ", "yes"), ("Yes", "Yes"), ("0.5", "0.5"), (0.5, "0.5"),
     ("01", "01"), ("1e3", "1e3"), (None, None), (MISSING, None), ("", None), (" ", None), (float("nan"), None),
     (float("inf"), None), ([], None), ({}, None)],
)  # fmt: skip
def test_a_class_label_has_one_spelling(value: Any, spelled: str | None) -> None:
    assert canonical(value) == spelled


@given(st.one_of(st.integers(), st.booleans(), st.floats(), st.text(), st.none(), st.lists(st.integers())))
def test_the_spelling_of_a_spelling_is_itself(value: Any) -> None:
    spelled = canonical(value)
    assert spelled is None or canonical(spelled) == spelled


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans()))
def test_a_number_is_finite_in_32_bits_or_explained(value: Any) -> None:
    found = number(value)
    assert isinstance(found, str) or np.isfinite(np.float32(found))


def test_whole_numbers_are_ordered_by_value(tmp_path: Path) -> None:
    assert load(tmp_path, [10, 2, 1] * 10).labels == ("1", "2", "10")


def test_words_are_ordered_by_code_point(tmp_path: Path) -> None:
    assert load(tmp_path, ["zeta", "alpha", "Éa"] * 10).labels == ("alpha", "zeta", "Éa")


def test_the_order_of_classes_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    labels = ["c", "a", "b", "d"] * 8
    expected = load(tmp_path, labels).labels
    for seed in range(3):
        random.Random(seed).shuffle(labels)
        assert load(tmp_path, labels).labels == expected


def test_mixed_spellings_are_one_class(tmp_path: Path) -> None:
    task = load(tmp_path, [0, "0", 0.0, "0.0", 1, "1", 1.0, " 1 "] * 5)
    assert task.labels == ("0", "1")
    assert task.manifest()["splits"]["train"]["labels"] == {"0": 12, "1": 12}


def test_files_of_different_types_agree_on_labels(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", reviews(20, (False, True)))
    (tmp_path / "validation.csv").write_text("text,label\na,True\nb,False\n")
    task = load_task(tmp_path)
    assert task.labels == ("false", "true")
    assert task.report.unlock().references.tolist() == [1, 0]


def test_gaps_between_numbers_close_and_names_are_kept(tmp_path: Path) -> None:
    task = load(tmp_path, [-1, 1, 7] * 10)
    assert task.labels == ("-1", "1", "7")
    assert sorted(set(task.train.references.tolist())) == [0, 1, 2]


def test_fractions_are_numbers(tmp_path: Path) -> None:
    task = load(tmp_path, [i / 4 for i in range(20)])
    assert (task.kind, task.labels, task.metrics) == ("regression", (), ("spearman", "pearson"))
    assert task.train.references.dtype == np.float32


def test_fractions_as_text_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,score\n" + "".join(f"t{i},{i / 4}\n" for i in range(20)))
    assert load_task(train=tmp_path / "train.csv").kind == "regression"


def test_whole_floats_are_classes(tmp_path: Path) -> None:
    assert load(tmp_path, [0.0, 1.0, 2.0] * 8).labels == ("0", "1", "2")


def test_the_kind_can_be_given(tmp_path: Path) -> None:
    task = load(tmp_path, [1, 2, 3, 4] * 8, kind="regression")
    assert task.kind == "regression"
    assert task.manifest()["splits"]["report"]["range"]["max"] <= 4
    assert load(tmp_path, [0.5, 1.5] * 8, kind="classification").labels == ("0.5", "1.5")


def test_a_metric_of_numbers_makes_it_a_regression(tmp_path: Path) -> None:
    task = load(tmp_path, [1, 2, 3, 4] * 8, metric="pearson")
    assert (task.kind, task.metrics) == ("regression", ("pearson", "spearman"))


def test_many_classes_are_classes_while_they_repeat(tmp_path: Path) -> None:
    assert len(load(tmp_path, [i % 77 for i in range(400)]).labels) == 77


def test_a_label_for_every_row_needs_a_word_from_the_user() -> None:
    values = list(range(100))
    with pytest.raises(DataError, match="here has 100 different values in 100 rows"):
        infer_kind("here", values)


def test_hidden_means_all_and_not_a_class_of_train() -> None:
    assert is_hidden([-1, -1], [0, 1])
    assert is_hidden(["-1", -1.0], [0, 1])
    assert is_hidden([None, MISSING], [0, 1])
    assert not is_hidden([-1, 1], [0, 1])
    assert not is_hidden([-1, -1], [-1, 1])
    assert not is_hidden(["?"], [0, 1])


@pytest.mark.parametrize("hidden", [-1, None, -1.0])
def test_a_test_split_with_hidden_labels_is_no_test_split(tmp_path: Path, hidden: Any) -> None:
    folder = folder_of(tmp_path, train=reviews(40), validation=reviews(10), test=reviews(30, (hidden,)))
    task = load_task(folder)
    assert len(task.report) == 10
    assert f"{folder / 'test.jsonl'}: 30 rows without labels, taken as no test split" in task.notes


def test_a_test_split_without_label_column_is_no_test_split(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=reviews(40), validation=reviews(10), test=[{"text": "a"}, {"text": "b"}])
    assert len(load_task(folder).report) == 10


def test_minus_one_stays_a_class_where_train_has_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=reviews(40, (-1, 1)), validation=reviews(10, (-1, 1)), test=reviews(6, (-1,)))
    assert load_task(folder).report.unlock().references.tolist() == [0] * 6


def test_a_class_without_rows_in_a_split_is_noted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=reviews(40, ("a", "b", "c")), validation=reviews(10, ("a", "b")))
    assert "report: no row of class c" in load_task(folder).notes


def test_rows_that_repeat_or_contradict_are_noted(tmp_path: Path) -> None:
    rows = [*reviews(40), {"text": "review number 0", "label": 1}, {"text": " review  number 2 ", "label": 0}]
    path = jsonl(tmp_path / "train.jsonl", rows)
    assert f"{path}: 2 rows repeat the texts of another, 1 texts have several labels" in load_task(train=path).notes


def test_repeated_identifiers_are_noted(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [row | {"idx": i // 2} for i, row in enumerate(reviews(20))])
    assert f"{path}: 10 values of 'idx' repeat" in load_task(train=path).notes


def test_skipped_unseen_labels_are_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=reviews(40), validation=[*reviews(10), {"text": "x", "label": 5}])
    task = load_task(folder, on_bad_rows="skip")
    assert len(task.report) == 10
    assert any("validation.jsonl: 1 bad row of 11 left out, first" in note for note in task.notes)


def test_the_manifest_is_json(tmp_path: Path) -> None:
    manifest = load(tmp_path, ["a", "b"] * 20).manifest()
    assert json.loads(json.dumps(manifest)) == manifest


def test_huge_whole_numbers_are_labels_like_others(tmp_path: Path) -> None:
    huge = "9" * 5000
    assert canonical(huge) == huge
    assert load(tmp_path, [huge, "1"] * 20).labels == ("1", huge)
    assert load(tmp_path, [10**20, 1] * 20).labels == ("1", str(10**20))


def test_digits_of_other_scripts_are_words() -> None:
    assert canonical("٣") == "٣"


def test_numbers_and_words_together_are_classes(tmp_path: Path) -> None:
    assert load(tmp_path, [0, 1, "neutral"] * 10).labels == ("0", "1", "neutral")


@pytest.mark.parametrize("labels", [(0, 1), ("0", "1"), (0.0, 1.0), (False, True), ("False", "True"), ("no", "yes")])
def test_every_spelling_of_two_classes_learns_the_same(tmp_path: Path, labels: tuple[Any, Any]) -> None:
    expected = load(tmp_path, [0, 1] * 20)
    assert load(tmp_path, list(labels) * 20).train.digest == expected.train.digest
