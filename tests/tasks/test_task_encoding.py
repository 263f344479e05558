"""Encoding: what the tokenizer says, once, ragged, with every cut counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import split_of
from task_tokenizers import WORDS, word_tokenizer

from peftscout.errors import DataError
from peftscout.tasks import LockedSplit, encode
from peftscout.tasks.encoding import length_limit


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_tokenizer()


def ids(tokenizer: Any, words: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(word) for word in words.split(" ")]


def test_single_texts(tokenizer: Any) -> None:
    encoded = encode(split_of(["a b", "c"], [1, 0]), tokenizer, max_length=None)
    assert encoded.features[0] == {
        "input_ids": ids(tokenizer, "[CLS] a b [SEP]"),
        "token_type_ids": [0, 0, 0, 0],
        "attention_mask": [1, 1, 1, 1],
    }
    assert encoded.lengths.tolist() == [4, 3]
    assert encoded.references.tolist() == [1, 0]
    assert (len(encoded), encoded.truncated) == (2, 0)


def test_pairs(tokenizer: Any) -> None:
    encoded = encode(split_of([("a b", "c")], [0]), tokenizer, max_length=None)
    assert encoded[0]["input_ids"] == ids(tokenizer, "[CLS] a b [SEP] c [SEP]")
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_choices_are_pairs_with_the_prompt(tokenizer: Any) -> None:
    rows = [("what is it", "red", "green"), ("it", "one two", "a")]
    encoded = encode(split_of(rows, [0, 1], "multiple_choice"), tokenizer, max_length=None)
    assert encoded[0]["input_ids"] == [
        ids(tokenizer, "[CLS] what is it [SEP] red [SEP]"),
        ids(tokenizer, "[CLS] what is it [SEP] green [SEP]"),
    ]
    assert [len(choice) for choice in encoded[1]["attention_mask"]] == [6, 5]
    assert encoded.lengths.tolist() == [7, 6]


def test_the_longer_text_of_a_pair_is_cut_first_and_rows_are_counted(tokenizer: Any) -> None:
    rows = [("a b c d e f", "g h"), ("a", "b"), ("a b", "c d e f g h")]
    encoded = encode(split_of(rows, [0, 1, 0]), tokenizer, max_length=8)
    assert encoded[0]["input_ids"] == ids(tokenizer, "[CLS] a b c [SEP] g h [SEP]")
    assert encoded[2]["input_ids"] == ids(tokenizer, "[CLS] a b [SEP] c d e [SEP]")
    assert encoded.lengths.tolist() == [8, 5, 8]
    assert encoded.truncated == 2


def test_a_row_of_exactly_the_limit_is_not_cut(tokenizer: Any) -> None:
    encoded = encode(split_of(["a b c d"], [0]), tokenizer, max_length=6)
    assert (encoded.lengths.tolist(), encoded.truncated) == ([6], 0)


def test_a_question_with_several_long_choices_is_one_cut_row(tokenizer: Any) -> None:
    rows = [("a b c d e", "a b c d e", "b c d e f"), ("a", "b", "c")]
    encoded = encode(split_of(rows, [0, 1], "multiple_choice"), tokenizer, max_length=7)
    assert (encoded.lengths.tolist(), encoded.truncated) == ([7, 5], 1)


def test_tokenizers_without_a_separator_get_a_line_break() -> None:
    plain = word_tokenizer([*"abcd", "\nc"], pair=False)
    encoded = encode(split_of([("a b", "c d")], [0]), plain, max_length=None)
    assert encoded[0]["input_ids"] == ids(plain, "a b \nc d")
    assert set(encoded[0]) == {"input_ids", "attention_mask"}


def test_a_row_without_any_token_is_refused() -> None:
    plain = word_tokenizer(pair=False)
    with pytest.raises(DataError, match=r"train: 1 rows have no token with this tokenizer, first \(' ',\)"):
        encode(split_of(["a", " "], [0, 1]), plain, max_length=None)


@pytest.mark.parametrize(("given", "says", "limit"), [(None, 64, 64), (None, 10**30, 512), (100, 64, 100), (5, 64, 5)])
def test_the_limit_is_as_given_or_what_the_tokenizer_says(given: int | None, says: int, limit: int) -> None:
    assert length_limit(word_tokenizer(max_length=says), given) == limit


def test_a_limit_without_room_for_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="max_length 4: at least 5 tokens are needed with this tokenizer"):
        encode(split_of(["a"], [0]), tokenizer, max_length=4)


def test_a_locked_report_cannot_be_encoded(tokenizer: Any) -> None:
    report = LockedSplit(split_of(["a"], [0]))
    with pytest.raises(DataError, match="is locked"):
        encode(report, tokenizer, max_length=None)
    assert len(encode(report.unlock(), tokenizer, max_length=None)) == 1


def test_a_subset_keeps_the_order_asked_for(tokenizer: Any) -> None:
    encoded = encode(split_of(["a", "b c", "d e f"], [0, 1, 2]), tokenizer, max_length=None)
    subset = encoded.subset(np.array([2, 0]))
    assert subset.lengths.tolist() == [5, 3]
    assert subset.references.tolist() == [2, 0]
    assert subset.features[0] is encoded.features[2]


def test_many_rows_agree_with_one_at_a_time(tokenizer: Any) -> None:
    texts = [" ".join((WORDS[:10] * 3)[: 1 + i % 20]) for i in range(5000)]
    encoded = encode(split_of(texts, [0] * 5000), tokenizer, max_length=16)
    for i in (0, 19, 2047, 2048, 4999):
        alone = tokenizer(texts[i], truncation=True, max_length=16)
        assert encoded[i] == dict(alone.items())
    assert encoded.truncated == sum(len(text.split()) > 14 for text in texts)


def test_the_packaged_tokenizer_agrees_with_transformers(minilm_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_path)
    rows = [("Our friends won't buy this.", "Naïve café owners."), ("word " * 300, "short"), ("x", "y " * 400)]
    encoded = encode(split_of(rows, [0, 1, 0]), tokenizer, max_length=128)
    for (first, second), feature in zip(rows, encoded.features, strict=True):
        assert feature == dict(tokenizer(first, second, truncation=True, max_length=128).items())
    assert encoded.truncated == 2
    assert encode(split_of(["word " * 300], [0]), tokenizer, max_length=None).lengths.tolist() == [302]


def test_the_tiny_llama_tells_the_texts_of_a_pair_apart(shared_models: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_models / "stories260k-llama")
    encoded = encode(split_of([("the cat", "sat down")], [0]), tokenizer, max_length=None)
    assert encoded[0]["input_ids"].count(tokenizer.bos_token_id) == 2
    assert encode(split_of(["the cat"], [0]), tokenizer, max_length=None).lengths[0] > 1
