"""`reset`: give the backbone back as it was; `fingerprint`: prove it."""

from __future__ import annotations

import hashlib
from itertools import chain

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from peftscout.errors import TunerError
from peftscout.tuner.model import PeftscoutModel


def reset(peft_model: PeftModel) -> PreTrainedModel:
    """Take the adapters out and return the backbone as it was before `build`, bit for bit.

    Wrappers, hooks and the trained copy of the head are gone; attention implementation, ``requires_grad``, training
    mode and attributes are what they were. ``peft_model`` must not be used any more.

    Raises:
        TunerError: when the model was not built by peftscout.
    """
    tuner = peft_model.base_model
    if not isinstance(tuner, PeftscoutModel):
        raise TunerError(f"a {type(tuner).__name__} was not built by peftscout, only its maker can reset it")
    model: PreTrainedModel = tuner.model
    tuner.backbone_state.restore(model)
    return model


def fingerprint(model: nn.Module) -> str:
    """Return a hash over every parameter and buffer of ``model``: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
