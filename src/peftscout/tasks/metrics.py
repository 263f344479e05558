"""Metrics of the field, by name; higher is better for every one, and none is ever NaN."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sk

from peftscout.errors import DataError, nearest
from peftscout.tasks.recipes import READ_AS, Kind
from peftscout.tasks.row_statistics import GENERATED, SEQUENCE

Numbers = npt.NDArray[Any]
Metric = Callable[[Numbers, Numbers], float]
"""(references, predictions) -> score, in the order of scikit-learn."""


def _f1(references: Numbers, predictions: Numbers) -> float:
    return float(sk.f1_score(references, predictions, average="binary", pos_label=1, zero_division=0))


def _macro_f1(references: Numbers, predictions: Numbers) -> float:
    return float(sk.f1_score(references, predictions, average="macro", zero_division=0))


def _constant(values: Numbers) -> bool:
    """Whether all values are one: it predicts nothing, and correlations with it are not defined."""
    return bool(np.ptp(values) == 0)


def _matthews(references: Numbers, predictions: Numbers) -> float:
    if _constant(references) or _constant(predictions):
        return 0.0
    return float(sk.matthews_corrcoef(references, predictions))


def _r2(references: Numbers, predictions: Numbers) -> float:
    return float(sk.r2_score(references, predictions)) if len(references) > 1 else 0.0


def _correlation(statistic: Callable[..., Any]) -> Metric:
    def correlation(references: Numbers, predictions: Numbers) -> float:
        if _constant(references) or _constant(predictions):
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # nearly constant input: handled below
            value = float(statistic(references, predictions).statistic)
        return value if np.isfinite(value) else 0.0

    return correlation


CLASSIFICATION: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "accuracy": lambda references, predictions: float(np.mean(references == predictions)),
        "f1": _f1,
        "macro_f1": _macro_f1,
        "matthews": _matthews,
    }
)
"""Metrics over class ids. ``f1`` takes class 1 as the positive one; ``macro_f1`` is the plain mean over classes."""

REGRESSION: MappingProxyType[str, Metric] = MappingProxyType(
    {
        "spearman": _correlation(stats.spearmanr),
        "pearson": _correlation(stats.pearsonr),
        "r2": _r2,
        "neg_mean_squared_error": lambda r, p: -float(sk.mean_squared_error(r, p)),
        "neg_mean_absolute_error": lambda r, p: -float(sk.mean_absolute_error(r, p)),
    }
)
"""Metrics over numbers. Correlations with a constant are 0."""

_DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("spearman", "pearson"),
    "multiple_choice": ("accuracy",),
    "text_to_text": ("exact_match", "token_accuracy", "neg_loss"),
    "causal_lm": ("neg_loss", "neg_perplexity", "token_accuracy"),
    "token_classification": ("token_f1", "token_accuracy"),
    "question_answering": ("word_f1", "exact_match"),
}

_CHOICES: dict[Kind, tuple[str, ...]] = {
    "regression": tuple(REGRESSION),
    "text_to_text": ("exact_match", "token_accuracy", "neg_loss", "neg_perplexity", *GENERATED),
    "causal_lm": ("neg_loss", "neg_perplexity", "token_accuracy", "exact_match"),
    "token_classification": ("token_f1", "token_accuracy", "neg_loss"),
    "question_answering": ("word_f1", "exact_match", "neg_loss"),
}
"""The metrics that may be named, by kind; `CLASSIFICATION` for the others."""

_PACKAGES = {"bleu": "sacrebleu", **dict.fromkeys(("rouge1", "rouge2", "rougeL"), "rouge_score")}
"""Packages of optional metrics, by import name."""


def kind_of_metric(name: str | None) -> Kind | None:
    """Return ``regression`` for a metric that only numbers have, else ``None``: the data decide."""
    return "regression" if name in REGRESSION else None


def metrics_for(kind: Kind, classes: int, main: str | None, usual: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the metrics of a task, the main one first.

    Args:
        kind: what is predicted.
        classes: number of classes; 0 for regression.
        main: the main metric, when the user names one.
        usual: the metrics of the recipe; by default those usual for the kind.

    Raises:
        DataError: when ``main`` is unknown, does not fit the kind, or needs a package that is not installed.
    """
    kind = READ_AS.get(kind, kind)
    names = tuple(usual) or _DEFAULTS[kind]
    if main is None:
        return names
    known = _CHOICES.get(kind, tuple(CLASSIFICATION))
    if main not in known:
        raise DataError(
            f"metric {main!r}: not a metric of {kind.replace('_', ' ')}{nearest(main, known)}; "
            f"choose from {', '.join(known)}"
        )
    if main == "f1" and (kind != "classification" or classes != 2):
        raise DataError(f"metric 'f1': is for two classes, the task has {classes} choices or classes; use 'macro_f1'")
    if main in _PACKAGES and find_spec(_PACKAGES[main]) is None:
        raise DataError(f"metric {main!r}: needs the package {_PACKAGES[main]}; pip install 'peftscout[text]'")
    return (main, *(name for name in names if name != main))


def compute_metrics(names: Sequence[str], predictions: npt.ArrayLike, references: npt.ArrayLike) -> dict[str, float]:
    """Score predictions; higher is better for each metric.

    Args:
        names: metrics, see `CLASSIFICATION`, `REGRESSION` and `SEQUENCE`.
        predictions: class ids or numbers, shape (rows,); for `SEQUENCE` metrics statistics, see `row_statistics`.
        references: the truth, shape (rows,).

    Raises:
        DataError: on an unknown metric.
        ValueError: when shapes differ, there are no rows, or a number is not finite.
    """
    predicted, truth = np.asarray(predictions), np.asarray(references)
    if truth.ndim != 1 or len(predicted) != len(truth) or not predicted.size:
        raise ValueError(
            f"predictions {predicted.shape} and references {truth.shape}: two equal, non-empty rows needed"
        )
    known = {**CLASSIFICATION, **REGRESSION, **SEQUENCE}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"metric {unknown[0]!r}: unknown{nearest(unknown[0], known)}; choose from {', '.join(known)}")
    predicted, truth = (x.astype(np.float64) if x.dtype.kind == "f" else x for x in (predicted, truth))
    if not (np.isfinite(predicted).all() and np.isfinite(truth).all()):
        raise ValueError("predictions or references are not finite")
    return {name: known[name](truth, predicted) for name in names}
