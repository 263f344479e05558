"""Multiple choice: COPA's prompts, other people's columns, and every way to name the right choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from task_files import folder_of, jsonl

from peftscout.errors import DataError
from peftscout.tasks import Task, load_task


def copa(count: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "premise": f"The glass number {i} fell.",
            "choice1": "I pushed it.",
            "choice2": "It broke.",
            "question": ("cause", "effect")[i % 2],
            "label": i % 2,
        }
        for i in range(count)
    ]


def quiz(label: Callable[[int], Any], count: int = 24, **columns: Any) -> list[dict[str, Any]]:
    choices = columns or {f"choice{k}": f"answer {k}" for k in (1, 2, 3)}
    return [{"question": f"What is {i}?", **choices, "label": label(i)} for i in range(count)]


def load(tmp_path: Path, rows: list[dict[str, Any]], **arguments: Any) -> Task:
    return load_task(train=jsonl(tmp_path / "quiz" / "train.jsonl", rows), **arguments)


def test_copa_is_known_by_its_columns_and_asks_in_words(tmp_path: Path) -> None:
    task = load_task(folder_of(tmp_path / "mine", train=copa(40)))
    assert (task.name, task.kind, task.num_choices) == ("copa", "multiple_choice", 2)
    assert task.labels == ("choice1", "choice2")
    assert {prompt.split(". ")[1] for prompt, *_ in task.train.texts} == {
        "What was the cause of this?",
        "What happened as a result?",
    }
    assert all(choices == ("I pushed it.", "It broke.") for _, *rest in task.train.texts for choices in [tuple(rest)])


def test_an_unknown_copa_question_is_a_bad_row(tmp_path: Path) -> None:
    rows = [*copa(), copa()[0] | {"question": "why"}]
    with pytest.raises(DataError, match=r"train\.jsonl:21: 'question' is 'why'; it must be 'cause' or 'effect'"):
        load(tmp_path, rows)


LABELS: dict[str, tuple[Callable[[int], Any], int]] = {
    "indices": (lambda i: i % 3, 0),
    "indices as text": (lambda i: str(i % 3), 0),
    "from one": (lambda i: i % 3 + 1, 0),
    "letters": (lambda i: "ABC"[i % 3], 0),
    "small letters": (lambda i: "abc"[i % 3], 0),
    "column names": (lambda i: f"choice{i % 3 + 1}", 0),
}


@pytest.mark.parametrize(("label", "first"), LABELS.values(), ids=LABELS.keys())
def test_every_way_to_name_a_choice_means_the_same(tmp_path: Path, label: Callable[[int], Any], first: int) -> None:
    task = load(tmp_path, quiz(label))
    expected = load(tmp_path, quiz(lambda i: i % 3))
    assert (task.num_choices, task.labels) == (3, ("choice1", "choice2", "choice3"))
    assert task.train.digest == expected.train.digest
    assert first in task.train.references


@pytest.mark.parametrize("label", [3, -1, "D", "maybe", 0.5])
def test_a_choice_that_does_not_exist_is_a_bad_row(tmp_path: Path, label: Any) -> None:
    rows = [*quiz(lambda i: i % 3), quiz(lambda _: label, 1)[0]]
    with pytest.raises(DataError, match=r"train\.jsonl:25: 'label' is .*; the classes are choice1, choice2, choice3"):
        load(tmp_path, rows)


@pytest.mark.parametrize(
    "columns",
    [("ending0", "ending1", "ending2", "ending3"), ("option_a", "option_b"), ("answer1", "answer2", "answer3")],
)
def test_numbered_columns_are_choices(tmp_path: Path, columns: tuple[str, ...]) -> None:
    rows = quiz(lambda i: i % len(columns), **{name: f"this is {name}" for name in columns})
    task = load(tmp_path, rows)
    assert (task.kind, task.num_choices, task.labels) == ("multiple_choice", len(columns), columns)
    assert task.train.texts[0][1:] == tuple(f"this is {name}" for name in columns)


def test_a_column_of_lists_holds_the_choices(tmp_path: Path) -> None:
    task = load(tmp_path, quiz(lambda i: i % 3, choices=["red", "green", "blue"]))
    assert (task.num_choices, task.labels) == (3, ("0", "1", "2"))
    assert task.train.texts[0][1:] == ("red", "green", "blue")


BAD_LISTS = {
    "short": (["red"], "'choices' has 1 choices where most rows have 3"),
    "empty": (["red", "", "blue"], "'choices[1]' is empty"),
    "no text": (["red", 4, "blue"], "'choices[1]' is 4 (int), a text was expected"),
    "no list": ("red", "'choices' is red (str), a list of texts was expected"),
    "null": (None, "'choices' is null, a list of texts was expected"),
}


@pytest.mark.parametrize(("choices", "fault"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_bad_list_of_choices_is_named(tmp_path: Path, choices: Any, fault: str) -> None:
    rows = [*quiz(lambda i: i % 3, choices=["red", "green", "blue"]), *quiz(lambda _: 0, 1, choices=choices)]
    with pytest.raises(DataError) as error:
        load(tmp_path, rows)
    assert f"train.jsonl:25: {fault}" in str(error.value)
    assert len(load(tmp_path, rows, on_bad_rows="skip").train) > 0


def test_columns_with_gaps_are_no_choices(tmp_path: Path) -> None:
    rows = quiz(lambda i: i % 2, choice1="a", choice3="b")
    with pytest.raises(DataError, match="no choices found; multiple choice needs columns such as choice1 and choice2"):
        load(tmp_path, rows, kind="multiple_choice")


def test_two_possible_prompts_are_ambiguous(tmp_path: Path) -> None:
    rows = [row | {"context": f"context {i}"} for i, row in enumerate(quiz(lambda i: i % 3))]
    with pytest.raises(DataError, match=r"'question' and 'context' could each be the text that the choices answer"):
        load(tmp_path, rows)
    assert load(tmp_path, rows, text="context").train.texts[0][0].startswith("context")


def test_no_prompt_is_refused(tmp_path: Path) -> None:
    rows = [{"strange": f"q{i}", "choice1": "a", "choice2": "b", "label": i % 2} for i in range(20)]
    with pytest.raises(
        DataError, match="no column is named like the text that the choices answer; say which with text="
    ):
        load(tmp_path, rows)


def test_one_answer_for_all_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'label' is 0 in all 24 rows; at least two values are needed"):
        load(tmp_path, quiz(lambda _: 0))


def test_the_kind_given_as_classification_ignores_choices(tmp_path: Path) -> None:
    task = load(tmp_path, quiz(lambda i: i % 3), kind="classification", text="question")
    assert (task.kind, task.num_choices) == ("classification", None)
    assert len(task.train.texts[0]) == 1
