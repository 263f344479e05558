"""Splits: disjoint, stratified, repeatable, hashed; the report is locked."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_files import folder_of, jsonl, reviews, split_of

from peftscout.errors import DataError
from peftscout.tasks import LockedSplit, load_task
from peftscout.tasks.partition import Carving, partition
from peftscout.tasks.splits import carve, overlap, sample

rows_and_classes = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=8, max_size=80)


@given(rows_and_classes, st.integers(2, 20), st.integers(0, 5))
def test_carving_keeps_identical_texts_on_one_side(rows: list[tuple[int, int]], count: int, seed: int) -> None:
    split = split_of([f"text {text}" for text, _ in rows], [label for _, label in rows])
    stay, taken = carve(split, min(count, len(rows) // 2), [seed])
    assert sorted([*stay, *taken]) == list(range(len(rows)))
    assert overlap(split.select(stay), split.select(taken)) == 0


@given(rows_and_classes, st.integers(2, 20))
def test_carving_leaves_every_class_in_train(rows: list[tuple[int, int]], count: int) -> None:
    split = split_of([f"text {i}" for i in range(len(rows))], [label for _, label in rows])
    stay, _ = carve(split, min(count, len(rows) // 2), [0])
    assert set(split.references[stay]) == set(split.references)


def test_carving_keeps_the_proportions_of_classes_exactly() -> None:
    labels = [0] * 700 + [1] * 250 + [2] * 50
    split = split_of([f"text {i}" for i in range(1000)], labels)
    _, taken = carve(split, 200, [0])
    assert Counter(split.references[taken].tolist()) == {0: 140, 1: 50, 2: 10}


def test_a_rare_class_gets_two_rows_and_the_total_is_kept() -> None:
    split = split_of([f"text {i}" for i in range(1000)], [0] * 995 + [1] * 5)
    _, taken = carve(split, 100, [0])
    assert Counter(split.references[taken].tolist()) == {0: 98, 1: 2}


def test_a_class_with_one_row_stays_in_train() -> None:
    split = split_of([f"text {i}" for i in range(21)], [0] * 20 + [1])
    stay, _ = carve(split, 8, [0])
    assert 20 in stay


def test_numbers_are_carved_without_classes() -> None:
    split = split_of([f"text {i}" for i in range(100)], range(100), kind="regression")
    _, taken = carve(split, 20, [0])
    assert len(taken) == 20


def test_blanks_do_not_tell_texts_apart() -> None:
    one, same, other = split_of([(" a  b\n", "c"), ("a b", "c"), ("a", "b c")], [0, 0, 0]).keys
    assert one == same != other


@given(rows_and_classes, st.integers(4, 40), st.integers(0, 3))
def test_a_sample_is_exact_and_has_every_class(rows: list[tuple[int, int]], count: int, seed: int) -> None:
    count = min(count, len(rows))
    split = split_of([f"text {text}" for text, _ in rows], [label for _, label in rows])
    chosen = sample(split, count, [seed])
    assert len(set(chosen.tolist())) == len(chosen) == count
    assert set(split.references[chosen]) == set(split.references)
    assert chosen.tolist() == sample(split, count, [seed]).tolist()


class TestPartition:
    def test_train_alone_gives_three_disjoint_splits(self, tmp_path: Path) -> None:
        task = load_task(train=jsonl(tmp_path / "train.jsonl", reviews(100)))
        assert (len(task.train), len(task.search), len(task.report)) == (60, 20, 20)
        texts = [split.texts for split in (task.train, task.search, task.report.unlock())]
        assert len({text for part in texts for text in part}) == 100
        assert set(task.overlap.values()) == {0}
        assert "search = 20 and report = 20 rows carved from train (seed 0)" in task.notes

    @pytest.mark.parametrize("held_out", ["validation", "test"])
    def test_one_held_out_split_is_the_report(self, tmp_path: Path, held_out: str) -> None:
        folder = folder_of(
            tmp_path, train=reviews(100), **{held_out: [{"text": f"new {i}", "label": i % 2} for i in range(9)]}
        )
        task = load_task(folder)
        assert (len(task.train), len(task.search), len(task.report)) == (80, 20, 9)
        assert all(text.startswith("new") for (text,) in task.report.unlock().texts)

    def test_three_splits_serve_as_they_are(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(100), validation=reviews(10), test=reviews(12))
        task = load_task(folder)
        assert (len(task.train), len(task.search), len(task.report)) == (100, 10, 12)
        assert "search = validation, report = test" in task.notes

    def test_the_fraction_and_the_cap_rule_the_carving(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(200), validation=reviews(10))
        assert len(load_task(folder, search_fraction=0.1).search) == 20
        assert len(load_task(folder, max_search_rows=30).search) == 30

    def test_train_is_limited_after_carving(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(200), validation=reviews(10))
        full, limited = load_task(folder), load_task(folder, max_train_rows=50)
        assert limited.search.digest == full.search.digest
        assert len(limited.train) == 50
        assert set(limited.train.texts) < set(full.train.texts)
        assert Counter(limited.train.references.tolist()) == {0: 25, 1: 25}
        assert "train = 50 of 160 rows (max_train_rows, seed 0)" in limited.notes

    def test_a_limit_below_the_classes_is_refused(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(60, ("a", "b", "c")), validation=reviews(6, ("a", "b", "c")))
        with pytest.raises(DataError, match="max_train_rows 2: fewer than the 3 classes"):
            load_task(folder, max_train_rows=2)

    def test_a_limit_above_the_rows_changes_nothing(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(60), validation=reviews(6))
        assert load_task(folder, max_train_rows=10_000).manifest() == load_task(folder).manifest()

    def test_shared_rows_are_counted_and_noted(self, tmp_path: Path) -> None:
        folder = folder_of(
            tmp_path, train=reviews(100), validation=reviews(10), test=[*reviews(4), {"text": "x", "label": 0}]
        )
        task = load_task(folder)
        assert task.overlap == {"train-search": 10, "train-report": 4, "search-report": 4}
        assert "overlap: 4 of 5 report rows have texts that are also in train" in task.notes

    def test_identical_rows_do_not_leak_into_the_search_split(self, tmp_path: Path) -> None:
        rows = [row for row in reviews(50) for _ in range(3)]
        task = load_task(train=jsonl(tmp_path / "train.jsonl", rows))
        assert set(task.overlap.values()) == {0}
        assert len(task.train) + len(task.search) + len(task.report) == 150

    def test_the_splits_are_named_by_their_purpose(self) -> None:
        split = split_of([f"t{i}" for i in range(40)], [0, 1] * 20)
        parts = partition({"train": split, "validation": split}, Carving())
        assert (parts.train.name, parts.search.name, parts.report.name) == ("train", "search", "report")


class TestRepeatability:
    def test_the_same_seed_gives_the_same_manifest(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "train.jsonl", reviews(100))
        assert load_task(train=path, seed=3).manifest() == load_task(train=path, seed=3).manifest()

    def test_another_seed_gives_other_splits(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "train.jsonl", reviews(100))
        digests = {load_task(train=path, seed=seed).search.digest for seed in range(5)}
        assert len(digests) == 5

    def test_a_moved_folder_keeps_its_manifest(self, tmp_path: Path) -> None:
        one = folder_of(tmp_path / "a" / "data", train=reviews(40), validation=reviews(8))
        other = folder_of(tmp_path / "b" / "data", train=reviews(40), validation=reviews(8))
        assert load_task(one).manifest() == load_task(other).manifest()
        assert str(tmp_path) not in json.dumps(load_task(one).manifest())

    def test_one_changed_label_changes_the_manifest(self, tmp_path: Path) -> None:
        rows = reviews(40)
        before = load_task(train=jsonl(tmp_path / "train.jsonl", rows)).manifest()
        rows[7]["label"] = 1 - rows[7]["label"]
        after = load_task(train=jsonl(tmp_path / "train.jsonl", rows)).manifest()
        assert before["files"] != after["files"]
        assert before["splits"] != after["splits"]

    def test_permuted_report_labels_leave_train_and_search_alone(self, tmp_path: Path) -> None:
        report = reviews(20)
        before = load_task(folder_of(tmp_path, train=reviews(60), validation=report))
        flipped = [row | {"label": 1 - row["label"]} for row in report]
        after = load_task(folder_of(tmp_path, train=reviews(60), validation=flipped))
        assert before.train.digest == after.train.digest
        assert before.search.digest == after.search.digest
        assert (before.labels, before.metrics) == (after.labels, after.metrics)
        assert before.report.digest != after.report.digest

    def test_the_digest_is_of_the_content_alone(self) -> None:
        split = split_of(["a", "b"], [0, 1])
        assert split.digest == split.select([0, 1], "other").digest
        assert split.digest != split.select([1, 0]).digest
        assert split_of([("a", "b")], [0]).digest != split_of([("ab",)], [0]).digest


class TestLock:
    @pytest.fixture
    def report(self) -> LockedSplit:
        return LockedSplit(split_of(["secret one", "secret two"], [1, 0]))

    def test_rows_and_hash_are_known_while_locked(self, report: LockedSplit) -> None:
        assert len(report) == 2
        assert report.digest == split_of(["secret one", "secret two"], [1, 0]).digest
        assert report.facts(("a", "b"))["labels"] == {"a": 1, "b": 1}
        assert not report.unlocked

    @pytest.mark.parametrize("member", ["texts", "references"])
    def test_the_content_is_refused_while_locked(self, report: LockedSplit, member: str) -> None:
        with pytest.raises(DataError) as error:
            getattr(report, member)
        assert str(error.value) == (
            "the train split (2 rows) is locked until the search is over; only the final comparison unlocks it"
        )

    def test_rows_cannot_be_selected_while_locked(self, report: LockedSplit) -> None:
        with pytest.raises(DataError, match="is locked"):
            report.select([0])

    def test_neither_repr_nor_a_copy_opens_it(self, report: LockedSplit) -> None:
        assert "secret" not in repr(report)
        with pytest.raises(DataError, match="is locked"):
            _ = copy.deepcopy(report).texts

    def test_unlocking_gives_the_rows(self, report: LockedSplit) -> None:
        split = report.unlock()
        assert split.texts == (("secret one",), ("secret two",))
        assert report.unlocked
        assert report.references.tolist() == [1, 0]
        assert report.select([1]).texts == (("secret two",),)

    def test_a_task_hands_out_a_locked_report(self, tmp_path: Path) -> None:
        task = load_task(train=jsonl(tmp_path / "train.jsonl", reviews(40)))
        with pytest.raises(DataError, match="the report split .8 rows. is locked"):
            _ = task.report.texts
        assert "review" not in repr(task.report)


class TestSplit:
    def test_references_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            split_of(["a"], [0]).references[0] = 1

    def test_texts_and_references_must_agree(self) -> None:
        with pytest.raises(ValueError, match="train: 2 rows of text, 1 references"):
            split_of(["a", "b"], [0])

    def test_selecting_keeps_the_order_asked_for(self) -> None:
        chosen = split_of(["a", "b", "c"], [0, 1, 2]).select(np.array([2, 0]))
        assert chosen.texts == (("c",), ("a",))
        assert chosen.references.tolist() == [2, 0]


def test_the_majority_is_the_score_of_the_most_frequent_class_of_train(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=reviews(60, ("a", "a", "b")), validation=reviews(10), test=reviews(9))
    task = load_task(folder_of(folder, validation=reviews(10, ("a", "b")), test=reviews(9, ("a", "b"))))
    assert task.majority == 0.5
    assert load_task(folder, metric="macro_f1").majority == pytest.approx((2 / 3) / 2)
    assert load_task(folder, metric="matthews").majority == 0.0


def test_the_majority_of_numbers_has_no_correlation(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [{"text": f"t{i}", "label": i / 3} for i in range(40)])
    assert load_task(train=path).majority == 0.0
    assert load_task(train=path, metric="neg_mean_squared_error").majority < 0
