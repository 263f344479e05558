"""`BackboneState`: what a build changes of a backbone besides its modules, remembered so that a reset can undo it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from peftscout.tuner.layer import PeftscoutLayer, SublayerInput

_PEFT_ATTRIBUTES = ("peft_config", "_hf_peft_config_loaded")


@dataclass(frozen=True)
class BackboneState:
    """A model as it was before peft came.

    Attributes:
        requires_grad: by parameter name.
        training: by module name.
        attention: every config of the model with its attention implementation.
        input_gradients: whether its embeddings were made to require gradients (peft does so under checkpointing).
        attributes: the attributes that peft may set on the model.
    """

    requires_grad: dict[str, bool]
    training: dict[str, bool]
    attention: tuple[tuple[Any, str | None], ...]
    input_gradients: bool
    attributes: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Take note of ``model``."""
        configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
        return cls(
            requires_grad={name: p.requires_grad for name, p in model.named_parameters()},
            training={name: m.training for name, m in model.named_modules()},
            attention=tuple((config, config._attn_implementation) for config in configs.values()),
            input_gradients=bool(getattr(model, "_require_grads_hooks", None)),
            attributes={name: vars(model)[name] for name in _PEFT_ATTRIBUTES if name in vars(model)},
        )

    def restore(self, model: nn.Module) -> None:
        """Take every wrapper, hook and mark of peft off ``model``, which is then as it was."""
        strip(model)
        self.restore_attention()
        if not self.input_gradients and getattr(model, "_require_grads_hooks", None):
            model.disable_input_require_grads()  # type: ignore[operator]
        for name in _PEFT_ATTRIBUTES:
            vars(model).pop(name, None)
        vars(model).update(self.attributes)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.requires_grad[name])
            parameter.grad = None
        for name, module in model.named_modules():
            module.training = self.training[name]

    def restore_attention(self) -> None:
        """Give every config its attention implementation back."""
        for config, implementation in self.attention:
            config._attn_implementation_internal = implementation


def strip(model: nn.Module) -> None:
    """Put back every leaf and head that was wrapped, and take off the hooks of `SublayerInput`."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PeftscoutLayer):
                if child.merged:
                    child.unmerge()
                setattr(parent, name, child.get_base_layer())
            elif isinstance(child, ModulesToSaveWrapper):
                setattr(parent, name, child.original_module)
    remove_sublayer_inputs(model)


def remove_sublayer_inputs(model: nn.Module) -> None:
    """Take off the hooks of `SublayerInput`."""
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, SublayerInput)]:
            del hooks[key]
