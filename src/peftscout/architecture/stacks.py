"""Find the stacks of blocks in a model and name them. Structural: no model is known by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

ATTENTION_CLASS = re.compile(r"Attention|Attn|SelfAtt")
"""How transformers names its attention modules."""

AttentionTest = Callable[[str, str], bool]
"""(path of a block, path of a projection inside it) -> whether it belongs to attention."""


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block: its dotted path in the model and the module."""

    path: str
    module: nn.Module


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks that run one after the other.

    Attributes:
        name: ``layers`` when the model has one stack, ``encoder`` and ``decoder`` where there are two, otherwise a
            distinctive part of the path.
        path: dotted path of the outermost ``ModuleList``.
        blocks: in order. Shared blocks (ALBERT) appear once.
    """

    name: str
    path: str
    blocks: tuple[Block, ...]


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a projection: a Linear (or a quantised subclass of it) or GPT-2's Conv1D."""
    return isinstance(module, nn.Linear | Conv1D)


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the projections below ``module`` with their dotted paths, in order of declaration."""
    return ((path, child) for path, child in module.named_modules() if path and is_linear(child))


def find_stacks(model: nn.Module, is_attention: AttentionTest) -> tuple[Stack, ...]:
    """Return the stacks of ``model``: outermost ``ModuleList``s in which any block has a projection and attention.

    Any block, not the first: hybrid models begin with linear-attention or state-space blocks.

    Args:
        model: a transformers model, on any device.
        is_attention: whether the user said of a projection (block, path inside it) that it belongs to attention.
    """
    paths: list[str] = []
    for path, module in model.named_modules():
        nested = any(path.startswith(f"{outer}.") for outer in paths)
        if not nested and isinstance(module, nn.ModuleList) and _holds_blocks(path, module, is_attention):
            paths.append(path)
    names = _names(paths)
    return tuple(
        Stack(name, path, tuple(_flatten(path, model.get_submodule(path), is_attention)))
        for name, path in zip(names, paths, strict=True)
    )


def _holds_blocks(path: str, blocks: nn.ModuleList, is_attention: AttentionTest) -> bool:
    return any(_is_block(f"{path}.{n}", block, is_attention) for n, block in enumerate(blocks))


def _is_block(path: str, module: nn.Module, is_attention: AttentionTest) -> bool:
    if not any(True for _ in linears(module)):
        return False
    named = any(ATTENTION_CLASS.search(type(child).__name__) for inner, child in module.named_modules() if inner)
    return named or any(is_attention(path, inner) for inner, _ in linears(module))


def _flatten(path: str, blocks: nn.Module, is_attention: AttentionTest) -> Iterator[Block]:
    """Yield the blocks of a list; an element that is itself a group of blocks (ALBERT, Swin) yields its own."""
    for name, element in blocks.named_children():
        inner = [
            (child_path, child)
            for child_path, child in element.named_modules()
            if isinstance(child, nn.ModuleList)
            and len(child)
            and all(_is_block(f"{path}.{name}.{child_path}.{n}", b, is_attention) for n, b in enumerate(child))
        ]
        if inner:
            child_path, child = inner[0]
            yield from _flatten(f"{path}.{name}.{child_path}", child, is_attention)
        else:
            yield Block(f"{path}.{name}", element)


def _names(paths: list[str]) -> list[str]:
    """Name the stacks: ``layers`` for one, otherwise the last distinctive part of the path of the list's owner."""
    if len(paths) == 1:
        return ["layers"]
    full = [path.split(".") for path in paths]
    owners = _strip_common([parts[:-1] for parts in full])
    if len(paths) == 2:
        sides = [next((part for part in own if part in ("encoder", "decoder")), "") for own in owners]
        if sorted(sides) == ["decoder", "encoder"]:
            return sides
    by_owner = [own[-1] if own else "layers" for own in owners]
    by_path = ["_".join(own) for own in _strip_common(full)]
    return by_owner if len(set(by_owner)) == len(paths) else by_path


def _strip_common(paths: list[list[str]]) -> list[list[str]]:
    """Drop the leading and trailing parts that all paths share."""
    while all(paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    while all(paths) and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return paths
