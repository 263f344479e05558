"""Scores of predicted sequences as sums over rows: what each row adds is kept, so that rows can be drawn again.

A prediction of these kinds of tasks is a row of numbers, `COLUMNS`. Every metric is a function of their sums, as exact
on a bootstrap sample of the rows as on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Statistics = npt.NDArray[Any]
"""One row of `COLUMNS` for each row of the split, ``[rows, len(COLUMNS)]``."""

BLEU_COLUMNS = (
    "bleu_length",
    "bleu_reference",
    *(f"bleu_{what}{n}" for what in ("match", "total") for n in range(1, 5)),
)
"""Tokens of prediction and reference, and matched and all n-grams (Papineni et al. 2002)."""

COLUMNS = (
    "nll", "tokens", "right", "exact", "f1", "hits", "found", "wanted", "rouge1", "rouge2", "rougeL", *BLEU_COLUMNS,
)  # fmt: skip
"""Summed negative log-likelihood of the target's tokens, their number, how many were predicted right, whether all were;
F1 of words; marked tokens that were hit, found and wanted; ROUGE F-measures; the counts of BLEU. What is not computed
is 0."""

_AT = {name: i for i, name in enumerate(COLUMNS)}

GENERATED = ("rouge1", "rouge2", "rougeL", "bleu")
"""Metrics of texts that the model has to generate first."""


def statistics(rows: int, **columns: npt.ArrayLike) -> Statistics:
    """Return the statistics of ``rows`` rows from some columns by name, ``[rows]`` each; the others are 0."""
    out = np.zeros((rows, len(COLUMNS)), dtype=np.float64)
    for name, values in columns.items():
        out[:, _AT[name]] = values
    return out


def column(of: Statistics, name: str) -> Statistics:
    """Return one column by name."""
    return of[:, _AT[name]]


def _total(of: Statistics, name: str) -> float:
    return float(column(of, name).sum())


def _loss(of: Statistics) -> float:
    return _total(of, "nll") / max(1.0, _total(of, "tokens"))


def _token_f1(of: Statistics) -> float:
    marked = _total(of, "found") + _total(of, "wanted")
    return 2 * _total(of, "hits") / marked if marked else 0.0


def _bleu(of: Statistics) -> float:
    """Corpus BLEU from the summed counts, exponential smoothing, from 0 to 1."""
    from sacrebleu.metrics import BLEU

    sums = {name: int(_total(of, name)) for name in BLEU_COLUMNS}
    score = BLEU.compute_bleu(
        [sums[f"bleu_match{n}"] for n in range(1, 5)],
        [sums[f"bleu_total{n}"] for n in range(1, 5)],
        sums["bleu_length"],
        sums["bleu_reference"],
    )
    return float(score.score) / 100


def _mean(name: str) -> Callable[[Statistics, Statistics], float]:
    return lambda references, of: float(column(of, name).mean())


SEQUENCE: Mapping[str, Callable[[Statistics, Statistics], float]] = MappingProxyType(
    {
        "neg_loss": lambda references, of: -_loss(of),
        "neg_perplexity": lambda references, of: -float(np.exp(min(_loss(of), 700.0))),
        "token_accuracy": lambda references, of: _total(of, "right") / max(1.0, _total(of, "tokens")),
        "exact_match": _mean("exact"),
        "word_f1": _mean("f1"),
        "token_f1": lambda references, of: _token_f1(of),
        "rouge1": _mean("rouge1"),
        "rouge2": _mean("rouge2"),
        "rougeL": _mean("rougeL"),
        "bleu": lambda references, of: _bleu(of),
    }
)
"""Metrics over statistics. Losses and perplexities are negated: higher is better."""
