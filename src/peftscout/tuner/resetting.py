"""`reset`: give the backbone back as it was; `fingerprint`: prove it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain

import torch
from peft import PeftModel
from torch import Tensor, nn
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


def checksum(model: nn.Module) -> list[tuple[str, str, int]]:
    """Return name, dtype and shape, and a number of every parameter and buffer of ``model``.

    The number is the exclusive or of its values (`torch.hash_tensor`), computed where the tensor is and bound by memory
    speed, so that it can be checked after every trial. It tells an accident; for identity there is `fingerprint`.
    """
    tensors = list(plain_tensors(model))
    hashes = [torch.hash_tensor(t).view(torch.int64).cpu() if t.numel() else torch.zeros(()) for _, t in tensors]
    return [(name, f"{t.dtype} {tuple(t.shape)}", int(h)) for (name, t), h in zip(tensors, hashes, strict=True)]


def fingerprint(model: nn.Module) -> str:
    """Return a hash over every parameter and buffer of ``model``: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in plain_tensors(model):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer, detached, by name; of one that is made of others (torchao's), those."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        yield from _plain(name, tensor.detach())


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    parts, _ = tensor.__tensor_flatten__()
    for part in parts:
        yield from _plain(f"{name}.{part}", getattr(tensor, part))
