"""Whether a head reads one row, which one, and whether the last block stands being cut down to it: all by probing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftscout.architecture import ModelMap
from peftscout.training.one_row import POSITIONS, Position, bare, last_block, one_row, padding_token, row_index
from peftscout.tuner.checks import evaluation

TOLERANCE = 1e-5
"""Most that logits may differ, relative to the largest, in fp32; other dtypes are given as many roundings."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Reading:
    """What a head reads of the last block.

    Attributes:
        position: the one row, for `one_row`; ``None``: the block must compute all rows.
        reason: why it must, in words; empty when it need not.
    """

    position: Position | None
    reason: str = ""


def find_one_row(model: Any, model_map: ModelMap, batch: Batch) -> Reading:
    """Return the position that `one_row` may be used with, or why it must not be. Nothing is raised.

    Args:
        model: adapted or bare, on the device of ``batch``. Its weights must not be such that the head ignores its
            input: a head of zeros is read as one that reads nothing.
        model_map: of the bare model.
        batch: a few rows of input, of more than two tokens each; labels are ignored.
    """
    try:
        reading = read_position(model, model_map, batch)
        if reading.position is None:
            return reading
        wrong = one_row_is_exact(model, model_map, reading.position, batch)
    except Exception as error:
        return Reading(None, f"{type(error).__name__}: {error}")
    return reading if wrong is None else Reading(None, wrong)


def read_position(model: Any, model_map: ModelMap, batch: Batch) -> Reading:
    """Return which position of what leaves the last block the logits depend on, or why there is not just one.

    Read off the gradient of the logits, on variants of ``batch`` that tell the positions apart (`variants`).

    Raises:
        TunerError: when the model has more than one stack of blocks.
    """
    _, block = last_block(model_map)
    padding = padding_token(bare(model))
    left: list[Position] = [p for p in POSITIONS if p != "last_not_pad" or padding is not None]
    for variant in variants(batch, padding):
        read = _positions_read(model, block, variant)
        if isinstance(read, str):
            return Reading(None, read)
        left = [position for position in left if _is_at(row_index(position, variant, padding), read)]
    if len(left) == 1:
        return Reading(left[0])
    which = f"{' or '.join(left)}: these texts are too short to tell" if left else "not always the first or the last"
    return Reading(None, f"the head reads one position after the last block, {which}")


def one_row_is_exact(model: Any, model_map: ModelMap, position: Position, batch: Batch) -> str | None:
    """Compare the logits with and without `one_row` on variants of ``batch``; return what is wrong, or ``None``."""
    for variant in variants(batch, padding_token(bare(model))):
        plain = _logits(model, variant)
        with one_row(model, model_map, position):
            cut = _logits(model, variant)
        if plain.shape != cut.shape:
            return f"the logits have the shape {tuple(cut.shape)} instead of {tuple(plain.shape)} with one row"
        allowed = TOLERANCE / torch.finfo(torch.float32).eps * torch.finfo(plain.dtype).eps * plain.abs().max()
        difference = (plain - cut).abs().max()
        if not difference <= allowed:  # NaN differs too
            return f"the logits differ by {difference:.1e} with one row (at most {allowed:.1e} is rounding)"
    return None


def variants(batch: Batch, padding: int | None) -> Iterator[Batch]:
    """Yield ``batch`` as it is, with texts of different lengths, with their tokens turned round, and ending in padding.

    Together they tell apart positions that coincide in many batches: the last and the last attended to, the last and
    the last that is no padding token, a place and a token that tends to be there.
    """
    plain = {name: tensor for name, tensor in batch.items() if name != "labels"}
    shape = plain["input_ids"].shape
    ids = plain["input_ids"].flatten(0, -2)
    mask = plain.get("attention_mask", torch.ones_like(ids)).reshape(ids.shape)
    yield plain
    filler = 0 if padding is None else padding
    pads_left = bool((mask[:, 0] == 0).any())
    changed, shorter = ids.clone(), mask.clone()
    for row, (own, attended) in enumerate(zip(changed, shorter, strict=True)):
        places = attended.nonzero().squeeze(-1)
        lost = min(1 + row, len(places) - 1)
        gone = places[:lost] if pads_left else places[len(places) - lost :]
        own[gone], attended[gone] = filler, 0
    yield {**plain, "input_ids": changed.view(shape), "attention_mask": shorter.view(shape)}
    changed = changed.clone()
    for own, attended in zip(changed, shorter, strict=True):
        places = attended.nonzero().squeeze(-1)
        own[places] = own[places].flip(0)
    yield {**plain, "input_ids": changed.view(shape), "attention_mask": shorter.view(shape)}
    if padding is not None:
        changed = changed.clone()
        for own, attended in zip(changed, shorter, strict=True):
            own[attended.nonzero()[-1]] = padding
        yield {**plain, "input_ids": changed.view(shape), "attention_mask": shorter.view(shape)}


def _positions_read(model: Any, block: str, batch: Batch) -> Tensor | str:
    """Return the position of each text that the logits depend on, ``[texts]``; or why it is not just one."""
    leaving: list[Tensor] = []

    def leaf(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).detach().requires_grad_()
        leaving.append(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = bare(model).get_submodule(block).register_forward_hook(leaf)
    try:
        with evaluation(model), torch.enable_grad():
            logits = _output(model, batch)
            weighted = logits * torch.linspace(1, 2, logits.numel(), device=logits.device).view_as(logits)
    finally:
        handle.remove()
    if len(leaving) != 1:
        return f"{block} runs {len(leaving)} times in a forward pass, not once"
    (gradient,) = torch.autograd.grad([weighted], leaving, [torch.ones_like(weighted)])
    read = (gradient != 0).any(-1)
    counts = read.sum(-1)
    if not bool((counts == 1).all()):
        least, most = int(counts.min()), int(counts.max())
        found = f"{most}" if least == most else f"{least} to {most}"
        return f"the head reads {found} positions of a text after the last block"
    return read.int().argmax(-1)


def _is_at(index: Tensor | None, read: Tensor) -> bool:
    return torch.equal(torch.zeros_like(read) if index is None else index, read)


def _logits(model: Any, batch: Batch) -> Tensor:
    with evaluation(model), torch.no_grad():
        return _output(model, batch)


def _output(model: Any, batch: Batch) -> Tensor:
    outputs = model(**batch)
    logits: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    return logits
