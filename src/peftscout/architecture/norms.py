"""Name the norms of a block and the final norm of a stack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from peftscout.architecture.regions import find_regions, within
from peftscout.architecture.roles import BlockRoles, has_bias
from peftscout.architecture.stacks import Stack

_CLASS = re.compile(r"(?!.*(Batch|Group|Instance)).*Norm")  # Nemotron's LayerNorm1P is one, a BatchNorm1d is not
_PLAIN = re.compile(r"(layer_?norm|norm|ln)(_?\d)?", re.IGNORECASE)
_INNER = re.compile(r"_?(layer_?norm|norm|ln)$", re.IGNORECASE)
_FINAL = re.compile(r"(final_|post_)?(layer_?norm|norm|ln)(_f|_final)?")

_AFTER_ATTENTION = re.compile(r"post_(attention|attn)")
_CROSS = re.compile(r"cross|encoder_attn|(^|_)ca_")
_ATTENTION = re.compile(r"attn|attention|(^|_)sa_|^input|before|(norm|ln)_?1$|^(layer_?norm|LayerNorm|norm|ln)$")
_FFN = re.compile(r"mlp|ffn|ff_|_ff|feed|output|full_layer|final|after|(norm|ln)_?2$")


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm with its place in the id: ``attention_norm``, ``ffn_post_norm``, ``attention.q_norm``."""

    name: str
    path: str
    width: int
    has_bias: bool


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` is a layer norm or RMS norm with a weight vector."""
    weight = getattr(module, "weight", None)
    return _CLASS.match(type(module).__name__) is not None and isinstance(weight, nn.Parameter) and weight.dim() == 1


def block_norms(block: nn.Module, roles: BlockRoles) -> tuple[Norm, ...]:
    """Return the norms of a block: those of the sublayers, then those inside attention (``attention.q_norm``).

    A norm that shares its parent with a projection belongs to that projection's part (BERT, T5); the norms that are
    children of the block are told apart by name. Norms inside state-space mixers and experts are not sites.
    """
    regions = find_regions(block)
    outside = (*regions.mixers, *regions.experts)
    modules = {path: m for path, m in block.named_modules() if is_norm(m) and not within(path, outside)}
    names = _names_of_children([path for path in modules if "." not in path], roles)
    names |= {path: _name_by_parent(path, roles) for path in modules if "." in path}
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    names = {path: path if name in repeated else name for path, name in names.items()}
    norms = [Norm(names[p], p, m.get_parameter("weight").numel(), has_bias(m)) for p, m in modules.items()]
    order = ["attention", "cross_attention", "mixer", "ffn"]
    rank = {name: n for n, name in enumerate(f"{part}{kind}_norm" for part in order for kind in ("", "_post"))}
    return tuple(sorted(norms, key=lambda norm: rank.get(norm.name, len(rank))))


def final_norm(model: nn.Module, stack: Stack, stacks: Sequence[Stack]) -> Norm | None:
    """Return the norm after the last block of ``stack``: a child of the stack's owner, or of one further out.

    Norms before the blocks (embedding norms) are not sites: they are told apart by name or by being declared first.
    """
    parts = stack.path.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        owner, own = ".".join(parts[:depth]), parts[depth]
        if sum(other.path.startswith(f"{owner}." if owner else "") for other in stacks) > 1:
            return None
        children = dict(model.get_submodule(owner).named_children())
        declared = list(children)
        for name in reversed(declared):
            after = declared.index(name) > declared.index(own) or "final" in name
            if after and _FINAL.fullmatch(name) and is_norm(children[name]):
                path, module = f"{owner}.{name}" if owner else name, children[name]
                return Norm("final_norm", path, module.get_parameter("weight").numel(), has_bias(module))
    return None


def _name_by_parent(path: str, roles: BlockRoles) -> str:
    """Name a norm by the part whose projections it shares its parent with; by its path when that is not one part."""
    parent, _, leaf = path.rpartition(".")
    parts = {p.part for p in roles.projections if p.path.startswith(f"{parent}.")}
    if len(parts) != 1:
        return path
    part = parts.pop()
    return f"{part}_norm" if _PLAIN.fullmatch(leaf) else f"{part}.{_INNER.sub('', leaf)}_norm"


def _names_of_children(leaves: list[str], roles: BlockRoles) -> dict[str, str]:
    """Name the norms that are children of their block by their leaves, all of them together.

    `post_attention_layernorm` is ambiguous: in Llama and most others it is the norm before the FFN; where the FFN has
    another (Gemma 2), or attention has none before it (OLMo 2), it really comes after attention.
    """
    kinds = {leaf: _kind(leaf) for leaf in leaves}
    after = {leaf for leaf in leaves if leaf.startswith("post_")}
    before = {kinds[leaf] for leaf in leaves if leaf not in after}
    if "attention" in before and "ffn" not in before:
        feeds_ffn = {leaf for leaf in after if _AFTER_ATTENTION.match(leaf)}
        kinds.update(dict.fromkeys(feeds_ffn, "ffn"))
        after -= feeds_ffn
        before |= {"ffn"} if feeds_ffn else set()
    parts = {projection.part for projection in roles.projections}
    first = next((part for part in ("attention", "cross_attention") if part in parts), "mixer")
    names = {}
    for leaf, kind in kinds.items():
        part = first if kind == "attention" else kind
        second = leaf in after and kind in before
        names[leaf] = leaf if part is None else f"{part}_post_norm" if second else f"{part}_norm"
    return names


def _kind(leaf: str) -> str | None:
    """Return the part that a norm is named after; ``None`` when its name tells none."""
    patterns = {"cross_attention": _CROSS, "attention": _ATTENTION, "ffn": _FFN}
    return next((kind for kind, pattern in patterns.items() if pattern.search(leaf)), None)
