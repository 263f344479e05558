"""Tell the parts of a block apart: attention, mixtures of experts, state-space mixers, and the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from peftscout.architecture.stacks import ATTENTION_CLASS

_ATTENTION_PATH = re.compile(r"(^|\.)(self_)?(attention|attn)\.")
_STATE_PARAMETERS = {"A_log", "dt_bias"}


@dataclass(frozen=True, slots=True)
class Regions:
    """Paths inside a block of what is neither plain attention nor a plain FFN.

    Attributes:
        mixers: linear-attention and state-space mixers.
        experts: modules that hold routed experts.
        mixtures: mixture-of-experts modules: the experts, their router and, perhaps, a shared expert.
    """

    mixers: tuple[str, ...]
    experts: tuple[str, ...]
    mixtures: tuple[str, ...]


def find_regions(block: nn.Module) -> Regions:
    """Find the mixers and mixtures of ``block`` by their structure.

    A mixer has a one-dimensional convolution or a state matrix of its own. Experts are a child of that name, or hold
    parameters of three dimensions: one matrix per expert.
    """
    mixers: list[str] = []
    experts: list[str] = []
    for path, module in block.named_modules():
        if not path or within(path, (*mixers, *experts)):
            continue
        if _is_mixer(module):
            mixers.append(path)
        elif _is_experts(path, module) and not in_attention(f"{path}.", block):
            experts.append(path)
    mixtures = dict.fromkeys(path.rpartition(".")[0] or path for path in experts)
    return Regions(tuple(mixers), tuple(experts), tuple(mixtures))


def in_attention(path: str, block: nn.Module) -> bool:
    """Whether ``path`` lies below an attention module of ``block``, told by class name or by path."""
    if _ATTENTION_PATH.search(path):
        return True
    parents = path.split(".")[:-1]
    ancestors = (block.get_submodule(".".join(parents[:n])) for n in range(1, len(parents) + 1))
    return any(ATTENTION_CLASS.search(type(ancestor).__name__) for ancestor in ancestors)


def within(path: str, roots: Sequence[str]) -> bool:
    """Whether ``path`` is one of ``roots`` or lies below one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def _is_mixer(module: nn.Module) -> bool:
    own = {name for name, _ in module.named_parameters(recurse=False)}
    return bool(own & _STATE_PARAMETERS) or any(isinstance(child, nn.Conv1d) for child in module.children())


def _is_experts(path: str, module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    return path.rpartition(".")[2] == "experts" or any(p.dim() >= 3 for p in module.parameters(recurse=False))
