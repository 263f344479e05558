"""Assign a role to every projection of a block.

Attention projections are known by the name of their leaf, FFN projections by their widths: ``up`` and ``gate`` leave
the hidden width, ``down`` returns to it. (``out > in`` would not do: a shared expert may be narrower than the hidden
width.) What is neither is skipped with a reason (routers, experts, state-space mixers, position terms) or left without
a role, which is an error that the user mends with an override.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import nn

from peftscout.architecture.stacks import ATTENTION_CLASS, linears
from peftscout.errors import ArchitectureError, nearest

ATTENTION_ROLES = ("q", "k", "v", "qkv", "kv", "o")
FFN_ROLES = ("gate", "gate_up", "up", "down")
PARTS = ("attention", "cross_attention", "ffn", "shared_ffn")
"""The parts of a block that hold projections, in the order in which they are listed."""

SKIP = "skip"
"""The override that keeps a projection out of the sites."""

Shapes = Mapping[str, tuple[int, int]]
"""Path -> (in, out), in order of declaration."""

_ATTENTION_LEAVES = {
    "qkv": r"c_attn|qkv(_proj)?|query_key_value|Wqkv|in_proj",
    "q": r"(linear_|to_|w|W)?(q|query)|(q|query)_(proj|lin|attn)|q_[ab]_proj",
    "k": r"(linear_|to_|w|W)?(k|key)|(k|key)_(proj|lin)",
    "v": r"(linear_|to_|w|W)?(v|value)|(v|value)_(proj|lin)",
    "kv": r"kv_proj|to_kv|kv_a_proj_with_mqa|kv_[ab]_proj",
    "o": r"(linear_|to_|w|W)?(o|out)|(o|out|c)_(proj|lin)|dense|proj|projection(_layer)?|output",
}
_ATTENTION_PATH = re.compile(r"(^|\.)(self_)?(attention|attn)\.")
_CROSS_PATH = re.compile(r"cross|EncDec|encoder_attn")
_GATE_LEAF = re.compile(r"gate|wi_0|w1|linear_v")
_UP_LEAF = re.compile(r"up|wi|fc_?(1|in)|lin(ear)?_?1|intermediate|h_to_4h")
_DOWN_LEAF = re.compile(r"down|wo|w2|fc_?(2|out)|lin(ear)?_?2|output|4h_to_h")

_ATTENTION_EXTRAS = {
    r"(.*\.)?indexer\..*": "indexer of sparse attention: not a site",
    r"(.*[._])?(rel|relative|pos|position)(_[^.]*)?": "position term of attention: not a site",
    r"(.*\.)?(output_gate|(q_)?gate_proj|g_proj)": "gate of attention: not a site",
}
"""Projections of attention that have no role of their own: pattern of the path -> what is reported."""

_MIXER = "linear-attention or state-space mixer: its projections are not sites"
_EXPERTS = "mixture-of-experts FFN, routed experts are not sites: no FFN sublayer site"
_ROUTER = "router or gate of a mixture of experts: not a site"
_PER_LAYER = "per-layer input projection: not a site"
_ASKED = "skipped by role override"


@dataclass(frozen=True, slots=True)
class Projection:
    """A projection of a block with its role.

    Attributes:
        path: dotted path inside the block.
        part: one of `PARTS`.
        role: one of `ATTENTION_ROLES` or `FFN_ROLES`.
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
class Overrides:
    """The user's ``regex -> role``, matched in full on the path inside the block or on the path in the model."""

    rules: tuple[tuple[re.Pattern[str], str], ...] = ()

    @classmethod
    def parse(cls, roles: Mapping[str, str] | None) -> Overrides:
        """Read ``roles``; a role is ``q k v qkv kv o gate gate_up up down`` (or ``cross_attention.q`` ...) or ``skip``.

        Raises:
            ArchitectureError: on a regex that does not compile or an unknown role.
        """
        known = [SKIP, *ATTENTION_ROLES, *FFN_ROLES]
        known += [f"{part}.{role}" for part in PARTS[:2] for role in ATTENTION_ROLES]
        known += [f"{part}.{role}" for part in PARTS[2:] for role in FFN_ROLES]
        rules = []
        for pattern, role in (roles or {}).items():
            if role not in known:
                raise ArchitectureError(
                    f"roles[{pattern!r}]: unknown role {role!r}{nearest(role, known)}; the roles are {', '.join(known)}"
                )
            try:
                rules.append((re.compile(pattern), role))
            except re.error as error:
                raise ArchitectureError(f"roles[{pattern!r}]: not a regular expression: {error}") from None
        return cls(tuple(rules))

    def role(self, block: str, path: str) -> str | None:
        """Return the role given to ``path`` inside the block at ``block``; ``None`` when no rule matches."""
        full = f"{block}.{path}"
        return next((role for rule, role in self.rules if rule.fullmatch(path) or rule.fullmatch(full)), None)

    def is_attention(self, block: str, path: str) -> bool:
        """Whether the user gave ``path`` inside the block at ``block`` a role of attention."""
        role = self.role(block, path)
        return role is not None and role.rpartition(".")[2] in ATTENTION_ROLES

    def unused(self, paths: Sequence[tuple[str, str]]) -> list[str]:
        """Return the patterns that match none of the (block, path inside it)."""
        return [
            rule.pattern
            for rule, _ in self.rules
            if not any(rule.fullmatch(path) or rule.fullmatch(f"{block}.{path}") for block, path in paths)
        ]


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
class Regions:
    """Paths inside a block of what is not plain attention or FFN.

    Attributes:
        mixers: linear-attention and state-space mixers.
        experts: modules that hold routed experts.
        mixtures: mixture-of-experts modules: the experts, their router and, perhaps, a shared expert.
    """

    mixers: tuple[str, ...]
    experts: tuple[str, ...]
    mixtures: tuple[str, ...]


def hidden_width(block_path: str, block: nn.Module, overrides: Overrides) -> int | None:
    """Return the width of the hidden states of a block: what enters its attention. ``None`` without attention."""
    regions = find_regions(block)
    for path, module in linears(block):
        role = _attention_role(block_path, path, module, block, regions, overrides)
        if role is not None and role[1] in ("q", "qkv", "k", "v", "kv"):
            return widths(module)[0]
    return None


def assign(block_path: str, block: nn.Module, hidden: int, overrides: Overrides) -> BlockRoles:
    """Assign a role to every projection of ``block``, whose hidden states are ``hidden`` wide."""
    regions = find_regions(block)
    found: dict[str, tuple[str, str]] = {}
    skipped = [(path, _MIXER) for path in regions.mixers] + [(path, _EXPERTS) for path in regions.mixtures]
    unassigned: list[tuple[str, str]] = []
    rest: dict[str, list[str]] = {"ffn": [], "shared_ffn": []}
    modules = dict(linears(block))
    for path, module in modules.items():
        asked = overrides.role(block_path, path)
        shared = any(part.startswith("shared") for part in path.split(".")[:-1]) and bool(regions.mixtures)
        if asked == SKIP:
            skipped.append((path, _ASKED))
        elif (role := _attention_role(block_path, path, module, block, regions, overrides)) is not None:
            found[path] = role
        elif asked is not None:
            found[path] = _split(asked, "shared_ffn" if shared else "ffn")
        elif within(path, (*regions.mixers, *regions.experts)):
            continue
        elif in_attention(path, block):
            extra = next((why for pattern, why in _ATTENTION_EXTRAS.items() if re.fullmatch(pattern, path)), None)
            if extra is not None:
                skipped.append((path, extra))
            else:
                unassigned.append((path, "it is in attention, but its name tells none of q, k, v, qkv, kv, o"))
        elif shared:
            rest["shared_ffn"].append(path)
        elif within(path, regions.mixtures) or "router" in path:
            skipped.append((path, _ROUTER))
        elif "per_layer" in path:
            skipped.append((path, _PER_LAYER))
        else:
            rest["ffn"].append(path)
    for part, paths in rest.items():
        given = {path: role for path, (own, role) in found.items() if own == part}
        roles = _ffn_roles({path: widths(modules[path]) for path in [*paths, *given]}, given, hidden)
        for path in paths:
            if roles[path] in FFN_ROLES:
                found[path] = (part, roles[path])
            else:
                unassigned.append((path, roles[path]))
    declared = list(modules)
    order = [*ATTENTION_ROLES, *FFN_ROLES]
    projections = [
        Projection(path, part, role, *widths(modules[path]), has_bias=has_bias(modules[path]))
        for path, (part, role) in found.items()
    ]
    projections.sort(key=lambda p: (PARTS.index(p.part), order.index(p.role), declared.index(p.path)))
    return BlockRoles(tuple(projections), tuple(skipped), tuple(unassigned))


def _split(role: str, part: str) -> tuple[str, str]:
    """Split ``cross_attention.q`` into part and role; a bare role belongs to ``part``."""
    own, _, bare = role.rpartition(".")
    return own or part, bare


def _attention_role(
    block_path: str, path: str, module: nn.Module, block: nn.Module, regions: Regions, overrides: Overrides
) -> tuple[str, str] | None:
    """Return (part, role) of a projection of attention; ``None`` when it is none."""
    part = "cross_attention" if _CROSS_PATH.search(path) else "attention"
    asked = overrides.role(block_path, path)
    if asked is not None:
        part, asked = _split(asked, part)
        return (part, asked) if asked in ATTENTION_ROLES else None
    if within(path, regions.mixers) or not in_attention(path, block):
        return None
    leaf = path.rpartition(".")[2]
    role = next((role for role, names in _ATTENTION_LEAVES.items() if re.fullmatch(names, leaf)), None)
    if role == "qkv" and part == "cross_attention":  # GPT-2: the query has its own projection, q_attn
        role = "kv"
    return (part, role) if role else None


def _ffn_roles(shapes: Shapes, given: Mapping[str, str], hidden: int) -> dict[str, str]:
    """Return the role of each projection of a block's FFN, or in its place the reason why it has none.

    Args:
        shapes: path -> (in, out) of what lies outside attention, in order of declaration.
        given: roles that the user gave.
        hidden: width of the hidden states.
    """
    roles = _one_ffn(shapes, given, hidden)
    if set(roles.values()) <= set(FFN_ROLES):
        return roles
    parents = dict.fromkeys(path.rpartition(".")[0] for path in shapes)
    groups = {p: {path: shape for path, shape in shapes.items() if path.rpartition(".")[0] == p} for p in parents}
    solved = {parent: _one_ffn(group, given, hidden) for parent, group in groups.items()}
    complete = [parent for parent, own in solved.items() if set(own.values()) <= set(FFN_ROLES)]
    if len(complete) != 1:
        return roles
    outside = f"it is outside attention and outside the FFN, {complete[0]}"
    return {path: solved[complete[0]].get(path) or given.get(path, outside) for path in shapes}


def _one_ffn(shapes: Shapes, given: Mapping[str, str], hidden: int) -> dict[str, str]:
    """Do as `_ffn_roles` under the assumption that all of ``shapes`` are one FFN."""
    roles = {path: given.get(path) or _role_by_width(path, shapes, hidden) for path in shapes}
    downs = [path for path, role in roles.items() if role == "down"]
    if len(downs) != 1:
        why = f"it is one of {len(downs)} that lead back to the hidden width" if downs else "none leads back"
        return {path: given.get(path, why) for path in roles}
    inner = shapes[downs[0]][0]
    ups = [path for path, role in roles.items() if role in ("up", "gate", "gate_up")]
    if len(ups) == 1 and ups[0] not in given:
        return {**roles, ups[0]: "gate_up" if shapes[ups[0]][1] == 2 * inner else "up"}
    if len(ups) > 2 or (len(ups) == 2 and {roles[path] for path in ups} != {"gate", "up"}):
        why = f"it is one of {len(ups)} that leave the hidden width: which is the gate?"
        return {**roles, **{path: given.get(path, why) for path in ups}}
    return roles


def _role_by_width(path: str, shapes: Shapes, hidden: int) -> str:
    """Return ``up``, ``gate`` or ``down`` by which side has the hidden width, or the reason why it is none."""
    enters, leaves = (width == hidden for width in shapes[path])
    leaf = path.rpartition(".")[2]
    if enters and leaves:  # the FFN is as wide as the hidden states: the name decides, then the order
        up = next(iter(shapes)) == path or _UP_LEAF.search(path) or _GATE_LEAF.search(leaf)
        enters = bool(up) and not _DOWN_LEAF.search(path)
    if enters:
        return "gate" if _GATE_LEAF.search(leaf) else "up"
    return "down" if leaves else f"it neither enters nor leaves at the hidden width {hidden}"


def find_regions(block: nn.Module) -> Regions:
    """Find what is neither plain attention nor plain FFN.

    A mixer has a one-dimensional convolution or a state matrix of its own; experts are a child of that name or hold
    parameters of three dimensions, one matrix per expert.
    """
    mixers: list[str] = []
    experts: list[str] = []
    for path, module in block.named_modules():
        if not path or within(path, (*mixers, *experts)):
            continue
        if any(isinstance(child, nn.Conv1d) for child in module.children()) or {"A_log", "dt_bias"} & {
            name for name, _ in module.named_parameters(recurse=False)
        }:
            mixers.append(path)
        elif not in_attention(f"{path}.parameters", block) and _is_experts(path, module):
            experts.append(path)
    mixtures = dict.fromkeys(path.rpartition(".")[0] or path for path in experts)
    return Regions(tuple(mixers), tuple(experts), tuple(mixtures))


def _is_experts(path: str, module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    return path.rpartition(".")[2] == "experts" or any(p.dim() >= 3 for p in module.parameters(recurse=False))


def in_attention(path: str, block: nn.Module) -> bool:
    """Whether ``path`` lies below an attention module of ``block``."""
    parents = path.split(".")[:-1]
    ancestors = (block.get_submodule(".".join(parents[:n])) for n in range(1, len(parents) + 1))
    by_class = (ATTENTION_CLASS.search(type(ancestor).__name__) for ancestor in ancestors)
    return any(chain(by_class, [_ATTENTION_PATH.search(path)]))


def within(path: str, roots: Sequence[str]) -> bool:
    """Whether ``path`` is one of ``roots`` or lies below one."""
    return any(path == root or path.startswith(f"{root}.") for root in roots)


def widths(module: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a projection. Conv1D keeps its weight as [in, out]; quantised Linears keep the attributes."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = module.get_parameter("weight")
    return weight.shape[0], weight.shape[1]


def has_bias(module: nn.Module) -> bool:
    """Whether ``module`` has a bias of its own."""
    return getattr(module, "bias", None) is not None
