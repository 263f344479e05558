"""What is trained in the speed benchmarks: models of known shapes with random weights, rows of known lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, BertConfig, BertModel

from peftscout.backbone import quiet_loading
from peftscout.demo import model_path
from peftscout.plan import Plan

MAX_LENGTH = 128
"""AutoPEFT's; longer rows are cut for every variant."""

RANK = 8

SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}

ROWS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("tiny", "rte"): (64, 16),
    ("tiny", "sst2"): (64, 16),
    ("minilm", "rte"): (256, 64),
    ("minilm", "sst2"): (512, 128),
    ("base", "rte"): (128, 32),
    ("base", "sst2"): (256, 64),
}
"""Training and evaluation rows by shape and lengths: one epoch takes the slowest variant one to two minutes."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


QUANTILES: Mapping[str, Sequence[int]] = {
    "rte": _numbers(
        "13 24 27 30 31 33 34 36 37 38 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 56 57 58 59 61 62 64 66 "
        "68 70 72 77 82 88 95 103 111 117 123 128 128 128 128 128 128 128"
    ),
    "sst2": _numbers(
        "3 3 4 4 4 4 5 5 5 5 5 6 6 6 7 7 7 7 8 8 8 9 9 9 10 10 11 11 12 12 13 13 14 14 15 16 16 17 18 19 20 "
        "21 22 24 25 27 29 32 35 40 66"
    ),
}
"""Every second percentile, from 0 to 100, of tokens per training row: special tokens included, cut at `MAX_LENGTH`, of
MiniLM's tokenizer (BERT's uncased vocabulary). They stand in where the data are not at hand."""

_TEXTS: Mapping[str, Sequence[str]] = {"rte": ("sentence1", "sentence2"), "sst2": ("sentence",)}


@dataclass(frozen=True)
class Case:
    """A model shape, lengths of rows, and the layers that are tuned: ``all``, or the ``upper`` half."""

    shape: str
    lengths: str
    tuned: str
    train_rows: int
    eval_rows: int

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that carry LoRA."""
        count = SHAPES[self.shape]["num_hidden_layers"]
        return tuple(range(count // 2 if self.tuned == "upper" else 0, count))

    @property
    def plan(self) -> Plan:
        """LoRA on query and value of these layers."""
        return Plan.of({(f"layers.{i}.attention.{part}", "lora"): RANK for i in self.layers for part in "qv"})


def load_tokenizer() -> Any:
    """Return MiniLM's tokenizer: BERT's uncased vocabulary."""
    return AutoTokenizer.from_pretrained(model_path())


def save_model(shape: str, tokenizer: Any, folder: Path) -> Path:
    """Save a random BERT of ``shape`` without a head, with its tokenizer, as a pretrained model's folder."""
    with torch.random.fork_rng(devices=[]), quiet_loading():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(tokenizer), **SHAPES[shape])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def known_lengths(name: str, data: Path, tokenizer: Any) -> np.ndarray | None:
    """Return tokens per row of ``data``/``name``/train.jsonl, cut at `MAX_LENGTH`; ``None`` where there is none."""
    path = data / name / "train.jsonl"
    if not path.exists():
        return None
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [[row[column] for row in rows] for column in _TEXTS[name]]
    return np.array([len(ids) for ids in tokenizer(*texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]])


def draw_lengths(name: str, rows: int, rng: np.random.Generator, known: np.ndarray | None = None) -> np.ndarray:
    """Draw lengths: of ``known`` rows without putting back, else by the stored quantiles."""
    if known is not None:
        return rng.choice(known, rows, replace=rows > len(known))
    quantiles = QUANTILES[name]
    return np.interp(rng.random(rows), np.linspace(0, 1, len(quantiles)), quantiles).round().astype(int)


def texts(lengths: np.ndarray, tokenizer: Any, rng: np.random.Generator) -> list[str]:
    """Return texts of exactly ``lengths`` tokens, the two special ones included: words of one token each."""
    plain = (word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and word.islower())
    words = np.array(sorted(plain))
    return [" ".join(rng.choice(words, length - 2)) for length in lengths]


def make_data(case: Case, tokenizer: Any, known: np.ndarray | None = None, seed: int = 0) -> DatasetDict:
    """Return train, validation and test rows with the columns ``text`` and ``label``; two classes, balanced."""
    rng = np.random.default_rng(seed)

    def split(rows: int) -> Dataset:
        lengths = draw_lengths(case.lengths, rows, rng, known)
        return Dataset.from_dict({"text": texts(lengths, tokenizer, rng), "label": [i % 2 for i in range(rows)]})

    return DatasetDict(train=split(case.train_rows), validation=split(case.eval_rows), test=split(8))
