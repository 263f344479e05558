"""Training mode: which frozen parts draw dropout masks, and which blocks are checkpointed.

The published systems put the whole model in training mode, so that frozen layers drop units too. That noise costs a
quarter of a step, and it keeps what lies below the lowest tuned block from being computed once and for all.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from peftscout.architecture import ModelMap
from peftscout.errors import ConfigError
from peftscout.plan import Plan

BackboneDropout = Literal["off", "above", "paper"]
"""``off``: the frozen backbone draws none, ops and head do. ``above``: none below the lowest tuned block. ``paper``:
everywhere, as the published systems do."""


def lowest_tuned_block(plan: Plan, model_map: ModelMap) -> str | None:
    """Return the path of the first block, in model order, in which ``plan`` tunes something; ``None``: in none."""
    tuned = {(site.stack, site.layer) for site in (model_map.sites[placement.site] for placement in plan)}
    for stack, paths in model_map.blocks.items():
        for layer, path in enumerate(paths):
            if (stack, layer) in tuned:
                return path
    return None


def set_training(model: Any, mode: BackboneDropout, lowest: str | None = None) -> None:
    """Switch an adapted model to training, its frozen parts by ``mode``.

    ``lowest`` is the path of the lowest tuned block, see `lowest_tuned_block`: with ``above``, what is declared before
    it stays in evaluation mode, and the whole backbone when it is ``None``. Blocks under gradient checkpointing are
    marked as training themselves, without their parts: only then does transformers checkpoint them.
    """
    model.train()
    if mode == "paper":
        return
    base = model.get_base_model()
    prefix = base.base_model_prefix
    backbone = getattr(base, prefix, base)
    backbone.eval()
    if mode == "above" and lowest is not None:
        _train_from(backbone, lowest, "" if backbone is base else f"{prefix}.")
    for block in checkpointed_blocks(backbone):
        block.training = True


def checkpointed_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks whose activations are computed again in the backward pass, if `checkpoint` was called."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing]


def checkpoint(model: PreTrainedModel) -> None:
    """Let the blocks of ``model`` keep their inputs only, and compute the rest again in the backward pass.

    Raises:
        ConfigError: when transformers cannot do that with this model.
    """
    if model.supports_gradient_checkpointing:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the newer name is not there in every version we support
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not checkpointed_blocks(model):
        raise ConfigError(
            f"training.gradient_checkpointing: transformers cannot checkpoint the blocks of a {type(model).__name__}; "
            "leave it off, and take a smaller training.batch_size"
        )


def _train_from(backbone: nn.Module, lowest: str, prefix: str) -> None:
    reached = False
    for name, module in backbone.named_modules():
        reached = reached or f"{prefix}{name}" == lowest
        module.training = reached
