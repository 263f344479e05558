"""Which columns are texts and label: found by name, given, or refused with the option that decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_files import folder_of, jsonl

from peftscout.errors import DataError
from peftscout.tasks import Task, load_task
from peftscout.tasks.columns import PAIRS


def rows_with(count: int = 20, **columns: Any) -> list[dict[str, Any]]:
    """Rows whose columns are made from patterns such as ``"a {i}"``, or functions of the row number."""
    return [
        {name: value(i) if callable(value) else value.format(i=i) for name, value in columns.items()}
        for i in range(count)
    ]


def parity(i: int) -> int:
    return i % 2


def load(tmp_path: Path, rows: list[dict[str, Any]], **arguments: Any) -> Task:
    return load_task(train=jsonl(tmp_path / "mine" / "train.jsonl", rows), **arguments)


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_known_pairs_are_found_in_their_order(tmp_path: Path, pair: tuple[str, str]) -> None:
    first, second = pair
    rows = rows_with(idx=lambda i: i, **{second: "second {i}", "label": parity, first: "first {i}"})
    task = load(tmp_path, rows)
    assert task.columns == {"texts": [[first], [second]], "label": "label"}
    assert all(a.startswith("first") and b.startswith("second") for a, b in task.train.texts)


@pytest.mark.parametrize("name", ["text", "sentence", "Review", "CONTENT", "tweet"])
def test_known_single_texts_are_found_whatever_their_case(tmp_path: Path, name: str) -> None:
    task = load(tmp_path, rows_with(**{name: "text {i}", "Label": parity}))
    assert task.columns == {"texts": [[name]], "label": "Label"}


def test_the_only_string_column_is_the_text(tmp_path: Path) -> None:
    rows = rows_with(id="row-{i}", strange="words {i}", number="{i}.5", length=lambda i: i, target=parity)
    task = load(tmp_path, rows)
    assert task.columns == {"texts": [["strange"]], "label": "target"}


def test_text_wins_over_other_string_columns_and_the_rest_is_noted(tmp_path: Path) -> None:
    task = load(tmp_path, rows_with(title="title {i}", text="text {i}", label=parity))
    assert task.columns["texts"] == [["text"]]
    assert "texts: text; label: label" in task.notes
    assert "not used: title" in task.notes


def test_several_unknown_string_columns_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, rows_with(body_de="a {i}", body_en="b {i}", label=parity))
    assert str(error.value).endswith(
        "train.jsonl: 'body_de', 'body_en' could each be the text; say which with text= (--text), "
        "and for a pair text_pair= (--text-pair)"
    )


def test_two_known_pairs_are_ambiguous(tmp_path: Path) -> None:
    rows = rows_with(sentence1="a {i}", sentence2="b {i}", premise="c {i}", hypothesis="d {i}", label=parity)
    with pytest.raises(DataError, match=r"could each be the text; say which with text= \(--text\)"):
        load(tmp_path, rows)
    task = load(tmp_path, rows, text="premise", text_pair="hypothesis")
    assert task.columns["texts"] == [["premise"], ["hypothesis"]]


def test_two_known_single_texts_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'review', 'headline' could each be the text"):
        load(tmp_path, rows_with(review="a {i}", headline="b {i}", label=parity))


def test_no_text_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no text column among 'length', 'label'; say which it is with text="):
        load(tmp_path, rows_with(length=lambda i: i, label=parity))


def test_no_label_column_lists_the_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load(tmp_path, rows_with(text="a {i}", outcome=parity))
    assert str(error.value).endswith(
        "train.jsonl: no label column found by name; say which it is with label= (--label); "
        "the columns are 'text', 'outcome'"
    )


def test_label_wins_over_other_label_names(tmp_path: Path) -> None:
    task = load(tmp_path, rows_with(text="a {i}", score=lambda i: i / 3, label=parity))
    assert task.columns["label"] == "label"


def test_two_other_label_names_are_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'target' and 'score' could each be the label; say which with label="):
        load(tmp_path, rows_with(text="a {i}", score=lambda i: i / 3, target=parity))


@pytest.mark.parametrize("argument", ["text", "text_pair", "label"])
def test_a_given_column_that_is_missing_names_the_nearest(tmp_path: Path, argument: str) -> None:
    given = {"text": "review", "text_pair": "reply", "label": "verdict"}
    rows = rows_with(review="a {i}", reply="b {i}", verdict=parity)
    wrong = given | {argument: given[argument] + "s"}
    flag = "--" + argument.replace("_", "-")
    with pytest.raises(DataError) as error:
        load(tmp_path, rows, **wrong)
    assert str(error.value).endswith(
        f"train.jsonl: no column '{wrong[argument]}' (asked for by {flag}) (did you mean '{given[argument]}'?); "
        "the columns are 'review', 'reply', 'verdict'"
    )


def test_a_column_that_validation_lacks_is_named(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "mine", train=rows_with(text="a {i}", label=parity), validation=rows_with(txt="b {i}", label=parity)
    )
    with pytest.raises(DataError, match=r"validation\.jsonl: no column 'text' \(did you mean 'txt'\?\)"):
        load_task(folder)


def test_a_pair_needs_its_first_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text_pair='b' needs the first column too: give text \(--text\) with it"):
        load(tmp_path, rows_with(a="a {i}", b="b {i}", label=parity), text_pair="b")


@pytest.mark.parametrize("given", [{"text": "a", "text_pair": "a"}, {"text": "a", "label": "a"}])
def test_one_column_cannot_serve_twice(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(DataError, match="text, text_pair and label must be different columns"):
        load(tmp_path, rows_with(a="a {i}", b="b {i}", label=parity), **given)


def test_column_names_may_hold_any_characters(tmp_path: Path) -> None:
    rows = rows_with(**{"my text {0}.x": "a {i}", "the label!": parity})
    task = load(tmp_path, rows, text="my text {0}.x", label="the label!")
    assert task.train.texts[0][0].startswith("a ")


class TestRecipesByName:
    ROWS = rows_with(40, sentence="sentence {i}", label=parity, idx=lambda i: i)

    def test_a_folder_named_like_a_recipe_gets_it(self, tmp_path: Path) -> None:
        task = load_task(folder_of(tmp_path / "CoLA", train=self.ROWS))
        assert (task.name, task.labels, task.metric) == ("cola", ("unacceptable", "acceptable"), "matthews")
        assert "recipe cola, by name" in task.notes

    def test_files_in_a_folder_named_like_a_recipe_get_it(self, tmp_path: Path) -> None:
        assert load_task(train=jsonl(tmp_path / "SST-2" / "train.jsonl", self.ROWS)).name == "sst2"

    def test_other_columns_turn_the_recipe_off(self, tmp_path: Path) -> None:
        rows = rows_with(40, text="text {i}", label=parity)
        task = load_task(folder_of(tmp_path / "cola", train=rows))
        assert (task.name, task.labels, task.metric) == ("cola", ("0", "1"), "accuracy")
        assert "named like the recipe cola, which does not apply: no column 'sentence'" in task.notes

    def test_other_labels_turn_the_recipe_off(self, tmp_path: Path) -> None:
        rows = rows_with(40, sentence="text {i}", label=lambda i: ("good", "bad")[i % 2])
        task = load_task(folder_of(tmp_path / "cola", train=rows))
        assert task.labels == ("bad", "good")
        assert "named like the recipe cola, which does not apply: other labels" in task.notes

    def test_one_strange_label_is_a_bad_row_not_another_task(self, tmp_path: Path) -> None:
        rows = [*self.ROWS, {"sentence": "x", "label": 7, "idx": 40}]
        with pytest.raises(DataError, match="'label' is 7, which is no class of train"):
            load_task(folder_of(tmp_path / "cola", train=rows))

    def test_label_names_serve_as_well_as_ids(self, tmp_path: Path) -> None:
        rows = rows_with(40, sentence="s {i}", label=lambda i: ("unacceptable", "acceptable")[i % 2])
        by_name = load_task(folder_of(tmp_path / "a" / "cola", train=rows))
        by_id = load_task(folder_of(tmp_path / "b" / "cola", train=rows_with(40, sentence="s {i}", label=parity)))
        assert by_name.train.digest == by_id.train.digest

    def test_a_given_column_turns_the_recipe_off(self, tmp_path: Path) -> None:
        task = load_task(folder_of(tmp_path / "cola", train=self.ROWS), label="label")
        assert task.metric == "accuracy"
        assert "named like the recipe cola, which is off: columns were given" in task.notes

    def test_the_main_metric_can_be_chosen(self, tmp_path: Path) -> None:
        assert load_task(folder_of(tmp_path / "cola", train=self.ROWS), metric="accuracy").metrics == (
            "accuracy",
            "matthews",
        )

    def test_columns_that_many_tasks_share_decide_nothing(self, tmp_path: Path) -> None:
        task = load_task(folder_of(tmp_path / "mine", train=self.ROWS))
        assert (task.name, task.labels, task.metrics) == ("mine", ("0", "1"), ("accuracy", "macro_f1"))

    def test_wic_is_known_by_its_columns(self, tmp_path: Path) -> None:
        rows = rows_with(40, word="bank", sentence1="one {i}", sentence2="two {i}", label=lambda i: i % 2 == 0)
        task = load_task(folder_of(tmp_path / "mine", train=rows))
        assert (task.name, task.labels) == ("wic", ("false", "true"))
        assert task.train.texts[0][0].startswith("bank: one ")
        assert "recipe wic, by its columns" in task.notes
