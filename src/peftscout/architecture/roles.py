"""Assign a role to every projection of a block.

Attention projections are known by the name of their leaf, FFN projections by their widths (`ffn`). What is neither is
skipped with a reason (routers, experts, state-space mixers, position terms) or left without a role, which is an error
that the user mends with an override.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from peftscout.architecture.ffn import ffn_roles
from peftscout.architecture.overrides import ATTENTION_ROLES, FFN_ROLES, PARTS, SKIP, Overrides
from peftscout.architecture.regions import Regions, find_regions, in_attention, within
from peftscout.architecture.stacks import Block, linears

_LEAVES = {
    "qkv": r"c_attn|qkv(_proj)?|query_key_value|Wqkv|in_proj",
    "q": r"(linear_|to_|w|W)?(q|query)|(q|query)_(proj|lin|attn)|q_[ab]_proj",
    "k": r"(linear_|to_|w|W)?(k|key)|(k|key)_(proj|lin)",
    "v": r"(linear_|to_|w|W)?(v|value)|(v|value)_(proj|lin)",
    "kv": r"kv_proj|to_kv|kv_a_proj_with_mqa|kv_[ab]_proj",
    "o": r"(linear_|to_|w|W)?(o|out)|(o|out|c)_(proj|lin)|dense|proj|projection(_layer)?|output",
}
"""How transformers names the projections of attention: role -> pattern of the leaf."""

_EXTRAS = {
    r"(.*\.)?indexer\..*": "indexer of sparse attention: not a site",
    r"(.*[._])?(rel|relative|pos|position)(_[^.]*)?": "position term of attention: not a site",
    r"(.*\.)?(output_gate|(q_)?gate_proj|g_proj)": "gate of attention: not a site",
}
"""Projections of attention that have no role of their own: pattern of the path -> what is reported."""

_CROSS_PATH = re.compile(r"cross|EncDec|encoder_attn")


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection of a block with its role.

    Attributes:
        path: dotted path inside the block.
        part: ``attention``, ``cross_attention``, ``ffn`` or ``shared_ffn`` (the shared expert of a mixture).
        role: ``q k v qkv kv o`` in attention, ``gate gate_up up down`` in an FFN.
        in_features: width that enters.
        out_features: width that leaves.
        has_bias: whether it has a bias.
    """

    path: str
    part: str
    role: str
    in_features: int
    out_features: int
    has_bias: bool

    @property
    def leaf(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """Path inside the block of the module that holds the projection; ``""`` for the block itself."""
        return self.path.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class BlockRoles:
    """What `assign` found in one block.

    Attributes:
        projections: part by part, role by role, then in order of declaration.
        skipped: (path inside the block, reason).
        unassigned: (path inside the block, why it has no role).
    """

    projections: tuple[Projection, ...]
    skipped: tuple[tuple[str, str], ...]
    unassigned: tuple[tuple[str, str], ...]

    def of(self, part: str, *roles: str) -> list[Projection]:
        """Return the projections of ``part``; with ``roles``, only those, in the order of ``roles``."""
        own = [projection for projection in self.projections if projection.part == part]
        return [projection for role in roles for projection in own if projection.role == role] if roles else own


@dataclass(frozen=True, slots=True)
class _Found:
    part: str
    role: str


@dataclass(frozen=True, slots=True)
class _Skipped:
    why: str


@dataclass(frozen=True, slots=True)
class _Missing:
    why: str


@dataclass(frozen=True, slots=True)
class _OfFfn:
    part: str


def hidden_width(block: Block, overrides: Overrides) -> int | None:
    """Return the width of the hidden states of a block: what enters its attention. ``None`` without attention."""
    regions = find_regions(block.module)
    for path, module in linears(block.module):
        match _classify(path, block, regions, overrides):
            case _Found(_, "q" | "k" | "v" | "qkv" | "kv"):
                return widths(module)[0]
    return None


def assign(block: Block, hidden: int, overrides: Overrides) -> BlockRoles:
    """Assign a role to every projection of ``block``, whose hidden states are ``hidden`` wide."""
    regions = find_regions(block.module)
    modules = dict(linears(block.module))
    verdicts = {path: _classify(path, block, regions, overrides) for path in modules}
    found = {path: verdict for path, verdict in verdicts.items() if isinstance(verdict, _Found)}
    unassigned = {path: verdict.why for path, verdict in verdicts.items() if isinstance(verdict, _Missing)}
    for part in PARTS[2:]:
        given = {path: verdict.role for path, verdict in found.items() if verdict.part == part}
        shapes = {path: widths(modules[path]) for path, v in verdicts.items() if v == _OfFfn(part) or path in given}
        for path, role in ffn_roles(shapes, given, hidden).items():
            if role in FFN_ROLES:
                found[path] = _Found(part, role)
            else:
                unassigned[path] = role
    declared, order = list(modules), (*ATTENTION_ROLES, *FFN_ROLES)
    projections = sorted(
        (
            Projection(path, own.part, own.role, *widths(modules[path]), has_bias=has_bias(modules[path]))
            for path, own in found.items()
        ),
        key=lambda p: (PARTS.index(p.part), order.index(p.role), declared.index(p.path)),
    )
    dense = any(own.part == "ffn" for own in found.values())
    skipped = [(path, "linear-attention or state-space mixer: not a site") for path in regions.mixers]
    skipped += [
        (path, "mixture of experts: each would need its own op: not sites" + ("" if dense else ", no FFN sublayer"))
        for path in regions.mixtures
    ]
    skipped += [(path, verdict.why) for path, verdict in verdicts.items() if isinstance(verdict, _Skipped)]
    return BlockRoles(tuple(projections), tuple(skipped), tuple(unassigned.items()))


def _classify(
    path: str, block: Block, regions: Regions, overrides: Overrides
) -> _Found | _Skipped | _Missing | _OfFfn | None:
    """Return what the projection at ``path`` is, as far as its place and name tell; ``None``: part of a skipped whole.

    The user's word counts first. Inside attention the leaf tells the role; what is left belongs to an FFN.
    """
    attention = "cross_attention" if _CROSS_PATH.search(path) else "attention"
    ffn = "shared_ffn" if regions.mixtures and re.search(r"(^|\.)shared[^.]*\.", path) else "ffn"
    asked = overrides.role(block.path, path)
    if asked == SKIP:
        return _Skipped("skipped by role override")
    if asked is not None:
        part, _, role = asked.rpartition(".")
        return _Found(part or (attention if role in ATTENTION_ROLES else ffn), role)
    if within(path, (*regions.mixers, *regions.experts)):
        return None
    if in_attention(path, block.module):
        return _classify_in_attention(path, attention)
    if ffn == "shared_ffn":
        return _OfFfn(ffn)
    if within(path, regions.mixtures) or "router" in path:
        return _Skipped("router or gate of a mixture of experts: not a site")
    if "per_layer" in path:
        return _Skipped("per-layer input projection: not a site")
    return _OfFfn(ffn)


def _classify_in_attention(path: str, part: str) -> _Found | _Skipped | _Missing:
    extra = next((why for pattern, why in _EXTRAS.items() if re.fullmatch(pattern, path)), None)
    if extra is not None:
        return _Skipped(extra)
    leaf = path.rpartition(".")[2]
    role = next((role for role, pattern in _LEAVES.items() if re.fullmatch(pattern, leaf)), None)
    if role is None:
        return _Missing("it is in attention, but its name tells none of q, k, v, qkv, kv, o")
    if role == "qkv" and part == "cross_attention":  # GPT-2: the query has its own projection, q_attn
        role = "kv"
    return _Found(part, role)


def widths(module: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a projection. Conv1D keeps its weight as [in, out]; quantised Linears keep the attributes."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.get_parameter("weight")
    return weight.shape[0], weight.shape[1]


def has_bias(module: nn.Module) -> bool:
    """Whether ``module`` has a bias of its own."""
    return getattr(module, "bias", None) is not None
