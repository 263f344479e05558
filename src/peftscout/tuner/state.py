"""The trained tensors of an adapted model: by op, and as a snapshot in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peftscout.errors import TunerError
from peftscout.ops import OPS
from peftscout.tuner.building import wrappers


def active_adapter(peft_model: PeftModel) -> str:
    """Return the name of the one active adapter."""
    names = peft_model.active_adapters
    if len(names) != 1:
        raise TunerError(f"exactly one adapter must be active, there are {len(names)}: {', '.join(names)}")
    return str(names[0])


def heads(model: nn.Module) -> list[nn.Module]:
    """Return the task heads of an adapted model, trained copies and originals together."""
    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def parameters_by_op(peft_model: PeftModel, adapter: str | None = None) -> dict[str, list[nn.Parameter]]:
    """Return the trained tensors of each op in the plan, in canonical order, and those of the head as ``"head"``.

    They are those of ``adapter``; of the active one when it is ``None``, here and below.
    """
    adapter = active_adapter(peft_model) if adapter is None else adapter
    grouped: dict[str, list[nn.Parameter]] = {op: [] for op in OPS}
    for _, layer in wrappers(peft_model):
        for hosted in layer.hosted.get(adapter, ()):
            grouped[hosted.op] += layer.parameters_of(adapter, hosted.op).values()
    grouped["head"] = [
        parameter
        for module in peft_model.modules()
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save
        for parameter in module.modules_to_save[adapter].parameters()
    ]
    return {name: parameters for name, parameters in grouped.items() if parameters}


def trainable_state(peft_model: PeftModel, adapter: str | None = None) -> dict[str, Tensor]:
    """Return copies of all trained tensors, adapter and head, by name: the state worth keeping of a run."""
    return {name: tensor.detach().clone() for name, tensor in _trained(peft_model, adapter).items()}


def load_trainable_state(peft_model: PeftModel, state: Mapping[str, Tensor], adapter: str | None = None) -> None:
    """Write a `trainable_state` back.

    Raises:
        TunerError: when its names or shapes are not those of ``peft_model``; nothing is written then.
    """
    trained = _trained(peft_model, adapter)
    if different := sorted(set(trained) ^ set(state)):
        raise TunerError(f"{different[0]}: is in only one of the state and the model; they are of different plans")
    for name, tensor in trained.items():
        if tensor.shape != state[name].shape:
            raise TunerError(f"{name}: {tuple(state[name].shape)} in the state, {tuple(tensor.shape)} in the model")
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(state[name])


def _trained(peft_model: PeftModel, adapter: str | None) -> dict[str, nn.Parameter]:
    wanted = {id(p) for parameters in parameters_by_op(peft_model, adapter).values() for p in parameters}
    return {name: p for name, p in peft_model.named_parameters() if id(p) in wanted}
