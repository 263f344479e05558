"""The cache of tokens: equal to computing anew, keyed by all that matters, never trusted blindly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from task_files import split_of
from task_tokenizers import WORDS, word_tokenizer

from peftscout.errors import DataError
from peftscout.tasks import Encoded, LockedSplit, Split, encode, encode_cached, load_task
from peftscout.tasks import cache as cache_module
from peftscout.tasks.cache import tokenizer_digest

SPLITS = {
    "single": split_of(["a b", "c", "d e f g h"], [0, 1, 2]),
    "pair": split_of([("a b", "c"), ("d", "e f")], [0, 1]),
    "choices": split_of([("what", "a b", "c"), ("is it", "d", "e f g")], [1, 0], "multiple_choice"),
    "numbers": Split("train", (("a",), ("b c",)), np.array([0.5, 2.25], dtype=np.float32), "regression"),
}


def assert_equal(one: Encoded, other: Encoded) -> None:
    assert one.features == other.features
    assert one.references.tolist() == other.references.tolist()
    assert one.references.dtype == other.references.dtype
    assert one.lengths.tolist() == other.lengths.tolist()
    assert one.truncated == other.truncated


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the splits that were tokenised, one entry a time."""
    calls: list[str] = []

    def counted(split: Any, *arguments: Any, **named: Any) -> Encoded:
        calls.append(split.name)
        return encode(split, *arguments, **named)

    monkeypatch.setattr(cache_module, "encode", counted)
    return calls


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_a_hit_equals_computing_anew(tmp_path: Path, split: Split, recomputed: list[str]) -> None:
    tokenizer = word_tokenizer()
    first = encode_cached(split, tokenizer, max_length=6, cache_dir=tmp_path / "new" / "cache")
    second = encode_cached(split, tokenizer, max_length=6, cache_dir=tmp_path / "new" / "cache")
    assert recomputed == ["train"]
    assert_equal(first, encode(split, tokenizer, max_length=6))
    assert_equal(second, first)


def test_everything_that_decides_the_tokens_decides_the_key(tmp_path: Path, recomputed: list[str]) -> None:
    split = SPLITS["single"]
    variants: list[tuple[Split, Any, int | None]] = [
        (split, word_tokenizer(), None),
        (split, word_tokenizer(), 6),
        (split, word_tokenizer(WORDS[::-1]), None),
        (split, word_tokenizer(pair=False), None),
        (split.select([1, 0, 2]), word_tokenizer(), None),
        (split_of(["a b", "c", "d e f g h"], [0, 1, 1]), word_tokenizer(), None),
        (SPLITS["pair"], word_tokenizer(), None),
    ]
    for rows, tokenizer, limit in variants:
        encode_cached(rows, tokenizer, max_length=limit, cache_dir=tmp_path)
    assert len(recomputed) == len(variants) == len(list(tmp_path.iterdir()))


def test_the_same_limit_given_or_found_is_one_key(tmp_path: Path, recomputed: list[str]) -> None:
    encode_cached(SPLITS["single"], word_tokenizer(max_length=64), max_length=None, cache_dir=tmp_path)
    encode_cached(SPLITS["single"], word_tokenizer(max_length=64), max_length=64, cache_dir=tmp_path)
    assert len(recomputed) == 1


def test_using_a_tokenizer_does_not_change_its_digest() -> None:
    tokenizer = word_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer(["a b c d e"], truncation=True, max_length=3, padding="max_length")
    assert tokenizer_digest(tokenizer) == before
    assert tokenizer_digest(word_tokenizer()) == before


def test_an_added_token_changes_the_digest() -> None:
    tokenizer = word_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["new"])
    assert tokenizer_digest(tokenizer) != before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b"\x80\x04 pickle, or anything else")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def _of_another_key(path: Path) -> None:
    other = path.parent / "other"
    encode_cached(SPLITS["pair"], word_tokenizer(), max_length=6, cache_dir=other)
    path.write_bytes(next(other.iterdir()).read_bytes())


@pytest.mark.parametrize("damage", [_truncate, _empty, _garbage, _flip_a_bit, _of_another_key])
def test_a_damaged_file_is_computed_again_and_mended(
    tmp_path: Path, damage: Any, recomputed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    split, tokenizer = SPLITS["single"], word_tokenizer()
    first = encode_cached(split, tokenizer, max_length=6, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    recomputed.clear()
    with caplog.at_level(logging.WARNING):
        assert_equal(encode_cached(split, tokenizer, max_length=6, cache_dir=tmp_path), first)
    assert recomputed == ["train"]
    assert f"{path}: damaged, tokens are computed again" in caplog.text
    assert_equal(encode_cached(split, tokenizer, max_length=6, cache_dir=tmp_path), first)
    assert recomputed == ["train"]


def test_a_folder_that_cannot_be_written_only_costs_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        encoded = encode_cached(SPLITS["single"], word_tokenizer(), max_length=6, cache_dir=blocked / "cache")
    assert len(encoded) == 3
    assert "tokens are not cached" in caplog.text


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module.os, "fsync", full)
    encode_cached(SPLITS["single"], word_tokenizer(), max_length=6, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    encode_cached(SPLITS["single"], word_tokenizer(), max_length=6, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".safetensors"
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) >= {"input.input_ids", "offsets.input_ids", "references", "lengths"}
        assert file.get_tensor("offsets.input_ids").tolist() == [0, 4, 7, 13]


def test_a_locked_report_is_refused_even_when_cached(tmp_path: Path) -> None:
    report = LockedSplit(SPLITS["single"])
    encode_cached(SPLITS["single"], word_tokenizer(), max_length=6, cache_dir=tmp_path)
    with pytest.raises(DataError, match="is locked"):
        encode_cached(report, word_tokenizer(), max_length=6, cache_dir=tmp_path)


def test_a_tokenizer_in_python_has_a_digest_and_a_cache(tmp_path: Path, recomputed: list[str]) -> None:
    from transformers import ByT5Tokenizer

    one, same, other = ByT5Tokenizer(), ByT5Tokenizer(), ByT5Tokenizer(extra_ids=50)
    assert tokenizer_digest(one) == tokenizer_digest(same) != tokenizer_digest(other)
    first = encode_cached(SPLITS["pair"], one, max_length=None, cache_dir=tmp_path)
    assert_equal(encode_cached(SPLITS["pair"], same, max_length=None, cache_dir=tmp_path), first)
    assert recomputed == ["train"]


def test_real_rows_survive_the_cache(tmp_path: Path, shared_data: Path, minilm_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    for name in ("cb", "copa"):
        split = load_task(shared_data / name).search
        fresh = encode_cached(split, tokenizer, max_length=128, cache_dir=tmp_path)
        assert_equal(encode_cached(split, tokenizer, max_length=128, cache_dir=tmp_path), fresh)
        assert_equal(encode(split, tokenizer, max_length=128), fresh)
