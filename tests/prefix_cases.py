"""What tests of frozen prefixes share: deeper tiny models, ragged rows, and plans that begin at a given block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapted import everything
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.tasks import Encoded
from peftscout.training.frozen_prefix import FrozenPrefix
from tiny_models import EOS, PAD, VOCABULARY, tiny_model

LAYERS = 3

ONE_STACK = ("bert", "roberta", "gpt2", "llama", "qwen3")
LEFT_PADDED = ("llama", "qwen3")
"""Families that may be padded at the left: their positions count from each other."""

_LAYERS = {"gpt2": "n_layer", "t5": "num_layers", "t5_gated": "num_layers"}


def deep_model(name: str, layers: int = LAYERS, **changes: object) -> PreTrainedModel:
    """A tiny classifier of ``layers`` blocks; frozen, as backbones are."""
    depth = {_LAYERS.get(name, "num_hidden_layers"): layers}
    return tiny_model(name, "sequence", **depth, **changes).requires_grad_(False)


def tuned_from(model_map: ModelMap, depth: int) -> Plan:
    """Every op at every site from block ``depth`` on, the final norm included."""
    sites = model_map.sites
    plan = everything(model_map)
    return Plan.of(
        {key: size for key, size in plan.sizes.items() if (layer := sites[key[0]].layer) is None or layer >= depth}
    )


def prefix_of(model_map: ModelMap, depth: int) -> FrozenPrefix:
    stack = next(iter(model_map.blocks))
    return FrozenPrefix(stack, model_map.blocks[stack][:depth])


def ragged_rows(lengths: tuple[int, ...] = (9, 5, 12, 3, 7, 11), choices: int = 0, seed: int = 0) -> Encoded:
    """Rows of random tokens that end with EOS; with ``choices``, each choice is a token longer than the one before."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> list[int]:
        return [*rng.integers(3, VOCABULARY, length - 1).tolist(), EOS]

    rows = [[ids(n + c) for c in range(choices)] if choices else ids(n) for n in lengths]
    features = [{"input_ids": row, "attention_mask": _ones(row)} for row in rows]
    longest = np.array([n + max(choices - 1, 0) for n in lengths])
    return Encoded(features, np.arange(len(lengths)) % 2, longest)


def _ones(row: list[object]) -> list[object]:
    return [_ones(part) if isinstance(part, list) else 1 for part in row]


def padded(rows: Encoded, side: str = "right", extra: int = 0) -> dict[str, Tensor]:
    """All rows as one batch, with ``extra`` columns of padding more than needed."""
    width = int(rows.lengths.max()) + extra
    batch = {name: torch.zeros(len(rows), width, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    batch["input_ids"].fill_(PAD)
    for i, feature in enumerate(rows.features):
        n = len(feature["input_ids"])
        where = slice(width - n, width) if side == "left" else slice(0, n)
        for name, tensor in batch.items():
            tensor[i, where] = torch.tensor(feature[name])
    return batch
