"""Answers in contexts: rows, tokens, the scores of SQuAD, and the objective."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from peftscout.errors import DataError
from peftscout.tasks import Split, compute_metrics, encode, load_task
from peftscout.tasks.row_statistics import column
from peftscout.tasks.sequences import IGNORED
from peftscout.tasks.spans import exact_and_f1
from peftscout.training.objectives.spans import Spans
from tiny_models import tiny_config
from tiny_task import tiny_tokenizer, write_texts


def pair_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)],
    )
    return tokenizer


TOKENIZER = pair_tokenizer()


def rows(*targets, context: str = "good word1 bad word2", question: str = "word3") -> Split:
    texts = tuple((question, context) for _ in targets)
    return Split("train", texts, np.zeros(len(targets), dtype=np.int64), "question_answering", targets)


def test_labels_are_the_context_and_then_every_accepted_answer():
    encoded = encode(rows([[5, 14], [0, 4]], []), TOKENIZER, max_length=16)
    assert encoded[0]["labels"] == [3, 6, 4, 5, 3, 3]
    assert encoded[1]["labels"] == [3, 6, 0, 0]
    assert encoded.truncated == 0


def test_an_answer_that_was_cut_away_is_not_learnt_and_counts_as_wrong():
    encoded = encode(rows([[15, 20]]), TOKENIZER, max_length=7)
    assert encoded[0]["labels"] == [3, 5, IGNORED, IGNORED]
    assert encoded.truncated == 1
    objective = Spans(("word_f1",), tokenizer=TOKENIZER, unanswerable=False)
    found = objective.predictions(*objective.score(Fixed(torch.zeros(1, 7, 2)), batch_of(encoded)))
    assert column(found, "exact").tolist() == column(found, "tokens").tolist() == [0.0]
    assert column(found, "nll").tolist() == [0.0]


def test_a_question_that_fills_the_limit_is_refused():
    with pytest.raises(DataError, match=r"train\[0\]: the question leaves no room"):
        encode(rows([[0, 4]], question="word1 " * 9), TOKENIZER, max_length=8)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"text": ["bad"], "answer_start": [0]}, "'bad' does not stand at character 0"),
        ({"text": ["bad"], "answer_start": []}, "lists of equal length"),
        ("bad", "must have a text and an answer_start"),
        ({"text": [3], "answer_start": [0]}, "must hold texts and whole numbers"),
    ],
)
def test_answers_that_cannot_be_are_named_with_their_line(tmp_path, answers, said):
    good = {"question": "q", "context": "good bad", "answers": {"text": ["good"], "answer_start": [0]}}
    data = [{**good, "context": f"good bad {n}"} for n in range(9)]
    lines = [json.dumps(row) for row in [*data, {**good, "answers": answers}]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"train.jsonl:10: .*{said}"):
        load_task(tmp_path, kind="question_answering")


def test_columns_of_squad_are_found_and_others_can_be_named(tmp_path):
    task = load_task(write_texts(tmp_path, "answers", train=40), kind="question_answering")
    assert task.columns == {"texts": [["question"], ["context"]], "label": "answers"}
    assert task.metrics == ("word_f1", "exact_match")
    with pytest.raises(DataError, match="no column 'ask'"):
        load_task(tmp_path, kind="question_answering", text="ask")


@pytest.mark.parametrize(
    ("predicted", "accepted", "expected"),
    [
        ("The Cat!", ["cat"], (1.0, 1.0)),
        ("black cat", ["cat", "black"], (0.0, 2 / 3)),
        ("", [""], (1.0, 1.0)),
        ("dog", [""], (0.0, 0.0)),
        ("dog", [], (0.0, 0.0)),
        ("cat cat", ["cat"], (0.0, 2 / 3)),
    ],
)
def test_scores_are_those_of_squad(predicted, accepted, expected):
    assert exact_and_f1(predicted, accepted) == pytest.approx(expected)


class Fixed:
    """A model with given logits ``[B, S, 2]``."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, **inputs):
        assert "labels" not in inputs
        return type("Out", (), {"start_logits": self.logits[..., 0], "end_logits": self.logits[..., 1]})


def batch_of(encoded) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([f[name] for f in encoded.features]) for name in encoded[0]}


def test_the_best_answer_is_in_the_context_in_order_and_short_enough():
    objective = Spans((), tokenizer=TOKENIZER, unanswerable=False)
    logits = torch.zeros(60, 2)
    logits[0] = 99.0
    logits[50, 0], logits[10, 1] = 5.0, 5.0
    logits[12, 0], logits[45, 1] = 4.0, 4.0
    logits[20, 0], logits[24, 1] = 3.0, 3.5
    assert objective.best(logits, 5, 55) == (12, 24), "not 50 to 10, which is backwards, nor 12 to 45, which is long"
    assert Spans((), tokenizer=TOKENIZER, unanswerable=True).best(logits, 5, 55) == (0, 0)


def test_padding_changes_neither_loss_nor_answer():
    encoded = encode(rows([[5, 14]], [[0, 4]]), TOKENIZER, max_length=16)
    batch, objective = batch_of(encoded), Spans((), tokenizer=TOKENIZER, unanswerable=False)
    logits = torch.randn(2, batch["input_ids"].shape[1], 2)
    wide = {n: torch.nn.functional.pad(t, (0, 5)) if n != "labels" else t for n, t in batch.items()}
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 5), value=3.0)
    one, other = objective.score(Fixed(logits), batch)[0], objective.score(Fixed(padded), wide)[0]
    assert torch.allclose(one, other)


def test_the_loss_is_that_of_transformers_and_a_right_answer_scores_one():
    from transformers import AutoModelForQuestionAnswering

    encoded = encode(rows([[5, 14]], [[0, 4]]), TOKENIZER, max_length=16)
    batch = batch_of(encoded)
    model = AutoModelForQuestionAnswering.from_config(tiny_config("bert")).eval()
    objective = Spans(("word_f1", "exact_match"), tokenizer=TOKENIZER, unanswerable=False)
    inputs = objective.inputs(batch)
    expected = model(**inputs, start_positions=batch["labels"][:, 2], end_positions=batch["labels"][:, 3]).loss.item()
    assert objective.loss(*objective.train(model, batch)).item() == pytest.approx(expected, rel=1e-5)
    logits = torch.zeros(2, batch["input_ids"].shape[1], 2)
    logits[0, 4, 0] = logits[0, 5, 1] = logits[1, 3, 0] = logits[1, 4, 1] = 9.0
    found = objective.predictions(*objective.score(Fixed(logits), batch))
    metrics = compute_metrics(objective.metrics, found, np.zeros(2))
    assert metrics == pytest.approx({"word_f1": (1 + 2 / 3) / 2, "exact_match": 0.5})
