"""Test on the model at hand that rows may share a sequence: nothing is known by a model's name.

Two things have to hold. Each row's outputs are those that it has by itself in a padded batch: its positions start at 0,
and windows of attention move with it. And no output depends on a token of another row, which the gradient tells exactly
in any precision: what a mask leaves out has the weight 0 and not nearly 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from peftscout import tuner
from peftscout.training.frozen_prefix import bare
from peftscout.training.packing import NO_CACHE, Packing, pack
from peftscout.tuner.checks import evaluation, perturbed

SAME = 1e-4
"""Largest difference of outputs, relative to the largest output: fp32 sums in another order."""

SAME_IN_HALF = 5e-2
"""The same, for weights of 16 bits."""

PIECES = 3
"""Rows that share a sequence in the test."""


def why_not_packed(model: Any, ids: Sequence[int]) -> str:
    """Return why rows must not share a sequence, in words; empty when they may. Nothing is raised.

    Tested with four rows: one that fills a sequence, and its three thirds, which share another one.

    Args:
        model: adapted. Tensors that are all zero get small random values for the test, and are put back exactly.
        ids: tokens of a row, best of the longest: windows of attention matter to long rows only.
    """
    third = len(ids) // PIECES
    if third < 2:
        return f"rows of {len(ids)} tokens are too short to tell"
    pieces = [list(ids), *(list(ids[n * third : (n + 1) * third]) for n in range(PIECES))]
    lengths, device = [len(piece) for piece in pieces], next(model.parameters()).device
    padded = torch.zeros((len(pieces), len(ids)), dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for n, piece in enumerate(pieces):
        padded[n, : len(piece)], mask[n, : len(piece)] = torch.tensor(piece), 1
    packing = pack([lengths], len(ids), len(pieces))
    assert packing is not None
    parameters = [p for group in tuner.parameters_by_op(model).values() for p in group]
    try:
        with perturbed(parameters), evaluation(model):
            with torch.no_grad():
                alone = _logits(model(input_ids=padded.to(device), attention_mask=mask.to(device)))
            return _difference(model, packing, padded, alone)
    except Exception as error:  # whatever a model does: it is trained without packing then
        return f"the forward pass fails with several rows in a sequence: {type(error).__name__}: {error}"


def _difference(model: Any, packing: Packing, padded: Tensor, alone: Tensor) -> str:
    """Return what is different from the outputs ``alone``, and what sees other rows."""
    entering = list[Tensor]()

    def leaf(module: Any, args: Any, output: Tensor) -> Tensor:
        entering.append(output.detach().requires_grad_())
        return entering[-1]

    embeddings: Any = bare(model)
    handle = embeddings.get_input_embeddings().register_forward_hook(leaf)
    batch = {name: tensor.to(alone.device) for name, tensor in packing.batch({"input_ids": padded}).items()}
    try:
        with torch.enable_grad():
            together = _logits(model(**batch, **NO_CACHE))
    finally:
        handle.remove()

    held = (packing.source >= 0).to(alone.device)
    expected = packing.of(alone.cpu()).to(alone.device)[held]
    largest = (together[held].detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    if not largest <= (SAME_IN_HALF if half else SAME):  # NaN differs too
        return f"outputs of rows in one sequence differ from those of each by itself (by {float(largest):.0e})"

    own = packing.source // padded.shape[1] == PIECES - 1  # of the rows that share a sequence, the middle one
    weights = torch.linspace(1, 2, together.shape[-1], device=together.device)
    (gradient,) = torch.autograd.grad([(together[own.to(together.device)] * weights).sum()], entering)
    if not gradient[own.to(gradient.device)].any() or gradient[~own.to(gradient.device)].any():
        return "outputs of a row depend on the tokens of another row in its sequence"
    return ""


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    return logits.float()
