from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftscout.training.activation_file import FORMAT, Batches, Entry, Indices, Layout, read, write

KEY = "a" * 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def layout(lengths: list[list[int]], width: int = 4, **changes: object) -> Layout:
    facts = {"key": KEY, "dtype": torch.float32, "stored": torch.float32, **changes}
    return Layout(lengths=np.array(lengths, dtype=np.int64), width=width, **facts)  # type: ignore[arg-type]


def hidden_states(of: Layout, left_padded: bool, extra: int = 0, seed: int = 0) -> Tensor:
    """Padded activations of all sequences; padding is full of numbers, as models leave it."""
    lengths = of.lengths.ravel()
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(lengths), int(lengths.max(initial=0)) + extra, of.width, generator=generator).to(of.dtype)


def batches_of(of: Layout, hidden: Tensor, size: int, order: list[int] | None = None) -> Batches:
    rows, choices = of.lengths.shape
    by_row = hidden.view(rows, choices, *hidden.shape[1:])
    indices = np.array(order if order is not None else range(rows), dtype=np.int64)
    for start in range(0, rows, size):
        chosen = indices[start : start + size]
        yield chosen, by_row[torch.from_numpy(chosen)].flatten(0, 1)


def written(path: Path, of: Layout, batches: Batches, left_padded: bool = False) -> Path:
    with path.open("wb") as file:
        write(file, of, batches, left_padded)
    return path


def expected(of: Layout, hidden: Tensor, rows: list[int], width: int, left_padded: bool) -> Tensor:
    """The plain meaning of `Entry.batch`, token by token."""
    choices = of.lengths.shape[1]
    out = torch.zeros(len(rows) * choices, width, of.width, dtype=of.dtype)
    for i, row in enumerate(rows):
        for c in range(choices):
            n = int(of.lengths[row, c])
            for t in range(n):
                source = hidden.shape[1] - n + t if left_padded else t
                target = width - n + t if left_padded else t
                out[i * choices + c, target] = hidden[row * choices + c, source].to(of.stored).to(of.dtype)
    return out


Case = tuple[Layout, int, list[int], list[int], int, bool]
"""(layout, rows a batch, order of writing, rows asked for, columns of padding, whether at the left)"""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, choices = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    lengths = draw(
        st.lists(st.lists(st.integers(0, 9), min_size=choices, max_size=choices), min_size=rows, max_size=rows)
    )
    dtype = draw(st.sampled_from(DTYPES))
    of = layout(lengths, draw(st.integers(1, 5)), dtype=dtype, stored=draw(st.sampled_from((dtype, torch.float16))))
    order = draw(st.permutations(range(rows)))
    asked = draw(st.lists(st.integers(0, rows - 1), max_size=8))
    return of, draw(st.integers(1, 7)), order, asked, draw(st.integers(0, 3)), draw(st.booleans())


@given(case=cases())
def test_what_is_written_is_read(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    of, size, order, asked, extra, left_padded = case
    hidden = hidden_states(of, left_padded, extra)
    path = tmp_path_factory.mktemp("file") / "f.safetensors"
    written(path, of, batches_of(of, hidden, size, order), left_padded)
    assert path.stat().st_size == of.size
    entry = read(path, KEY)
    assert len(entry) == len(of.lengths)
    width = int(of.lengths.max()) + extra
    found = entry.batch(asked, width, left_padded=left_padded)
    assert found.dtype == of.dtype
    assert torch.equal(found, expected(of, hidden, asked, width, left_padded))


def test_rows_written_padded_at_one_side_are_read_padded_at_the_other(tmp_path: Path) -> None:
    of = layout([[2], [5]])
    hidden = hidden_states(of, left_padded=False)
    entry = read(written(tmp_path / "f", of, batches_of(of, hidden, 2)), KEY)
    out = entry.batch([0], 4, left_padded=True)
    assert torch.equal(out[0, 2:], hidden[0, :2])
    assert not out[0, :2].any()


def test_the_order_of_batches_changes_nothing_that_is_read(tmp_path: Path) -> None:
    of = layout([[3], [1], [4], [2]])
    hidden = hidden_states(of, left_padded=False)
    one, other = (
        read(written(tmp_path / name, of, batches_of(of, hidden, 3, order)), KEY)
        for name, order in (("one", [0, 1, 2, 3]), ("other", [3, 1, 0, 2]))
    )
    assert not torch.equal(one.activations, other.activations)
    assert torch.equal(one.batch(range(4), 4), other.batch(range(4), 4))


def test_a_batch_is_a_copy_that_may_be_written_to(tmp_path: Path) -> None:
    of = layout([[3], [1]])
    path = written(tmp_path / "f", of, batches_of(of, hidden_states(of, False), 2))
    entry = read(path, KEY)
    before = path.read_bytes()
    entry.batch([0], 3).fill_(7)
    assert path.read_bytes() == before
    assert not (entry.batch([0], 3) == 7).any()


def test_a_row_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    of = layout([[3], [5]])
    entry = read(written(tmp_path / "f", of, batches_of(of, hidden_states(of, False), 2)), KEY)
    with pytest.raises(ValueError, match="a row of 5 tokens does not fit into a batch of width 4"):
        entry.batch([0, 1], 4)


def test_a_removed_file_stays_readable_to_who_has_it(tmp_path: Path) -> None:
    of = layout([[3], [5]])
    hidden = hidden_states(of, False)
    path = written(tmp_path / "f", of, batches_of(of, hidden, 2))
    entry = read(path, KEY)
    path.unlink()
    assert torch.equal(entry.batch([1], 5)[0], hidden[1])


def test_the_file_is_one_that_the_library_writes_too(tmp_path: Path) -> None:
    of = layout([[3], [5]])
    path = written(tmp_path / "f", of, batches_of(of, hidden_states(of, False), 1))
    tensors = load_file(path)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "starts": (2, 1), "lengths": (2, 1), "activations": (8, 4)
    }  # fmt: skip
    with safe_open(path, framework="pt") as file:
        save_file(tensors, tmp_path / "g", metadata=file.metadata())
    assert torch.equal(read(tmp_path / "g", KEY).batch([0, 1], 5), read(path, KEY).batch([0, 1], 5))


# --- what may not be written -----------------------------------------------------------------------------------------


def refused(of: Layout, batches: Batches, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        write(io.BytesIO(), of, batches, left_padded=False)


def test_a_row_that_is_missing_is_noticed() -> None:
    of = layout([[3], [2], [1]])
    hidden = hidden_states(of, False)
    refused(of, [(np.array([1, 2]), hidden[1:])], ValueError, "1 rows are missing")


def test_a_row_that_comes_twice_is_noticed() -> None:
    of = layout([[3], [2]])
    batch = (np.array([0, 1]), hidden_states(of, False))
    refused(of, [batch, batch], ValueError, "a row came twice")


def test_a_batch_that_is_too_narrow_is_noticed() -> None:
    of = layout([[3], [2]])
    refused(of, [(np.array([0, 1]), torch.zeros(2, 2, 4))], ValueError, "longer than its batch is wide")


@pytest.mark.parametrize("other", [torch.zeros(1, 3, 4, dtype=torch.bfloat16), torch.zeros(1, 3, 5)])
def test_a_batch_of_another_kind_is_noticed(other: Tensor) -> None:
    of = layout([[3], [3]])
    refused(of, [(np.array([0]), torch.zeros(1, 3, 4)), (np.array([1]), other)], ValueError, "not torch.float32 x 4")


def test_numbers_too_large_for_the_file_are_noticed() -> None:
    of = layout([[2]], stored=torch.float16)
    refused(of, [(np.array([0]), torch.full((1, 2, 4), 1e5))], OverflowError, r"up to 1.0e\+05 do not fit into torch.f")


def test_large_numbers_in_the_padding_do_not_count(tmp_path: Path) -> None:
    of = layout([[1], [2]], stored=torch.float16)
    hidden = torch.ones(2, 2, 4)
    hidden[0, 1] = 1e9
    entry = read(written(tmp_path / "f", of, [(np.array([0, 1]), hidden)]), KEY)
    assert entry.activations.tolist() == torch.ones(3, 4).tolist()


# --- what may not be read --------------------------------------------------------------------------------------------


@pytest.fixture
def good(tmp_path: Path) -> Path:
    of = layout([[3], [5]])
    return written(tmp_path / "good", of, batches_of(of, hidden_states(of, False), 2))


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_not_read(good: Path, kept: int) -> None:
    good.write_bytes(good.read_bytes()[:kept])
    with pytest.raises(SafetensorError):
        read(good, KEY)


def test_a_file_with_something_behind_it_is_not_read(good: Path) -> None:
    good.write_bytes(good.read_bytes() + b"\0" * 8)
    with pytest.raises(SafetensorError):
        read(good, KEY)


@pytest.mark.parametrize("place", [-1, -9, -17, -33])
def test_a_file_with_one_bit_changed_is_not_read_but_once_checked_it_is_trusted(good: Path, place: int) -> None:
    content = bytearray(good.read_bytes())
    content[place] ^= 1
    good.write_bytes(content)
    with pytest.raises(ValueError, match="content and hash differ"):
        read(good, KEY)
    assert len(read(good, KEY, check=False)) > 0


def test_a_file_of_another_key_is_not_read(good: Path) -> None:
    with pytest.raises(ValueError, match="something else than its name says"):
        read(good, "b" * 64)


@pytest.mark.parametrize(
    "facts",
    [None, {"key": KEY, "computed_as": "F32"}, {"format": FORMAT, "key": KEY, "computed_as": "I64"}],
)
def test_a_file_of_another_format_is_not_read(tmp_path: Path, facts: dict[str, str] | None) -> None:
    save_file({"activations": torch.zeros(1, 1)}, tmp_path / "f", metadata=facts)
    with pytest.raises(ValueError, match="something else than its name says"):
        read(tmp_path / "f", KEY)


def table(*values: int) -> Tensor:
    return torch.tensor(values).view(-1, 1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"starts": table(0, 2)}, "does not hold"),
        ({"starts": table(0, 2), "lengths": table(2, 1), "more": table(1)}, "does not hold"),
        ({"starts": table(0, 2), "lengths": table(2)}, "malformed"),
        ({"starts": table(0, 2).ravel(), "lengths": table(2, 1).ravel()}, "malformed"),
        ({"starts": table(0, 2).int(), "lengths": table(2, 1).int()}, "malformed"),
        ({"starts": table(0, -2), "lengths": table(2, 1)}, "malformed"),
        ({"starts": table(0, 3), "lengths": table(2, 1)}, "do not fit"),
        ({"starts": table(0, 2), "lengths": table(1, 1)}, "do not fit"),
    ],
)
def test_tables_that_make_no_sense_are_not_read(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    facts = {"format": FORMAT, "key": KEY, "computed_as": "F32"}
    save_file({**tensors, "activations": torch.zeros(3, 4)}, tmp_path / "f", metadata=facts)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "f", KEY)


def test_an_absent_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "f", KEY)


# --- the layout ------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 50), choices=st.integers(1, 3), width=st.integers(1, 9), stored=st.sampled_from(DTYPES))
def test_the_header_is_aligned_and_says_the_size(rows: int, choices: int, width: int, stored: torch.dtype) -> None:
    lengths: Indices = np.arange(rows * choices).reshape(rows, choices)
    of = Layout(KEY, lengths, width, torch.float32, stored)
    header = of.header()
    assert len(header) % 8 == 0
    content = json.loads(header[8:])
    assert int.from_bytes(header[:8], "little") == len(header) - 8
    assert content["activations"]["data_offsets"][1] + len(header) == of.size


def test_an_entry_counts_rows_not_sequences() -> None:
    tables = np.zeros((5, 2), dtype=np.int64)
    assert len(Entry(torch.zeros(0, 3), tables, tables, torch.float32)) == 5
