"""Turn the roles of one block into sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from peftscout.architecture.attention import describe
from peftscout.architecture.norms import Norm, block_norms
from peftscout.architecture.roles import BlockRoles, Projection
from peftscout.architecture.stacks import Block
from peftscout.sites import Site

_SUBLAYERS = (
    ("attention", ("q", "qkv"), "o"),
    ("cross_attention", ("q", "qkv"), "o"),
    ("ffn", ("gate", "gate_up", "up"), "down"),  # in a gated FFN the gate runs first
)
"""Sublayers: part, roles of the projection that reads its input (the first found), role of the one that ends it."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something in a block that is no site, and why."""

    stack: str
    layer: int
    text: str


def block_sites(stack: str, layer: int, block: Block, roles: BlockRoles) -> Iterator[Site | Note]:
    """Yield the sites of a block: projections, norms, sublayers; and notes on what is none."""
    yield from (Note(stack, layer, f"{path}: {why}") for path, why in roles.skipped)
    names = _names(roles.projections)
    for projection in roles.projections:
        yield Site(
            id=f"{stack}.{layer}.{projection.part}.{names[projection.path]}",
            kind="linear",
            role=projection.role,
            stack=stack,
            layer=layer,
            module=f"{block.path}.{projection.path}",
            in_features=projection.in_features,
            out_features=projection.out_features,
            has_bias=projection.has_bias,
        )
    for norm in block_norms(block.module, roles):
        yield norm_site(stack, layer, norm, f"{block.path}.{norm.path}")
    for part, entry_roles, exit_role in _SUBLAYERS:
        entries, exits = roles.of(part, *entry_roles), roles.of(part, exit_role)
        if entries and len(exits) == 1:
            yield from _sublayer(stack, layer, block, roles, entries[0], exits[0])


def norm_site(stack: str, layer: int | None, norm: Norm, module: str) -> Site:
    """Return the site of a norm; ``layer`` is ``None`` for the final norm of a stack."""
    return Site(
        id=f"{stack}.{norm.name}" if layer is None else f"{stack}.{layer}.{norm.name}",
        kind="norm",
        role=norm.name.rpartition(".")[2],
        stack=stack,
        layer=layer,
        module=module,
        in_features=norm.width,
        out_features=norm.width,
        has_bias=norm.has_bias,
    )


def _sublayer(
    stack: str, layer: int, block: Block, roles: BlockRoles, entry: Projection, exit_: Projection
) -> Iterator[Site | Note]:
    described = None if entry.part == "ffn" else describe(block, roles, entry.part)
    if isinstance(described, str):
        yield Note(stack, layer, f"{entry.part}: {described}: no prefix")
        described = None
    yield Site(
        id=f"{stack}.{layer}.{entry.part}",
        kind="sublayer",
        role=entry.part,
        stack=stack,
        layer=layer,
        module=f"{block.path}.{exit_.path}",
        in_features=entry.in_features,
        out_features=exit_.out_features,
        has_bias=exit_.has_bias,
        input_module=f"{block.path}.{entry.path}",
        attention=described,
    )


def _names(projections: Iterable[Projection]) -> dict[str, str]:
    """Return path -> name in the id: the role, or, where a part has several of one role, the cleaned leaf (``q_a``)."""
    counts = Counter((p.part, p.role) for p in projections)
    return {p.path: p.role if counts[p.part, p.role] == 1 else p.leaf.partition("_proj")[0] for p in projections}
