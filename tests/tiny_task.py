"""A task that a tiny model learns in seconds, and tiny models saved with a tokenizer: studies without downloads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, Whitespace
from transformers import PreTrainedTokenizerFast

from tiny_models import tiny_model

FILLERS = [f"word{i}" for i in range(20)]
GOOD, BAD = ["good", "fine", "great"], ["bad", "poor", "awful"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLERS]


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '[CLS] ' if m.role == 'user' else '[SEP] ' }}{{ m.content }}"
    "{% if m.role == 'assistant' %} [EOS]{% endif %} {% endfor %}{% if add_generation_prompt %}[SEP] {% endif %}"
)


def tiny_tokenizer(*, writes: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; one that ``writes`` has a token that ends texts and a chat template."""
    if writes:
        tokenizer = Tokenizer(
            WordLevel({word: i for i, word in enumerate([*WORDS[:1], "[EOS]", *WORDS[1:]])}, unk_token="[UNK]")
        )
        tokenizer.pre_tokenizer = Split(" ", "removed")
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, chat_template=CHAT_TEMPLATE)
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save_tiny_model(folder: Path, name: str = "bert", **changes: object) -> Path:
    """Save a random tiny model without a head, and its tokenizer, as a pretrained model's folder."""
    tiny_model(name, head="base", **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_writer(folder: Path, name: str, **changes: object) -> Path:
    """Save a random tiny model that writes texts (t5, bart, llama, gpt2), and its tokenizer."""
    tiny_model(name, head="lm", **changes).save_pretrained(folder)
    tiny_tokenizer(writes=True).save_pretrained(folder)
    return folder


def write_texts(folder: Path, kind: str, *, train: int = 120, validation: int = 30) -> Path:
    """Write a data folder whose targets are texts, choices or tags that follow from what is given.

    ``prompts``: a text is answered by its first word, then by whether it is good; ``chats``: likewise; ``stories``:
    good words follow good ones; ``choices``: which word continues; ``tags``: each word is good, bad or neither;
    ``answers``: the first word of a text that is good or bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, n in (("train", train), ("validation", validation)):
        lines = [json.dumps(_written(kind, rng)) for _ in range(n)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _written(kind: str, rng: np.random.Generator) -> dict[str, object]:
    label = int(rng.integers(2))
    text = _text([(BAD, GOOD)[label]] * 2, rng)
    answer = f"{text.split()[0]} {('bad', 'good')[label]}"
    match kind:
        case "prompts":
            return {"prompt": text, "completion": answer}
        case "chats":
            asked, answered = {"role": "user", "content": text}, {"role": "assistant", "content": answer}
            return {"messages": [asked, answered]}
        case "stories":
            return {"text": " ".join(str(w) for w in rng.choice((BAD, GOOD)[label], size=int(rng.integers(3, 8))))}
        case "choices":
            return {"prompt": text, "choice1": "bad", "choice2": "good", "label": label}
        case "tags":
            words = text.split()
            return {"tokens": words, "tags": ["O" if w in FILLERS else "G" if w in GOOD else "B" for w in words]}
        case "answers":
            first = next(w for w in text.split() if w in (*GOOD, *BAD))
            answers = {"text": [first], "answer_start": [text.index(first)]}
            return {"question": "word1 word2", "context": text, "answers": answers}
        case _:
            raise ValueError(f"no kind {kind!r}")


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
