"""Files to tables: CSV, TSV, JSON Lines and Parquet, strictly, with true line numbers."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftscout.errors import DataError
from peftscout.tasks.table import MISSING, BadRow, Table

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
"""What can be read. CSV has commas and RFC 4180 quoting; TSV has tabs and, as its media type says, no quoting."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_table(path: Path) -> Table:
    """Read one file of a split.

    Raises:
        DataError: when the file is missing, empty, of another type, not UTF-8, or so damaged that its rows cannot be
            told apart. A single unreadable row lands in `Table.bad`.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        hint = "; write JSON as one object per line into a .jsonl file" if suffix == ".json" else ""
        which = f"of type {suffix!r}" if suffix else "without extension"
        raise DataError(f"{path}: cannot read files {which}, only {', '.join(SUFFIXES)}{hint}")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
    if not data.removeprefix(_BYTE_ORDER_MARK).strip():
        raise DataError(f"{path}: the file is empty")
    if suffix == ".parquet":
        return _read_parquet(path, data)
    text = _decode(path, data)
    table = _read_jsonl(path, text) if suffix == ".jsonl" else _read_delimited(path, text)
    return Table(table.name, table.columns, table.lines, bad=table.bad, sha256=_sha256(data))


_PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
"""How packed files begin."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _decode(path: Path, data: bytes) -> str:
    """Decode UTF-8 with or without a byte order mark."""
    if data.startswith(_PACKED):
        raise DataError(f"{path}: the file is packed (gzip, zip, xz or zstd); unpack it first")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or data[:200].count(0) * 4 > len(data[:200]):
        raise DataError(f"{path}: the file is UTF-16, or not text; save it as UTF-8")
    body = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start + len(data) - len(body)
        line = data.count(b"\n", 0, at) + 1
        raise DataError(
            f"{path}:{line}: byte 0x{data[at]:02X} at offset {at} is not UTF-8 "
            "(Latin-1 or Windows-1252?); save the file as UTF-8"
        ) from None


class _RepeatedKeyError(ValueError):
    """A JSON object that has one key twice; its values contradict each other silently otherwise."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json_row(line: str) -> dict[str, Any] | str:
    """Return the object of one line, or what is wrong with it."""
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} (column {error.colno})"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    return row if isinstance(row, dict) else f"a JSON object was expected, not {type(row).__name__}"


def _read_jsonl(path: Path, text: str) -> Table:
    if text.lstrip().startswith("["):
        raise DataError(f"{path}: begins with '[' like one JSON array; write one object per line")
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): it also cuts at U+2028 and the like
        if not line.strip():
            continue
        row = _json_row(line)
        if isinstance(row, str):
            bad.append(BadRow(number, row))
        else:
            rows.append(row)
            lines.append(number)
    names = dict.fromkeys(key for row in rows for key in row)
    columns = {name: [row.get(name, MISSING) for row in rows] for name in names}
    return _with_rows(path, Table(str(path), columns, lines, bad=tuple(bad)))


@contextmanager
def _cells_up_to(characters: int) -> Iterator[None]:
    """Lift the limit of the csv module (128 KiB a cell), which is one for the whole process."""
    before = csv.field_size_limit(max(characters, csv.field_size_limit()))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield for each record the line where it begins, and its cells or what is wrong with it; blank lines are passed.

    Raises:
        DataError: on wrong quoting that swallowed several lines: where the rows begin is no longer certain then.
    """
    source = io.StringIO(text, newline="")
    if path.suffix.lower() == ".tsv":
        reader = csv.reader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(source, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            what = "a quote is never closed" if "end of data" in str(error) else f"wrong quoting: {error}"
            if reader.line_num > first:
                raise DataError(
                    f"{path}:{first}: {what} (noticed on line {reader.line_num}); "
                    "a quote inside a quoted cell is doubled"
                ) from None
            yield first, what
            continue
        if cells:
            yield first, cells


def _read_delimited(path: Path, text: str) -> Table:
    with _cells_up_to(len(text)):
        records = _records(path, text)
        first, header = next(records)
        if isinstance(header, str):
            raise DataError(f"{path}:{first}: the header cannot be read: {header}")
        names = [name.strip() for name in header]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(f"{path}:{first}: column {repeated[0]!r} is there {names.count(repeated[0])} times")
        rows: list[list[str]] = []
        lines: list[int] = []
        bad: list[BadRow] = []
        for line, cells in records:
            if isinstance(cells, str):
                bad.append(BadRow(line, cells))
            elif len(cells) != len(names):
                bad.append(BadRow(line, _ragged(path, len(cells), len(names))))
            else:
                rows.append(cells)
                lines.append(line)
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    if len(names) == 1 and (separator := next((s for s in (";", "\t", "|", ",") if s in names[0]), None)):
        raise DataError(f"{path}:{first}: one column {names[0]!r}; the cells seem to be separated by {separator!r}, "
                        f"{'tabs' if path.suffix.lower() == '.tsv' else 'commas'} are needed")  # fmt: skip
    return _with_rows(path, Table(str(path), columns, lines, bad=tuple(bad)))


def _ragged(path: Path, cells: int, expected: int) -> str:
    counts = f"{cells} cell{'s' * (cells > 1)} where the header has {expected}"
    if cells < expected:
        return counts
    return counts + (" (a cell cannot hold a tab)" if path.suffix.lower() == ".tsv" else " (quote cells with commas)")


def _with_rows(path: Path, table: Table) -> Table:
    if not table.total:
        raise DataError(f"{path}: there is a header but not one row")
    if not len(table):
        row = table.bad[0]
        raise DataError(f"{path}: not one of {table.total} rows can be read, first {table.place(row.line)}: {row.what}")
    return table


def _read_parquet(path: Path, data: bytes) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    names = content.schema.names
    if len(set(names)) < len(names):
        raise DataError(f"{path}: column {next(n for n in names if names.count(n) > 1)!r} is there twice")
    if not content.num_rows:
        raise DataError(f"{path}: there is a header but not one row")
    columns = {name: content.column(name).to_pylist() for name in names}
    classes = _parquet_class_names(content.schema.metadata or {})
    return Table(
        str(path),
        {name: name_classes(values, classes.get(name)) for name, values in columns.items()},
        range(content.num_rows),
        is_text=False,
        class_names=classes,
        sha256=_sha256(data),
    )


def _parquet_class_names(metadata: dict[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Read the ``ClassLabel`` features that ``Dataset.to_parquet`` leaves in the schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name: tuple(f["names"]) for name, f in features.items() if f.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def name_classes(values: list[Any], names: tuple[str, ...] | None) -> list[Any]:
    """Replace class ids by their declared names; other values, such as -1 for a hidden label, stay."""
    if names is None:
        return values
    return [names[v] if isinstance(v, int) and 0 <= v < len(names) else v for v in values]
