"""The zoo of bad data: each case is refused before any training, with a message that names place, fault and remedy."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from task_files import folder_of, jsonl, reviews

from figures import record
from peftscout.errors import DataError
from peftscout.tasks import load_task

GOOD = [json.dumps(row) for row in reviews(9)]
DOUBLED = "a quote inside a quoted cell is doubled"
UNREADABLE = "{path}: cannot read files TYPE, only .jsonl, .csv, .tsv, .parquet"
MANY = """\
{path}: 'label' has 30 different values in 30 rows: neither classes nor fractions; name the right column \
with label= (--label), or say kind="regression" or kind="classification\""""
REFUSED = "bad data refused with file, line and remedy"
SKIP = 'Mend the rows, or leave them out with on_bad_rows="skip".'


def with_line(line: str) -> list[str]:
    """Nine good rows with one more line as the fourth."""
    return [*GOOD[:3], line, *GOOD[3:]]


BAD_JSON_LINES = {
    "invalid JSON": ('{"text": "a" "label": 0}', "not valid JSON: Expecting ',' delimiter (column 14)"),
    "cut short": ('{"text": "a", "lab', "not valid JSON: Unterminated string starting at (column 15)"),
    "a list": ('["a", 0]', "a JSON object was expected, not list"),
    "a bare string": ('"a"', "a JSON object was expected, not str"),
    "one key twice": ('{"text": "a", "label": 0, "label": 1}', "not valid JSON: key 'label' is there twice"),
    "empty text": ('{"text": "", "label": 0}', "'text' is empty"),
    "blank text": ('{"text": " \\t ", "label": 0}', "'text' is empty"),
    "null text": ('{"text": null, "label": 0}', "'text' is null"),
    "no text": ('{"label": 0}', "'text' is missing"),
    "a number as text": ('{"text": 12, "label": 0}', "'text' is 12 (int), a text was expected"),
    "a list as text": ('{"text": ["a"], "label": 0}', "'text' is ['a'] (list), a text was expected"),
    "NUL in text": ('{"text": "a\\u0000b", "label": 0}', "'text' has a NUL character at position 1"),
    "half a surrogate": ('{"text": "a\\ud800", "label": 0}', "'text' has half a surrogate pair at position 1"),
    "null label": ('{"text": "a", "label": null}', "'label' is null, a class was expected"),
    "no label": ('{"text": "a"}', "'label' is missing, a class was expected"),
    "empty label": ('{"text": "a", "label": " "}', "'label' is empty"),
    "list label": ('{"text": "a", "label": [1]}', "'label' is [1], a class was expected"),
    "NaN label": ('{"text": "a", "label": NaN}', "'label' is nan, a class was expected"),
}


@pytest.mark.parametrize(("line", "fault"), BAD_JSON_LINES.values(), ids=BAD_JSON_LINES.keys())
def test_a_bad_json_line_is_named_by_file_and_line(tmp_path: Path, line: str, fault: str) -> None:
    path = jsonl(tmp_path / "train.jsonl", with_line(line))
    with pytest.raises(DataError) as error:
        load_task(train=path)
    assert str(error.value) == f"{path}: 1 bad row of 10\n  {path}:4: {fault}\n{SKIP}"
    record(REFUSED, 1)


@pytest.mark.parametrize(("line", "fault"), BAD_JSON_LINES.values(), ids=BAD_JSON_LINES.keys())
def test_skipping_leaves_the_bad_row_out_and_says_so(tmp_path: Path, line: str, fault: str) -> None:
    path = jsonl(tmp_path / "train.jsonl", with_line(line))
    task = load_task(train=path, on_bad_rows="skip")
    assert len(task.train) + len(task.search) + len(task.report) == 9
    assert f"{path}: 1 bad row of 10 left out, first {path}:4: {fault}" in task.notes


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _parquet(columns: dict[str, list[Any]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pa.parquet.write_table(pa.table(columns), folder / "train.parquet")
        return folder / "train.parquet"

    return write


def _two_columns_of_one_name(folder: Path) -> Path:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([0])], names=["text", "text", "label"])
    pa.parquet.write_table(table, folder / "train.parquet")
    return folder / "train.parquet"


CSV = b"text,label\n" + b"".join(b"review %d,%d\n" % (i, i % 2) for i in range(9))
JSONL = "\n".join(GOOD).encode()

BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty": (_bytes("train.csv", b""), "{path}: the file is empty"),
    "only blanks": (_bytes("train.jsonl", b"\n \r\n\n"), "{path}: the file is empty"),
    "only a byte order mark": (_bytes("train.csv", b"\xef\xbb\xbf\n"), "{path}: the file is empty"),
    "only a header": (_bytes("train.csv", b"text,label\n"), "{path}: there is a header but not one row"),
    "Latin-1": (
        _bytes("train.csv", CSV + b"caf\xe9,0\n"),
        "{path}:11: byte 0xE9 at offset 113 is not UTF-8 (Latin-1 or Windows-1252?); save the file as UTF-8",
    ),
    "Latin-1 after a byte order mark": (
        _bytes("train.csv", b"\xef\xbb\xbf" + CSV + b"caf\xe9,0\n"),
        "{path}:11: byte 0xE9 at offset 116 is not UTF-8 (Latin-1 or Windows-1252?); save the file as UTF-8",
    ),
    "UTF-16": (
        _bytes("train.csv", CSV.decode().encode("utf-16")),
        "{path}: the file is UTF-16, or not text; save it as UTF-8",
    ),
    "UTF-16 without a mark": (
        _bytes("train.jsonl", JSONL.decode().encode("utf-16-le")),
        "{path}: the file is UTF-16, or not text; save it as UTF-8",
    ),
    "a JSON array": (
        _bytes("train.jsonl", b'[{"text": "a", "label": 0}]'),
        "{path}: begins with '[' like one JSON array; write one object per line",
    ),
    "not one good line": (
        _bytes("train.jsonl", b"text,label\ngood,1\n"),
        "{path}: not one of 2 rows can be read, first {path}:1: not valid JSON: Expecting value (column 1)",
    ),
    "too few cells": (
        _bytes("train.csv", CSV + b"alone\n"),
        "{path}: 1 bad row of 10\n  {path}:11: 1 cell where the header has 2\n" + SKIP,
    ),
    "too many cells": (
        _bytes("train.csv", CSV + b"good, really,1\n"),
        "{path}: 1 bad row of 10\n  {path}:11: 3 cells where the header has 2 (quote cells with commas)\n" + SKIP,
    ),
    "a tab in a TSV cell": (
        _bytes("train.tsv", CSV.replace(b",", b"\t") + b"good\treally\t1\n"),
        "{path}: 1 bad row of 10\n  {path}:11: 3 cells where the header has 2 (a cell cannot hold a tab)\n" + SKIP,
    ),
    "text after a closing quote": (
        _bytes("train.csv", CSV + b'"he said "hi" to me",1\nlast,0\n'),
        "{path}: 1 bad row of 11\n  {path}:11: wrong quoting: ',' expected after '\"'\n" + SKIP,
    ),
    "a quote that swallows lines": (
        _bytes("train.csv", CSV + b'"never closed,1\nx,0\n"y,1\n'),
        "{path}:11: wrong quoting: ',' expected after '\"' (noticed on line 13); " + DOUBLED,
    ),
    "a quote that swallows the rest": (
        _bytes("train.csv", CSV + b'"never closed,1\nx,0\ny,1\n'),
        "{path}:11: a quote is never closed (noticed on line 13); " + DOUBLED,
    ),
    "NUL in a cell": (
        _bytes("train.csv", CSV + b"a\x00b,1\n"),
        "{path}: 1 bad row of 10\n  {path}:11: 'text' has a NUL character at position 1\n" + SKIP,
    ),
    "an empty cell": (
        _bytes("train.csv", CSV + b",1\n"),
        "{path}: 1 bad row of 10\n  {path}:11: 'text' is empty\n" + SKIP,
    ),
    "one column name twice": (
        _bytes("train.csv", b"text,label,text\na,0,b\n"),
        "{path}:1: column 'text' is there 2 times",
    ),
    "semicolons": (
        _bytes("train.csv", b"text;label\na;0\nb;1\n"),
        "{path}:1: one column 'text;label'; the cells seem to be separated by ';', commas are needed",
    ),
    "commas in a TSV": (
        _bytes("train.tsv", CSV),
        "{path}:1: one column 'text,label'; the cells seem to be separated by ',', tabs are needed",
    ),
    "a broken header": (
        _bytes("train.csv", b'"text"x,label\na,0\n'),
        "{path}:1: the header cannot be read: wrong quoting: ',' expected after '\"'",
    ),
    "gzip": (
        _bytes("train.csv", gzip.compress(CSV, mtime=0)),
        "{path}: the file is packed (gzip, zip, xz or zstd); unpack it first",
    ),
    "a spreadsheet called CSV": (
        _bytes("train.csv", b"PK\x03\x04" + bytes(40)),
        "{path}: the file is packed (gzip, zip, xz or zstd); unpack it first",
    ),
    "UTF-32": (
        _bytes("train.csv", CSV.decode().encode("utf-32")),
        "{path}: the file is UTF-16, or not text; save it as UTF-8",
    ),
    "a web page": (
        _bytes("train.csv", b"<!DOCTYPE html>\n<html><body>404</body></html>\n"),
        (
            "{path}: no label column found by name; say which it is with label= (--label); the columns are "
            "'<!DOCTYPE html>'"
        ),
    ),
    "no column of labels": (
        _bytes("train.csv", CSV.replace(b"label", b"opinion on it")),
        (
            "{path}: no label column found by name; say which it is with label= (--label); the columns are 'text', "
            "'opinion on it'"
        ),
    ),
    "no column of texts": (
        _bytes("train.jsonl", b"".join(b'{"number": %d, "label": %d}\n' % (i, i % 2) for i in range(9))),
        "{path}: no text column among 'number', 'label'; say which it is with text= (--text)",
    ),
    "numbers as lines": (
        _bytes("train.jsonl", b"1\n2\n3\n"),
        "{path}: not one of 3 rows can be read, first {path}:1: a JSON object was expected, not int",
    ),
    "bytes after the last row": (
        _bytes("train.csv", CSV + bytes(range(128, 140)) + b",1\n"),
        "{path}:11: byte 0x80 at offset 110 is not UTF-8 (Latin-1 or Windows-1252?); save the file as UTF-8",
    ),
    "columns without names": (
        _bytes("train.csv", b",\na,0\n"),
        "{path}:1: column '' is there 2 times",
    ),
    "a spreadsheet": (
        _bytes("train.xlsx", b"PK"),
        UNREADABLE.replace("TYPE", "of type '.xlsx'"),
    ),
    "a .json file": (
        _bytes("train.json", b"[]"),
        UNREADABLE.replace("TYPE", "of type '.json'") + "; write JSON as one object per line into a .jsonl file",
    ),
    "no extension": (
        _bytes("train", b"text,label\n"),
        UNREADABLE.replace("TYPE", "without extension"),
    ),
    "no file": (lambda folder: folder / "absent.csv", "{path}: no such file"),
    "Parquet with one name twice": (_two_columns_of_one_name, "{path}: column 'text' is there twice"),
    "Parquet without rows": (_parquet({"text": [], "label": []}), "{path}: there is a header but not one row"),
    "Parquet null": (
        _parquet({"text": ["a", None, *"cdefghij"], "label": [0, 1] * 5}),
        "{path}: 1 bad row of 10\n  {path}[1]: 'text' is null\n" + SKIP,
    ),
    "one class": (
        _bytes("train.csv", b"text,label\na,yes\nb,yes\nc,yes\n"),
        "{path}: 'label' is 'yes' in all 3 rows; at least two classes are needed",
    ),
    "as many labels as rows": (
        _bytes("train.csv", b"text,label\n" + b"".join(b"t%d,%d\n" % (i, i * 7) for i in range(30))),
        MANY,
    ),
    "too few rows": (
        _bytes("train.csv", b"text,label\na,0\nb,1\nc,0\nd,1\n"),
        "train has 4 rows, too few to carve a split from (at least 8); give more rows, or validation and test",
    ),
    "one text only": (
        _bytes("train.csv", b"text,label\n" + b"same,0\nsame,1\n" * 5),
        "train has 10 rows but hardly any different texts; no report split can be carved",
    ),
}


@pytest.mark.parametrize(("write", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_refused_with_its_exact_fault(
    tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    path = write(tmp_path)
    with pytest.raises(DataError) as error:
        load_task(train=path)
    assert str(error.value) == message.replace("{path}", str(path))
    record(REFUSED, 1)


def test_broken_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(DataError, match=r"train\.parquet: cannot be read as Parquet: "):
        load_task(train=path)


def test_deeply_nested_json_is_a_bad_row_and_no_crash(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", with_line("[" * 100_000))
    with pytest.raises(DataError, match=r"train\.jsonl:4: not valid JSON"):
        load_task(train=path)


BAD_TARGETS = {
    "text": ('"high"', "'high', a number was expected"),
    "true": ("true", "True, a number was expected"),
    "NaN": ("NaN", "nan, a finite number was expected"),
    "infinity": ("-Infinity", "-inf, a finite number was expected"),
    "infinite text": ('"inf"', "inf, a finite number was expected"),
    "null": ("null", "null, a number was expected"),
    "too large": ("1e39", "1e+39, too large for 32-bit floats"),
    "empty": ('""', "empty"),
}


@pytest.mark.parametrize(("value", "fault"), BAD_TARGETS.values(), ids=BAD_TARGETS.keys())
def test_a_target_that_is_no_finite_number_is_refused(tmp_path: Path, value: str, fault: str) -> None:
    rows = [json.dumps({"text": f"t{i}", "label": i / 4}) for i in range(9)]
    path = jsonl(tmp_path / "train.jsonl", [*rows, f'{{"text": "a", "label": {value}}}'])
    with pytest.raises(DataError) as error:
        load_task(train=path)
    assert str(error.value) == f"{path}: 1 bad row of 10\n  {path}:10: 'label' is {fault}\n{SKIP}"
    record(REFUSED, 1)


def test_text_where_every_number_belongs_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", reviews(9, ("low", "high")))
    with pytest.raises(DataError, match=r"train\.jsonl: every row is bad|9 bad rows of 9"):
        load_task(train=path, kind="regression")


def test_a_constant_target_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", reviews(9, (2.5,)))
    with pytest.raises(DataError, match=r"'label' is 2\.5 in all 9 rows; at least two values are needed"):
        load_task(train=path)


def test_many_bad_rows_are_counted_and_only_the_first_are_spelt_out(tmp_path: Path) -> None:
    rows = [{"text": "" if i % 2 else f"t{i}", "label": i % 2} for i in range(40)]
    path = jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError) as error:
        load_task(train=path)
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path}: 20 bad rows of 40"
    assert lines[1:6] == [f"  {path}:{line}: 'text' is empty" for line in (2, 4, 6, 8, 10)]
    assert lines[6:] == ["  and 15 more", SKIP]


def test_bad_rows_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=with_line("{"), validation=with_line('{"text": "", "label": 1}'))
    with pytest.raises(DataError) as error:
        load_task(folder)
    assert f"{folder / 'train.jsonl'}:4: not valid JSON" in str(error.value)
    assert f"{folder / 'validation.jsonl'}:4: 'text' is empty" in str(error.value)


def test_unreadable_and_bad_rows_are_told_in_the_order_of_their_lines(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", ['{"text": "", "label": 1}', "{", *GOOD])
    with pytest.raises(DataError) as error:
        load_task(train=path)
    assert [line.split(":")[1] for line in str(error.value).splitlines()[1:3]] == ["1", "2"]


def test_skipping_everything_is_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", [{"text": "", "label": i % 2} for i in range(9)])
    with pytest.raises(DataError, match=r"every row is bad, nothing is left\n  .*train\.jsonl:1: 'text' is empty"):
        load_task(train=path, on_bad_rows="skip")


def test_an_unknown_policy_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(DataError, match=r"on_bad_rows 'skp': must be 'error' or 'skip' \(did you mean 'skip'\?\)"):
        load_task(train=path, on_bad_rows="skp")  # type: ignore[arg-type]


def test_an_unseen_label_in_validation_names_its_line_and_the_classes(tmp_path: Path) -> None:
    train = reviews(20, ("no", "yes"))
    folder = folder_of(tmp_path, train=train, validation=[*reviews(4, ("no", "yes")), {"text": "x", "label": "yess"}])
    path = folder / "validation.jsonl"
    with pytest.raises(DataError) as error:
        load_task(folder)
    assert str(error.value) == (
        f"{path}: 1 bad row of 5\n"
        f"  {path}:5: 'label' is 'yess', which is no class of train (did you mean 'yes'?); "
        f"the classes are no, yes\n{SKIP}"
    )


def test_hidden_validation_labels_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train=reviews(20), validation=reviews(5, (-1,)))
    with pytest.raises(DataError, match="'label' is -1 or null in all 5 rows: labels are hidden"):
        load_task(folder)


def test_a_ten_megabyte_cell_is_read(tmp_path: Path) -> None:
    import csv

    limit = csv.field_size_limit()
    huge = "word " * 2_000_000
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + f'"{huge}",0\n' + "".join(f"review {i},{i % 2}\n" for i in range(9)))
    task = load_task(train=path)
    longest = max(len(text) for split in (task.train, task.search, task.report.unlock()) for (text,) in split.texts)
    assert longest == len(huge)
    assert csv.field_size_limit() == limit
