"""`ModelMap`: the structure of a model as far as peftscout needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from peftscout.architecture.attention import describe
from peftscout.architecture.norms import block_norms, final_norm
from peftscout.architecture.overrides import ATTENTION_ROLES, FFN_ROLES, SKIP, Overrides
from peftscout.architecture.roles import BlockRoles, Projection, assign, hidden_width
from peftscout.architecture.stacks import Stack, find_stacks, linears
from peftscout.errors import ArchitectureError
from peftscout.sites import Site


@dataclass(frozen=True)
class ModelMap:
    """Stacks, blocks and sites of a model.

    Attributes:
        model_type: as in the model's config.
        sites: by id, in model order: stack by stack, block by block; in a block projections, norms, sublayers.
        stacks: stack name -> number of blocks. A block that several layers share (ALBERT) counts once.
        total: parameters of the backbone without the task head; tied and shared tensors are counted once.
        head: names of the top-level modules that are the task head, such as ``("classifier",)``; empty for base models
            and language models, whose output embeddings belong to the backbone.
        skipped: what is no site and why, one readable line per reason.
    """

    model_type: str
    sites: Mapping[str, Site]
    stacks: Mapping[str, int]
    total: int
    head: tuple[str, ...]
    skipped: tuple[str, ...]

    @classmethod
    def from_model(cls, model: nn.Module, roles: Mapping[str, str] | None = None) -> ModelMap:
        """Map a transformers model, on any device (``meta`` included). The model is only read.

        Args:
            model: a base model or a model with a head.
            roles: overrides, regex -> role, matched in full on the path of a projection inside its block
                (``mlp.side_proj``) or in the model. Roles are ``q k v qkv kv o gate gate_up up down``, with the part in
                front where it matters (``cross_attention.q``), and ``skip``.

        Raises:
            ArchitectureError: when the model has no attention, a projection has no role, or an override is wrong.
        """
        overrides = Overrides.parse(roles)
        stacks = find_stacks(model, overrides.is_attention)
        blocks = {stack.name: _assign_stack(stack, overrides) for stack in stacks}
        _require_attention(model, [roles for own in blocks.values() for roles in own])
        _require_all_used(overrides, stacks)
        _require_roles(stacks, blocks)
        notes: list[tuple[str, int, str]] = []
        sites = [site for stack in stacks for site in _stack_sites(model, stack, blocks[stack.name], stacks, notes)]
        head = _head(model)
        return cls(
            model_type=str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)),
            sites={site.id: site for site in sites},
            stacks={stack.name: len(stack.blocks) for stack in stacks},
            total=_backbone_parameters(model, head),
            head=head,
            skipped=_merge(notes),
        )


def _assign_stack(stack: Stack, overrides: Overrides) -> list[BlockRoles]:
    widths = [hidden_width(block, overrides) for block in stack.blocks]
    common = Counter(width for width in widths if width is not None).most_common(1)
    fallback = common[0][0] if common else 0
    return [assign(block, width or fallback, overrides) for block, width in zip(stack.blocks, widths, strict=True)]


def _stack_sites(
    model: nn.Module,
    stack: Stack,
    blocks: list[BlockRoles],
    stacks: tuple[Stack, ...],
    notes: list[tuple[str, int, str]],
) -> Iterator[Site]:
    for layer, (block, roles) in enumerate(zip(stack.blocks, blocks, strict=True)):
        notes.extend((stack.name, layer, f"{path}: {why}") for path, why in roles.skipped)
        place = f"{stack.name}.{layer}"
        names = _projection_names(roles.projections)
        for p in roles.projections:
            yield Site(
                id=f"{place}.{p.part}.{names[p.path]}",
                kind="linear",
                role=p.role,
                stack=stack.name,
                layer=layer,
                module=f"{block.path}.{p.path}",
                in_features=p.in_features,
                out_features=p.out_features,
                has_bias=p.has_bias,
            )
        for norm in block_norms(block.module, roles):
            yield Site(
                id=f"{place}.{norm.name}",
                kind="norm",
                role=norm.name.rpartition(".")[2],
                stack=stack.name,
                layer=layer,
                module=f"{block.path}.{norm.path}",
                in_features=norm.width,
                out_features=norm.width,
                has_bias=norm.has_bias,
            )
        for part, entry, exit_role in _SUBLAYERS:
            entries, exits = roles.of(part, *entry), roles.of(part, exit_role)
            if not entries or len(exits) != 1:
                continue
            attention = None
            if part != "ffn":
                described = describe(block, roles, part)
                if isinstance(described, str):
                    notes.append((stack.name, layer, f"{part}: {described}: no prefix"))
                else:
                    attention = described
            yield Site(
                id=f"{place}.{part}",
                kind="sublayer",
                role=part,
                stack=stack.name,
                layer=layer,
                module=f"{block.path}.{exits[0].path}",
                in_features=entries[0].in_features,
                out_features=exits[0].out_features,
                has_bias=exits[0].has_bias,
                input_module=f"{block.path}.{entries[0].path}",
                attention=attention,
            )
    if (final := final_norm(model, stack, stacks)) is not None:
        yield Site(
            id=f"{stack.name}.final_norm",
            kind="norm",
            role="final_norm",
            stack=stack.name,
            layer=None,
            module=final.path,
            in_features=final.width,
            out_features=final.width,
            has_bias=final.has_bias,
        )


_SUBLAYERS = (
    ("attention", ("q", "qkv"), "o"),
    ("cross_attention", ("q", "qkv"), "o"),
    ("ffn", ("gate", "gate_up", "up"), "down"),  # in a gated FFN the gate runs first
)
"""Sublayers: part, roles of the projection that reads its input (the first found), role of the one that ends it."""


def _projection_names(projections: Iterable[Projection]) -> dict[str, str]:
    """Return path -> name in the id: the role, or, where a part has several of one role, the cleaned leaf (``q_a``)."""
    counts = Counter((p.part, p.role) for p in projections)
    return {p.path: p.role if counts[p.part, p.role] == 1 else p.leaf.partition("_proj")[0] for p in projections}


def _head(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the top-level modules outside the base model; none when the model has output embeddings."""
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not isinstance(getattr(model, prefix, None), nn.Module):
        return ()
    if model.get_output_embeddings() is not None:  # type: ignore[operator]
        return ()
    return tuple(
        name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())
    )


def _backbone_parameters(model: nn.Module, head: tuple[str, ...]) -> int:
    inside = (parameter for name, parameter in model.named_parameters() if name.partition(".")[0] not in head)
    return sum(parameter.numel() for parameter in inside)


def _require_attention(model: nn.Module, blocks: list[BlockRoles]) -> None:
    if not any(roles.of("attention") or roles.of("cross_attention") for roles in blocks):
        kind = getattr(getattr(model, "config", None), "model_type", "?")
        raise ArchitectureError(
            f"{type(model).__name__} (model type {kind!r}) is not supported: no list of blocks holds attention with "
            "Linear projections. State-space, recurrent and convolutional models have none; if this one has, tell "
            "which projections they are with roles={'<regex>': 'q', ...}"
        )


def _require_all_used(overrides: Overrides, stacks: tuple[Stack, ...]) -> None:
    paths = [(block.path, path) for stack in stacks for block in stack.blocks for path, _ in linears(block.module)]
    if unused := overrides.unused(paths):
        some = ", ".join(dict.fromkeys(path for _, path in paths[:7]))
        raise ArchitectureError(f"roles[{unused[0]!r}] matches no projection of a block; there are {some}, ...")


def _require_roles(stacks: tuple[Stack, ...], blocks: Mapping[str, list[BlockRoles]]) -> None:
    missing = [
        (f"{block.path}.{path}", path, why)
        for stack in stacks
        for block, roles in zip(stack.blocks, blocks[stack.name], strict=True)
        for path, why in roles.unassigned
    ]
    if not missing:
        return
    paths = list(dict.fromkeys(path for _, path, _ in missing))
    full, path, why = missing[0]
    more = f" ({len(missing) - 1} more: {', '.join(paths[:4])})" if len(missing) > 1 else ""
    pattern = path.replace(".", r"\.")
    raise ArchitectureError(
        f"{full}: this projection has no role: {why}{more}. Give it one with roles={{{pattern!r}: 'up'}}: "
        f"{', '.join((*ATTENTION_ROLES, *FFN_ROLES))}, or {SKIP!r} to leave it alone"
    )


def _merge(notes: Iterable[tuple[str, int, str]]) -> tuple[str, ...]:
    """Merge (stack, layer, reason) over layers: ``layers.0-2,4: reason``."""
    layers: dict[tuple[str, str], list[int]] = {}
    for stack, layer, reason in notes:
        layers.setdefault((stack, reason), []).append(layer)
    return tuple(f"{stack}.{ranges(own)}: {reason}" for (stack, reason), own in layers.items())


def ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as text: ``0-2,4``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
