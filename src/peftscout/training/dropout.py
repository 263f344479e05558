"""Which frozen parts draw dropout masks in training.

The published systems put the whole model in training mode, so that frozen layers drop units too. That noise costs a
quarter of a step, and it keeps what lies below the lowest tuned block from being computed once and for all.
"""

from __future__ import annotations

from typing import Any, Literal

from peftscout.architecture import ModelMap
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
    it stays in evaluation mode, and the whole backbone when it is ``None``.
    """
    model.train()
    if mode == "paper":
        return
    base = model.get_base_model()
    prefix = base.base_model_prefix
    backbone = getattr(base, prefix, base)
    backbone.eval()
    if mode == "off" or lowest is None:
        return
    reached = False
    for name, module in backbone.named_modules():
        path = f"{prefix}.{name}" if backbone is not base else name
        reached = reached or path == lowest
        module.training = reached
