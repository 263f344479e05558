"""What tests of adapted models share: plans with everything in them, batches, and adapters that do something."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.cost import SIZELESS, largest_size, ops_at
from peftscout.plan import Plan
from tiny_models import EOS, PAD, VOCABULARY

FAMILIES = ("bert", "roberta", "t5", "gpt2", "llama", "qwen3")
"""The architectures that the contract of the ops is tested on."""

DECODERS = ("gpt2", "llama", "qwen3")


def everything(model_map: ModelMap, size: int = 2, only: tuple[str, ...] | None = None) -> Plan:
    """Every op (or ``only`` some) at every site; sizes vary with the site, so that mix-ups of shapes show."""
    sizes = {}
    for n, site in enumerate(model_map.sites.values()):
        for op in ops_at(site):
            if only is None or op in only:
                sizes[site.id, op] = 1 if op in SIZELESS else min(size + n % 3, largest_size(site, op))
    return Plan.of(sizes)


def batch_of(rows: int = 3, length: int = 9, padding: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """Random token ids that end with EOS; ``padding`` extra positions at the right of every row are masked."""
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = EOS
    ids = torch.cat([ids, torch.full((rows, padding), PAD)], 1)
    mask = torch.ones_like(ids)
    mask[:, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def labelled(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**batch, "labels": torch.arange(len(batch["input_ids"])) % 2}


@torch.no_grad()
def logits(model: PreTrainedModel | PeftModel, batch: Mapping[str, Tensor]) -> Tensor:
    outputs = model(**batch)
    found = getattr(outputs, "logits", None)
    return outputs[0] if found is None else found


def stir(peft_model: PeftModel, seed: int = 0, scale: float = 0.1) -> PeftModel:
    """Move every trained tensor to a generic point, so that every op does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in tuner.parameters_by_op(peft_model).values():
            for parameter in group:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return peft_model


def train(peft_model: PeftModel, batch: Mapping[str, Tensor], steps: int = 3) -> list[float]:
    """Take a few optimiser steps on one labelled batch; returns the losses."""
    parameters = [p for group in tuner.parameters_by_op(peft_model).values() for p in group]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = peft_model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses
