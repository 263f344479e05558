"""Name the norms of a block and the final norm of a stack."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from torch import nn

from peftscout.architecture.roles import BlockRoles, Projection, find_regions, within
from peftscout.architecture.stacks import Stack

_PLAIN = re.compile(r"(layer_?norm|norm|ln)(_?\d)?", re.IGNORECASE)
_INNER = re.compile(r"_?(layer_?norm|norm|ln)$", re.IGNORECASE)
_FINAL = re.compile(r"(final_|post_)?(layer_?norm|norm|ln)(_f|_final)?")

_CROSS = re.compile(r"cross|encoder_attn")
_AFTER_ATTENTION = re.compile(r"post_attention|post_attn")
_ATTENTION = re.compile(r"attn|attention|(^|_)sa_|^input|before|(^|_)pre_layernorm|(norm|ln)_?1$")
_FFN = re.compile(r"mlp|ffn|ff_|_ff|feed|output|full_layer|final|after|(norm|ln)_?2$")
_POST = re.compile(r"(^|_)post_")


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
    return type(module).__name__.endswith("Norm") and isinstance(weight, nn.Parameter) and weight.dim() == 1


def block_norms(block: nn.Module, roles: BlockRoles) -> tuple[Norm, ...]:
    """Return the norms of a block: those of the sublayers, then those inside attention (``attention.q_norm``).

    A norm that shares its parent with a projection belongs to that projection's part (BERT, T5); the norms that are
    children of the block are told apart by name. Norms inside state-space mixers and experts are not sites.
    """
    regions = find_regions(block)
    outside = (*regions.mixers, *regions.experts)
    modules = {path: m for path, m in block.named_modules() if is_norm(m) and not within(path, outside)}
    top = [path for path in modules if _part_of(path, roles) is None]
    names: dict[str, str] = {}
    for path in modules:
        part = _part_of(path, roles)
        leaf = path.rpartition(".")[2]
        if part is None:
            names[path] = _name_by_leaf(leaf, top, roles)
        elif _PLAIN.fullmatch(leaf) or part == "ffn":
            names[path] = f"{part}_norm"
        else:
            names[path] = f"{part}.{_INNER.sub('', leaf)}_norm"
    repeated = {name for name, count in Counter(names.values()).items() if count > 1}
    names = {path: path if name in repeated else name for path, name in names.items()}
    norms = [Norm(names[p], p, m.get_parameter("weight").numel(), _has_bias(m)) for p, m in modules.items()]
    order = ["attention", "cross_attention", "mixer", "ffn"]
    rank = {name: n for n, name in enumerate(f"{part}{kind}_norm" for part in order for kind in ("", "_post"))}
    return tuple(sorted(norms, key=lambda norm: rank.get(norm.name, len(rank))))


def final_norm(model: nn.Module, stack: Stack, stacks: tuple[Stack, ...]) -> Norm | None:
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
                return Norm("final_norm", path, module.get_parameter("weight").numel(), _has_bias(module))
    return None


def _part_of(path: str, roles: BlockRoles) -> str | None:
    """Return the part that a norm belongs to by its parent; ``None`` when the parent is the block or holds several."""
    parent = path.rpartition(".")[0]
    if not parent:
        return None
    below: set[Projection] = {p for p in roles.projections if p.path.startswith(f"{parent}.")}
    parts = {p.part for p in below}
    return parts.pop() if len(parts) == 1 else None


def _name_by_leaf(leaf: str, siblings: list[str], roles: BlockRoles) -> str:
    """Name a norm that is a child of its block by its leaf, given all such norms of the block."""
    parts = {projection.part for projection in roles.projections}
    first = next((part for part in ("attention", "cross_attention") if part in parts), "mixer")
    leaves = [path.rpartition(".")[2] for path in siblings]
    if _CROSS.search(leaf):
        return "cross_attention_norm"
    if _AFTER_ATTENTION.search(leaf):
        # Llama and most others: the norm before the FFN. Gemma 2, OLMo 2: really after attention.
        before_ffn = any(_FFN.search(other) and not _POST.search(other) for other in leaves)
        before_attention = any(_ATTENTION.search(other) and not _POST.search(other) for other in leaves)
        if before_attention and not before_ffn:
            return "ffn_norm"
        return f"{first}_post_norm" if before_attention else f"{first}_norm"
    kind = first if _ATTENTION.search(leaf) else "ffn" if _FFN.search(leaf) else None
    if kind is None:
        # One unqualified norm in a block is the first of it: `layer_norm` beside `final_layer_norm` (wav2vec 2).
        return f"{first}_norm" if _PLAIN.fullmatch(leaf) else leaf
    paired = any(
        other != leaf and not _POST.search(other) and (_ATTENTION if kind == first else _FFN).search(other)
        for other in leaves
    )
    if kind == "ffn" and not paired:  # GLM 4: `post_attention_layernorm` is the one before the FFN
        paired = any(_AFTER_ATTENTION.search(other) for other in leaves) and any(
            _ATTENTION.search(other) and not _POST.search(other) for other in leaves
        )
    return f"{kind}_post_norm" if _POST.search(leaf) and paired else f"{kind}_norm"


def _has_bias(module: nn.Module) -> bool:
    return getattr(module, "bias", None) is not None
