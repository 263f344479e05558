"""Enter a model above its frozen prefix: the blocks below the lowest tuned one give the same in every step and trial.

With the lowest tuned block j of L, a step costs a forward through L and a backward through L - j blocks. With the
activations that enter block j at hand it costs 2 (L - j): the step is (2 L - j) / (2 (L - j)) times faster, an
evaluation L / (L - j) times. AutoFreeze (Liu et al. 2021, arXiv:2102.01386) caches activations in this way.

The activations are those that leave block j - 1. What runs before the blocks (embeddings, masks, rotary tables) runs as
ever; the blocks below j hand on what they get, and the last of them returns the activations instead. All that is
assumed of a model is tested on it, by `peftscout.training.entrance_check.find_entrance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.tasks import Encoded
from peftscout.training.batches import BatchMaker, evaluation_order
from peftscout.training.device import Device

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class FrozenPrefix:
    """The blocks of a stack below the lowest tuned one.

    Attributes:
        stack: name of the stack.
        blocks: their dotted paths in the bare model, in order; at least one.
    """

    stack: str
    blocks: tuple[str, ...]

    @property
    def depth(self) -> int:
        """How many blocks are frozen: the index j of the lowest tuned block, L when no block is tuned."""
        return len(self.blocks)


@dataclass(frozen=True)
class Entrance:
    """A frozen prefix that was found, on a model, to be safe to skip.

    Attributes:
        prefix: the blocks to skip.
        items: how many items the tuple has that these blocks return, hidden states first; ``None``: a bare tensor.
    """

    prefix: FrozenPrefix
    items: int | None

    def returned(self, hidden: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        """Return ``hidden`` in the form in which a block of the prefix does; other items of a tuple are ``None``."""
        return hidden if self.items is None else (hidden, *[None] * (self.items - 1))


def frozen_prefix(plan: Plan, model_map: ModelMap) -> FrozenPrefix | None:
    """Return the blocks that ``plan`` leaves frozen from the first one on; ``None`` when there is none.

    Of two stacks it is the encoder's, whose output the decoder only reads: all of it under a plan for the decoder. A
    final norm lies above the last block. Models with other stacks have no such prefix.
    """
    stacks = tuple(model_map.blocks)
    if len(stacks) != 1 and set(stacks) != {"encoder", "decoder"}:
        return None
    stack = "encoder" if len(stacks) == 2 else stacks[0]
    sites = (model_map.sites[placement.site] for placement in plan)
    tuned = (site.layer for site in sites if site.stack == stack and site.layer is not None)
    blocks = model_map.blocks[stack]
    depth = min(tuned, default=len(blocks))
    return FrozenPrefix(stack, blocks[:depth]) if depth else None


@torch.no_grad()
def run_prefix(model: nn.Module, prefix: FrozenPrefix, batch: Batch) -> Tensor:
    """Return what leaves the prefix, ``[B, S, H]`` (``[B * C, S, H]`` with C choices), without dropout.

    The forward pass of ``model``, bare or adapted, ends there. Dtype and attention are those of the context.
    """
    block = bare(model).get_submodule(prefix.blocks[-1])
    forward = block.forward

    def stop(*args: Any, **kwargs: Any) -> None:
        raise _ReachedError(_hidden(forward(*args, **kwargs)))

    try:
        with in_evaluation(model), replaced(block, stop):
            model(**batch)
    except _ReachedError as reached:
        return reached.hidden
    raise RuntimeError(f"{prefix.blocks[-1]}: the forward pass did not come through it")


@contextmanager
def entered_at(model: nn.Module, entrance: Entrance, hidden: Tensor) -> Iterator[None]:
    """Let the one forward pass of ``model`` inside this context enter above the prefix, with ``hidden [B, S, H]``.

    ``model`` is bare or adapted. Nothing is left on it afterwards; a backward pass may come later.

    Raises:
        RuntimeError: when the pass did not take ``hidden`` exactly once, or computes another shape.
    """
    base = bare(model)
    *below, last = entrance.prefix.blocks
    taken = 0

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        return entrance.returned(_entering(args, kwargs))

    def arrive(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if (shape := _entering(args, kwargs).shape) != hidden.shape:
            raise RuntimeError(f"{last}: activations {tuple(hidden.shape)} supplied for a batch of {tuple(shape)}")
        return entrance.returned(hidden)

    with ExitStack() as stack:
        for path in below:
            stack.enter_context(replaced(base.get_submodule(path), pass_on))
        stack.enter_context(replaced(base.get_submodule(last), arrive))
        yield
    if taken != 1:
        raise RuntimeError(f"{last}: ran {taken} times in what should be one forward pass")


def prefix_activations(
    model: nn.Module, prefix: FrozenPrefix, rows: Encoded, make_batch: BatchMaker, device: Device, batch_size: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield (indices of rows, what leaves the prefix) for all ``rows``.

    Always in the same batches: sums of floats depend on what else is in a batch, so only a fixed composition gives a
    study that was interrupted the same bits again.
    """
    for indices in evaluation_order(rows.lengths, batch_size):
        batch = device.put(make_batch([rows.features[i] for i in indices], rows.references[indices]))
        with device.autocast():
            hidden = run_prefix(model, prefix, {name: tensor for name, tensor in batch.items() if name != "labels"})
        yield indices, hidden


class _ReachedError(Exception):
    """Carries the hidden states out of a forward pass that ends early."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def bare(model: Any) -> nn.Module:
    """Return the model in which the paths of blocks are those of its `ModelMap`."""
    base: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def _hidden(returned: Any) -> Tensor:
    first: Tensor = returned[0] if isinstance(returned, tuple) else returned
    return first


def _entering(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


@contextmanager
def replaced(block: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``block`` compute ``forward``; it has its own back afterwards."""
    own = vars(block).get("forward")  # accelerate puts one on the instance too
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Switch ``model`` to evaluation; every module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
