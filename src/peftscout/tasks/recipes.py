"""GLUE and SuperGLUE as data: where they are, which columns are the texts, label names, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, get_args

Kind = Literal[
    "classification",
    "regression",
    "multiple_choice",
    "labels_as_text",
    "choice_likelihood",
    "text_to_text",
    "causal_lm",
    "token_classification",
    "question_answering",
]
"""What is predicted, and how. By a head: one of some classes, a number, which of the choices of the row. By the
likelihood of texts: a class by the text of its label (encoder-decoders), one of the choices (decoders). A text after a
text (encoder-decoders) or after a prompt (decoders); the tag of every word; the part of a context that answers."""

KINDS: tuple[Kind, ...] = get_args(Kind)

HEAD_KINDS: tuple[Kind, ...] = ("classification", "regression", "multiple_choice")
"""Kinds with one prediction a row from a head; their rows are padded as the tokenizer says, all others on the right."""

READ_AS: Mapping[Kind, Kind] = MappingProxyType(
    {"labels_as_text": "classification", "choice_likelihood": "multiple_choice"}
)
"""Kinds that differ from another one only in how the model predicts: the same rows, labels and metrics."""

SEQUENCE_KINDS: tuple[Kind, ...] = ("text_to_text", "causal_lm", "token_classification", "question_answering")
"""Kinds whose target is a sequence, see `Split.targets`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which columns make the texts and the label of a row.

    Attributes:
        texts: for each text of a row the columns that are joined to it: one text, a pair, or for multiple choice the
            prompt and then the choices.
        label: the column of the label.
        choices: a column whose rows are lists of texts: choices, instead of one column a choice, or words.
        multiple_choice: whether the texts are a prompt and its choices.
        joiner: what stands between the columns of one text.
        wording: by column, the text that stands for each of its values.
    """

    texts: tuple[tuple[str, ...], ...]
    label: str
    choices: str | None = None
    multiple_choice: bool = False
    joiner: str = " "
    wording: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is read, the label last."""
        listed = (self.choices,) if self.choices else ()
        return (*dict.fromkeys(column for text in self.texts for column in text), *listed, self.label)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One known task.

    Attributes:
        name: short name.
        hub: data set and configuration on the Hugging Face hub.
        layout: its columns.
        labels: class names by class id; empty for regression.
        metrics: the metrics that the benchmark reports; the first one is the main metric.
        validation: name of the validation split.
        unmistakable: whether the columns alone tell that it is this task.
    """

    name: str
    hub: tuple[str, str]
    layout: Layout
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    validation: str = "validation"
    unmistakable: bool = False

    @property
    def kind(self) -> Kind:
        """What is predicted."""
        if self.layout.multiple_choice:
            return "multiple_choice"
        return "classification" if self.labels else "regression"


def _texts(*columns: str) -> Layout:
    return Layout(tuple((column,) for column in columns), "label")


_GLUE, _SUPER_GLUE = "nyu-mll/glue", "aps/super_glue"
_COPA = Layout(
    (("premise", "question"), ("choice1",), ("choice2",)),
    "label",
    multiple_choice=True,
    wording={"question": {"cause": "What was the cause of this?", "effect": "What happened as a result?"}},
)
_WIC = Layout((("word", "sentence1"), ("sentence2",)), "label", joiner=": ")
_MNLI = ("entailment", "neutral", "contradiction")

# Metrics as in Wang et al. 2018 (GLUE) and 2019 (SuperGLUE). Where two are reported: accuracy comes first for MRPC, QQP
# and CB, Spearman before Pearson for STS-B, the choices of AutoPEFT; BIPEFT has F1 and Pearson first (metric="f1").
_RECIPES = (
    Recipe("cola", (_GLUE, "cola"), _texts("sentence"), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
    Recipe("sst2", (_GLUE, "sst2"), _texts("sentence"), ("negative", "positive")),
    Recipe("mrpc", (_GLUE, "mrpc"), _texts("sentence1", "sentence2"), ("not_equivalent", "equivalent"),
           ("accuracy", "f1")),
    Recipe("qqp", (_GLUE, "qqp"), _texts("question1", "question2"), ("not_duplicate", "duplicate"),
           ("accuracy", "f1")),
    Recipe("stsb", (_GLUE, "stsb"), _texts("sentence1", "sentence2"), (), ("spearman", "pearson")),
    Recipe("mnli", (_GLUE, "mnli"), _texts("premise", "hypothesis"), _MNLI, validation="validation_matched"),
    Recipe("mnli_matched", (_GLUE, "mnli"), _texts("premise", "hypothesis"), _MNLI, validation="validation_matched"),
    Recipe("mnli_mismatched", (_GLUE, "mnli"), _texts("premise", "hypothesis"), _MNLI,
           validation="validation_mismatched"),
    Recipe("qnli", (_GLUE, "qnli"), _texts("question", "sentence"), ("entailment", "not_entailment")),
    Recipe("rte", (_GLUE, "rte"), _texts("sentence1", "sentence2"), ("entailment", "not_entailment")),
    Recipe("wnli", (_GLUE, "wnli"), _texts("sentence1", "sentence2"), ("not_entailment", "entailment")),
    Recipe("boolq", (_SUPER_GLUE, "boolq"), _texts("question", "passage"), ("false", "true")),
    Recipe("cb", (_SUPER_GLUE, "cb"), _texts("premise", "hypothesis"), ("entailment", "contradiction", "neutral"),
           ("accuracy", "macro_f1")),
    Recipe("copa", (_SUPER_GLUE, "copa"), _COPA, ("choice1", "choice2"), unmistakable=True),
    Recipe("wic", (_SUPER_GLUE, "wic"), _WIC, ("false", "true"), unmistakable=True),
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _RECIPES})
"""The known tasks by short name."""


def find_recipe(name: str) -> Recipe | None:
    """Return the recipe behind a name such as ``rte``, ``SST-2``, ``glue/rte`` or ``aps/super_glue/boolq``."""
    *hub, short = name.lower().split("/")
    recipe = RECIPES.get(short) or RECIPES.get(short.replace("-", "").replace("_", ""))
    if recipe is None:
        return None
    known = recipe.hub[0]
    return recipe if "/".join(hub) in ("", known, known.split("/")[1]) else None
