"""ROUGE and BLEU by the packages of the field, where they are installed; what is said where they are not."""

from __future__ import annotations

import numpy as np
import pytest

from peftscout.errors import DataError
from peftscout.tasks import compute_metrics, metrics
from peftscout.tasks.metrics import metrics_for
from peftscout.tasks.row_statistics import statistics
from peftscout.training.objectives.text_scores import bleu_columns, rouge_columns

PREDICTED = ["the cat sat on the mat", "a dog", "rain falls down here again"]
TRUE = ["the cat sat on a mat", "a dog ran", "rain falls down here again"]


@pytest.mark.parametrize(("metric", "package"), [("rougeL", "rouge_score"), ("bleu", "sacrebleu")])
def test_a_metric_whose_package_is_absent_names_what_to_install(metric, package, monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=rf"metric '{metric}': needs the package {package}; pip install 'peftscout\[text\]'"
    ):
        metrics_for("text_to_text", 0, metric)


def test_a_metric_whose_package_is_there_comes_first(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    assert metrics_for("text_to_text", 0, "rougeL")[:2] == ("rougeL", "exact_match")


def test_rouge_is_that_of_the_package():
    pytest.importorskip("rouge_score", reason="rouge-score is not installed (extra: text)")
    of = statistics(3, **rouge_columns(PREDICTED, TRUE))
    found = compute_metrics(("rouge1", "rouge2", "rougeL"), of, np.zeros(3))
    assert 0 < found["rouge2"] <= found["rougeL"] <= found["rouge1"] < 1


def test_bleu_from_summed_counts_is_bleu_of_the_corpus():
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed (extra: text)")
    of = statistics(3, **bleu_columns(PREDICTED, TRUE))
    expected = sacrebleu.corpus_bleu(PREDICTED, [TRUE]).score / 100
    assert compute_metrics(("bleu",), of, np.zeros(3))["bleu"] == pytest.approx(expected)
