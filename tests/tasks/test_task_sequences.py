"""Targets that are sequences: which rows are taken, and what becomes of them as tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from task_files import folder_of
from task_tokenizers import word_tokenizer

from peftscout.errors import DataError
from peftscout.tasks import Split, encode, encode_cached, load_task
from peftscout.tasks.sequences import IGNORED, chat_ids, fitted, target_ids
from tiny_task import tiny_tokenizer, write_task, write_texts

TOKENIZER = tiny_tokenizer(writes=True)
EOS = TOKENIZER.eos_token_id
USER, BOT = {"role": "user", "content": "good"}, {"role": "assistant", "content": "fine"}


def rows_of(kind: Any, texts: list[tuple[str, ...]], targets: list[Any]) -> Split:
    return Split("train", tuple(texts), np.zeros(len(texts), dtype=np.int64), kind, tuple(targets))


def words(ids: list[int]) -> str:
    return " ".join(TOKENIZER.convert_ids_to_tokens(ids))


def predicted(feature: dict[str, Any]) -> str:
    return words([i for i in feature["labels"] if i != IGNORED])


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "row", "texts", "label"),
    [
        ("causal_lm", {"prompt": "a", "completion": "b"}, [["prompt"]], "completion"),
        ("causal_lm", {"text": "a"}, [], "text"),
        ("causal_lm", {"messages": [{"role": "user", "content": "a"}, BOT]}, [], "messages"),
        ("text_to_text", {"document": "a", "summary": "b"}, [["document"]], "summary"),
        ("token_classification", {"tokens": ["a", "b"], "ner_tags": ["O", "X"]}, [["tokens"]], "ner_tags"),
    ],
)  # fmt: skip
def test_the_columns_of_sequences_are_found_by_name(tmp_path, kind, row, texts, label):
    key = label if label in ("text", "messages") else next(iter(row))
    rows = []
    for n in range(40):
        own = json.loads(json.dumps(row).replace('"a"', f'"a{n}"'))
        rows.append(own)
    assert key in rows[0]
    task = load_task(folder_of(tmp_path, train=rows), kind=kind)
    assert task.columns == {"texts": texts, "label": label}
    assert task.kind == kind
    assert len(task.train.targets) == len(task.train)


def test_columns_that_could_each_be_the_target_have_to_be_named(tmp_path):
    folder = folder_of(tmp_path, train=[{"prompt": f"p{n}", "answer": "x", "summary": "y"} for n in range(20)])
    with pytest.raises(
        DataError, match=r"'answer' and 'summary' could each be the text to write; say which with label="
    ):
        load_task(folder, kind="text_to_text")
    assert load_task(folder, kind="text_to_text", label="summary").columns["label"] == "summary"


def test_kinds_that_read_as_another_have_its_rows_labels_and_metrics(tmp_path):
    folder = write_task(tmp_path / "classes", train=40, validation=10)
    plain, texts = load_task(folder), load_task(folder, kind="labels_as_text")
    assert (texts.kind, texts.labels, texts.metrics) == ("labels_as_text", plain.labels, plain.metrics)
    assert texts.train.digest == plain.train.digest
    choices = load_task(write_texts(tmp_path / "choices", "choices", train=40), kind="choice_likelihood")
    assert (choices.num_choices, choices.metrics) == (2, ("accuracy",))


def test_rows_with_the_same_prompt_stay_on_one_side_of_a_carving(tmp_path):
    rows = [{"prompt": f"p{n // 4}", "completion": f"c{n}"} for n in range(80)]
    task = load_task(folder_of(tmp_path, train=rows), kind="causal_lm")
    assert not {*task.train.texts} & {*task.search.texts}
    assert not any(task.overlap.values())


def test_texts_without_a_prompt_are_told_apart_by_themselves(tmp_path):
    task = load_task(folder_of(tmp_path, train=[{"text": f"story {n // 2}"} for n in range(60)]), kind="causal_lm")
    assert not {*task.train.targets} & {*task.search.targets}


def test_a_split_of_sequences_hashes_its_targets():
    one, other = (rows_of("causal_lm", [("a",), ("b",)], targets) for targets in (["x", "y"], ["x", "z"]))
    assert one.digest != other.digest
    assert one.select([1]).targets == ("y",)
    assert one.facts(()) == {"rows": 2, "sha256": one.digest}
    with pytest.raises(ValueError, match="2 rows of text, 1 targets"):
        rows_of("causal_lm", [("a",), ("b",)], ["x"])


def test_there_is_no_majority_of_texts(tmp_path):
    task = load_task(write_texts(tmp_path, "prompts", train=30), kind="causal_lm")
    assert task.majority is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [USER]}, "must end with a message of the assistant"),
        ({"messages": [BOT]}, "after at least one other"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "has the role 'robot'"),
        ({"messages": [USER, {"role": "assistant"}]}, "must have a role and a content"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "content' is empty"),
    ],
)
def test_a_chat_that_cannot_be_learnt_from_is_named_with_its_line(tmp_path, row, said):
    folder = folder_of(tmp_path, train=[{"messages": [USER, BOT]}] * 9 + [row])
    with pytest.raises(DataError, match=rf"train.jsonl:10: .*{said}"):
        load_task(folder, kind="causal_lm")


def test_tags_that_do_not_fit_their_words_are_named_with_their_line(tmp_path):
    good = [{"tokens": ["a", f"b{n}"], "tags": ["O", "X"]} for n in range(10)]
    with pytest.raises(DataError, match=r"train.jsonl:11: 'tags' must be a list of 2 tags"):
        load_task(
            folder_of(tmp_path, train=[*good, {"tokens": ["a", "b"], "tags": ["O"]}]), kind="token_classification"
        )


def test_tags_may_be_numbers_and_outside_comes_first(tmp_path):
    rows = [{"tokens": ["a", f"b{n}"], "tags": ["X", "O"]} for n in range(20)]
    task = load_task(folder_of(tmp_path / "names", train=rows), kind="token_classification")
    assert task.labels == ("O", "X")
    assert task.train.targets[0] == [1, 0]
    rows = [{"tokens": ["a", f"b{n}"], "tags": [10, 2]} for n in range(20)]
    task = load_task(folder_of(tmp_path / "numbers", train=rows), kind="token_classification")
    assert task.labels == ("2", "10")
    assert task.train.targets[0] == [1, 0]


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_only_the_completion_and_the_end_are_predicted():
    encoded = encode(rows_of("causal_lm", [("good word1",)], ["bad word2"]), TOKENIZER, max_length=16)
    assert words(encoded[0]["input_ids"]) == "good word1 bad word2 [EOS]"
    assert predicted(encoded[0]) == "bad word2 [EOS]"
    assert encoded[0]["attention_mask"] == [1] * 5


def test_a_text_without_a_prompt_is_predicted_whole():
    encoded = encode(rows_of("causal_lm", [()], ["bad word2"]), TOKENIZER, max_length=16)
    assert predicted(encoded[0]) == "bad word2 [EOS]"


def test_a_prompt_loses_its_beginning_and_the_completion_nothing():
    encoded = encode(rows_of("causal_lm", [("good word1 word2 word3",)], ["bad word2"]), TOKENIZER, max_length=5)
    assert words(encoded[0]["input_ids"]) == "word2 word3 bad word2 [EOS]"
    assert encoded.truncated == 1


def test_a_completion_that_does_not_fit_is_refused_with_its_place():
    rows = rows_of("causal_lm", [("good",), ("good",)], ["bad", "bad word1 word2 word3"])
    with pytest.raises(DataError, match=r"train\[1\]: its completion has 5 tokens, with room for 5 in all"):
        encode(rows, TOKENIZER, max_length=5)


@given(st.integers(0, 12), st.integers(1, 8), st.integers(2, 14), st.booleans())
def test_what_is_kept_of_a_prompt_is_its_end_after_the_token_that_begins_texts(prompt, completion, limit, begins):
    ids, own = [*range(100, 100 + prompt)], [*range(completion)]
    first = 100 if begins else None
    if completion + min(1, prompt) > limit:
        with pytest.raises(DataError, match="never cut"):
            fitted("x", ids, own, limit, first)
        return
    kept = fitted("x", ids, own, limit, first)
    assert len(kept) == min(prompt, limit - completion)
    if begins and len(kept) > 1:
        assert kept[0] == 100
        assert kept[1:] == ids[len(ids) - len(kept) + 1 :]
    else:
        assert kept == ids[len(ids) - len(kept) :]


def test_of_a_chat_only_the_last_message_is_predicted():
    chat = [USER, BOT, {"role": "user", "content": "word1"}, {"role": "assistant", "content": "bad word2"}]
    encoded = encode(rows_of("causal_lm", [()], [chat]), TOKENIZER, max_length=32)
    assert words(encoded[0]["input_ids"]).startswith("[CLS] good [SEP] fine [EOS] [CLS] word1 [SEP]")
    assert predicted(encoded[0]) == "bad word2 [EOS]"


def test_a_chat_without_a_template_or_with_one_that_looks_ahead_is_refused():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        chat_ids("train[0]", word_tokenizer(), [USER, BOT])
    other = tiny_tokenizer(writes=True)
    other.chat_template = (
        "{{ 'good' if messages|length > 1 else 'bad' }} {% for m in messages %}{{ m.content }} {% endfor %}"
    )
    with pytest.raises(DataError, match=r"train\[0\]: the chat template writes the messages before the last one"):
        chat_ids("train[0]", other, [USER, BOT])


def test_each_choice_follows_the_prompt_and_only_it_is_scored():
    split = Split("train", (("good word1", "bad", "fine word2"),), np.array([1]), "choice_likelihood")
    encoded = encode(split, TOKENIZER, max_length=8)
    assert [words(ids) for ids in encoded[0]["input_ids"]] == ["good word1 bad", "good word1 fine word2"]
    assert [sum(i != IGNORED for i in ids) for ids in encoded[0]["labels"]] == [1, 2]
    assert encoded.lengths.tolist() == [4]
    assert encoded.truncated == 0
    assert encode(split, TOKENIZER, max_length=4).truncated == 0
    assert encode(replace(split, texts=(("good " * 5, "bad", "fine"),)), TOKENIZER, max_length=4).truncated == 1


def test_targets_end_with_the_token_that_ends_texts_once():
    assert target_ids(TOKENIZER, "good")[-1:] == [EOS]
    assert target_ids(TOKENIZER, "good [EOS]").count(EOS) == 1
    with pytest.raises(DataError, match="has no token that ends a text"):
        target_ids(word_tokenizer(), "a")


def test_sources_are_cut_and_targets_are_not():
    rows = rows_of("text_to_text", [("good " + "word1 " * 9,)], ["bad word2"])
    encoded = encode(rows, TOKENIZER, max_length=5)
    assert len(encoded[0]["input_ids"]) == 5
    assert words(encoded[0]["labels"]) == "bad word2 [EOS]"
    assert encoded.truncated == 1
    with pytest.raises(DataError, match="target has 6 tokens"):
        encode(rows_of("text_to_text", [("good",)], ["bad " * 5]), TOKENIZER, max_length=5)


def test_the_first_token_of_a_word_has_its_tag():
    tokenizer = word_tokenizer()
    rows = rows_of("token_classification", [("one two", "red", "four")], [[1, 0, 2]])
    encoded = encode(rows, tokenizer, max_length=16)
    assert encoded[0]["labels"] == [IGNORED, 1, IGNORED, 0, 2, IGNORED]
    assert encode(rows, tokenizer, max_length=5).truncated == 1


@pytest.mark.parametrize("kind", ["prompts", "chats", "choices", "tags"])
def test_what_the_cache_gives_back_is_what_was_encoded(tmp_path: Path, kind):
    kinds = {"choices": "choice_likelihood", "tags": "token_classification"}
    task = load_task(write_texts(tmp_path / "data", kind, train=30), kind=kinds.get(kind, "causal_lm"))
    first, again = (encode_cached(task.train, TOKENIZER, max_length=32, cache_dir=tmp_path / "c") for _ in range(2))
    assert len([*(tmp_path / "c").iterdir()]) == 1
    assert again.features == first.features == encode(task.train, TOKENIZER, max_length=32).features


def test_another_chat_template_is_another_encoding(tmp_path):
    rows, other = rows_of("causal_lm", [()], [[USER, BOT]]), tiny_tokenizer(writes=True)
    other.chat_template = other.chat_template.replace("[CLS] ", "")
    for tokenizer in (TOKENIZER, other):
        encode_cached(rows, tokenizer, max_length=16, cache_dir=tmp_path)
    assert len([*tmp_path.iterdir()]) == 2
