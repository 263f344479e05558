"""`BackboneState`: what a build changes of a backbone besides its modules, remembered so that a reset can undo it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from peftscout.tuner.layer import PeftscoutLayer, SublayerInput

_PEFT_ATTRIBUTES = ("peft_config", "_hf_peft_config_loaded", "_require_grads_hook", "_require_grads_hooks")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOOK_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


@dataclass(frozen=True)
class BackboneState:
    """A model as it was before peft came.

    Attributes:
        requires_grad: by parameter name.
        training: by module name.
        attention: every config of the model with its attention implementation.
        hooks: keys of the forward hooks by module name. Under gradient checkpointing peft makes the embeddings require
            gradients by a hook, again at every build, and keeps a handle on the last one only.
        attributes: the attributes that peft may set on the model.
    """

    requires_grad: dict[str, bool]
    training: dict[str, bool]
    attention: tuple[tuple[Any, str | None], ...]
    hooks: dict[str, set[int]]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Take note of ``model``."""
        configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
        return cls(
            requires_grad={name: p.requires_grad for name, p in model.named_parameters()},
            training={name: m.training for name, m in model.named_modules()},
            attention=tuple((config, config._attn_implementation) for config in configs.values()),
            hooks={name: {key for kind in _HOOKS for key in vars(m)[kind]} for name, m in model.named_modules()},
            attributes={name: vars(model)[name] for name in _PEFT_ATTRIBUTES if name in vars(model)},
        )

    def restore(self, model: nn.Module) -> None:
        """Take every wrapper and mark of peft, and every hook that came since, off ``model``: it is then as it was."""
        strip(model)
        self.restore_attention()
        for name in _PEFT_ATTRIBUTES:
            vars(model).pop(name, None)
        vars(model).update(self.attributes)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.requires_grad[name])
            parameter.grad = None
        for name, module in model.named_modules():
            module.training = self.training[name]
            for kind in _HOOKS:
                for key in set(vars(module)[kind]) - self.hooks[name]:
                    _remove_hook(module, kind, key)

    def restore_attention(self) -> None:
        """Give every config its attention implementation back."""
        for config, implementation in self.attention:
            config._attn_implementation_internal = implementation


def strip(model: nn.Module) -> None:
    """Put back every leaf and head that was wrapped."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PeftscoutLayer):
                if child.merged:
                    child.unmerge()
                setattr(parent, name, child.get_base_layer())
            elif isinstance(child, ModulesToSaveWrapper):
                setattr(parent, name, child.original_module)


def remove_sublayer_inputs(model: nn.Module) -> None:
    """Take off the hooks of `SublayerInput`."""
    for module in model.modules():
        for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, SublayerInput)]:
            _remove_hook(module, "_forward_pre_hooks", key)


def _remove_hook(module: nn.Module, kind: str, key: int) -> None:
    del vars(module)[kind][key]
    for options in _HOOK_OPTIONS:
        vars(module)[options].pop(key, None)
