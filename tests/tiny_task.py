"""A task that a tiny model learns in seconds, and tiny models saved with a tokenizer: studies without downloads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tiny_models import tiny_model

FILLERS = [f"word{i}" for i in range(20)]
GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "awful"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLERS]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_tiny_model(folder: Path, name: str = "bert") -> Path:
    """Save a random tiny model without a head, and its tokenizer, as a pretrained model's folder."""
    tiny_model(name, head="base").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_task(folder: Path, *, kind: str = "classification", train: int = 200, validation: int = 60) -> Path:
    """Write a data folder: whether a text says good or bad things; how good; or which of two texts is the good one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("validation", validation)):
        lines = [json.dumps(_row(kind, rng)) for _ in range(n)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _row(kind: str, rng: np.random.Generator) -> dict[str, object]:
    label = int(rng.integers(2))
    if kind == "regression":
        good = int(rng.integers(0, 5))
        return {"text": _text([GOOD] * good + [BAD] * (4 - good), rng), "label": good / 2 + float(rng.normal(0, 0.05))}
    if kind == "multiple_choice":
        choices = [_text([GOOD if i == label else BAD] * 2, rng) for i in range(2)]
        return {"premise": "word1", "choice1": choices[0], "choice2": choices[1], "question": "effect", "label": label}
    return {"text": _text([(BAD, GOOD)[label]] * 2, rng), "label": ("bad", "good")[label]}


def _text(kinds: list[list[str]], rng: np.random.Generator) -> str:
    words = [str(rng.choice(kind)) for kind in kinds] + [
        str(w) for w in rng.choice(FILLERS, size=int(rng.integers(2, 9)))
    ]
    return " ".join(rng.permutation(words))
