"""Test on the model at hand that it may be entered above its frozen prefix: nothing is known by a model's name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from peftscout.training.frozen_prefix import (
    Batch,
    Entrance,
    FrozenPrefix,
    bare,
    entered_at,
    in_evaluation,
    replaced,
    run_prefix,
)

SAME = 1e-5
"""Largest difference of outputs, relative to the largest output, where the same numbers are computed once more."""

ALONE = 1e-4
"""The same, of fp32 sums in another order: a row by itself against the row in a padded batch."""

ALONE_IN_HALF = 5e-2
"""The same, for weights of 16 bits."""


def find_entrance(model: nn.Module, prefix: FrozenPrefix, batch: Batch) -> Entrance | str:
    """Test on a batch that ``model`` may be entered above ``prefix``; return the entrance, or the reason why not.

    The outputs must not change when activations come from the same batch, with zeros where it is padded, nor when they
    were computed for every row by itself: what a row's tokens give may depend neither on other rows nor on padding
    (GPT-2 counts its positions from the left edge: padded there, it is refused).

    Args:
        model: bare or adapted, in the arithmetic of the context.
        prefix: see `frozen_prefix`.
        batch: a few rows of different lengths, padded; ``input_ids`` and, best, ``attention_mask`` ``[B, S]`` or
            ``[B, C, S]``.
    """
    try:
        with torch.no_grad(), in_evaluation(model):
            return _tested(model, prefix, batch)
    except Exception as error:  # whatever a model does: it is trained without the shortcut then
        return f"the forward pass fails when it is entered above block {prefix.depth - 1}: {error}"


def _tested(model: nn.Module, prefix: FrozenPrefix, batch: Batch) -> Entrance | str:
    plain, returned = _observed(model, prefix, batch)
    if [path for path, _ in returned] != list(prefix.blocks):
        return f"the blocks below {prefix.depth} do not run one after the other, each once"
    forms = {len(out) if isinstance(out, tuple) else None for _, out in returned}
    if len(forms) > 1:
        return f"the blocks below {prefix.depth} do not all return the same number of things"
    entrance = Entrance(prefix, forms.pop())

    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    real = mask.flatten(0, -2)
    hidden = run_prefix(model, prefix, batch)
    if hidden.shape[:2] != real.shape:
        return f"hidden states are {tuple(hidden.shape)}, token ids {tuple(real.shape)}"
    difference = _difference(_outputs_from(model, entrance, batch, hidden * real[..., None]), plain, real)
    if difference > SAME:
        more = any(isinstance(out, tuple) and any(item is not None for item in out[1:]) for _, out in returned)
        why = "its blocks hand on more than hidden states" if more else "padded positions matter to its outputs"
        return f"entered above block {prefix.depth - 1}, the model gives other outputs (by {difference:.0e}): {why}"

    with torch.autocast(hidden.device.type, enabled=False):
        alone = _outputs_from(model, entrance, batch, _row_by_row(model, prefix, batch, mask))
        difference = _difference(alone, _outputs(model, batch), real)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    if difference > (ALONE_IN_HALF if half else ALONE):
        return f"activations depend on padding or on the other rows of a batch (outputs differ by {difference:.0e})"
    return entrance


def _observed(model: nn.Module, prefix: FrozenPrefix, batch: Batch) -> tuple[Tensor, list[tuple[str, Any]]]:
    """Return the outputs of a plain pass, and the path and the result of every call of a block of the prefix."""
    returned: list[tuple[str, Any]] = []

    def noting(path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            returned.append((path, out))
            return out

        return note

    with ExitStack() as stack:
        for path in prefix.blocks:
            block = bare(model).get_submodule(path)
            stack.enter_context(replaced(block, noting(path, block.forward)))
        return _outputs(model, batch), returned


def _outputs(model: nn.Module, batch: Batch) -> Tensor:
    out = model(**batch)
    logits: Tensor = out.logits if hasattr(out, "logits") else out[0]
    return logits.float()


def _outputs_from(model: nn.Module, entrance: Entrance, batch: Batch, hidden: Tensor) -> Tensor:
    with entered_at(model, entrance, hidden):
        return _outputs(model, batch)


def _difference(ours: Tensor, plain: Tensor, real: Tensor) -> float:
    """Return the largest difference relative to the largest output; of outputs a token, only where there are tokens."""
    if plain.dim() == 3 and plain.shape[:2] == real.shape:
        ours, plain = ours[real], plain[real]
    difference = (ours - plain).abs().max() / plain.abs().max().clamp(min=1e-3)
    return float(difference.nan_to_num(nan=torch.inf))


def _row_by_row(model: nn.Module, prefix: FrozenPrefix, batch: Batch, mask: Tensor) -> Tensor:
    """Return what `run_prefix` does, each row computed by itself without its padding; zeros where there is padding."""
    width = mask.shape[-1]
    rows = []
    for r, own in enumerate(mask.flatten(1, -2) if mask.dim() == 3 else mask[:, None]):  # own: [C, S]
        columns = own.any(0)
        row = {
            k: t[r : r + 1, ..., columns] if t.dim() > 1 and t.shape[-1] == width else t[r : r + 1]
            for k, t in batch.items()
        }
        hidden = run_prefix(model, prefix, row)
        out = hidden.new_zeros(len(own), width, hidden.shape[-1])
        out[own] = hidden[own[:, columns]]
        rows.append(out)
    return torch.cat(rows)
