"""Tables and the collection of bad rows."""

from __future__ import annotations

import pytest

from peftscout.errors import DataError
from peftscout.tasks.table import MISSING, BadRow, BadRows, Table

FILE = Table("a/train.csv", {"text": ["x", "y"], "label": [0, 1]}, [2, 4], bad=(BadRow(3, "broken"),))
MEMORY = Table("data train", {"text": ["x"]}, range(1), is_text=False)


def test_rows_of_files_have_lines_and_rows_in_memory_have_indices() -> None:
    assert FILE.place(4) == "a/train.csv:4"
    assert MEMORY.place(0) == "data train[0]"


def test_the_total_counts_unreadable_rows() -> None:
    assert (len(FILE), FILE.total) == (2, 3)


def test_a_missing_column_names_the_nearest_and_the_option() -> None:
    assert FILE.column("label") == [0, 1]
    with pytest.raises(DataError) as error:
        FILE.column("labels", flag="--label")
    assert str(error.value) == (
        "a/train.csv: no column 'labels' (asked for by --label) (did you mean 'label'?); "
        "the columns are 'text', 'label'"
    )


def test_missing_is_not_null() -> None:
    assert MISSING is not None
    assert repr(MISSING) == "MISSING"


def test_nothing_bad_settles_quietly() -> None:
    for policy in ("error", "skip"):
        bad = BadRows(policy)
        bad.settle()
        assert bad.notes() == []


def test_the_error_names_each_table_with_its_counts() -> None:
    bad = BadRows("error")
    bad.add(FILE, 4, "second")
    bad.add(FILE, 2, "first")
    bad.add(MEMORY, 0, "third")
    with pytest.raises(DataError) as error:
        bad.settle()
    assert str(error.value).splitlines() == [
        "a/train.csv: 2 bad rows of 3",
        "  a/train.csv:2: first",
        "  a/train.csv:4: second",
        "data train: 1 bad row of 1",
        "  data train[0]: third",
        'Mend the rows, or leave them out with on_bad_rows="skip".',
    ]


def test_skipping_notes_the_first_line_of_each_table() -> None:
    bad = BadRows("skip")
    bad.add(FILE, 4, "second")
    bad.add(FILE, 2, "first")
    bad.settle()
    assert bad.notes() == ["a/train.csv: 2 bad rows of 3 left out, first a/train.csv:2: first"]
