"""`ModelMap`: the structure of a model as far as peftscout needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from peftscout.architecture.block_sites import Note, block_sites, norm_site
from peftscout.architecture.norms import final_norm
from peftscout.architecture.overrides import ATTENTION_ROLES, FFN_ROLES, SKIP, Overrides
from peftscout.architecture.roles import BlockRoles, assign, hidden_width
from peftscout.architecture.stacks import Stack, find_stacks, linears
from peftscout.errors import ArchitectureError
from peftscout.sites import Site


@dataclass(frozen=True)
class ModelMap:
    """Stacks, blocks and sites of a model.

    Attributes:
        model_type: as in the model's config.
        sites: by id, in model order: stack by stack, block by block; in a block projections, norms, sublayers.
        blocks: stack name -> dotted paths of its blocks, in order. A block that several layers share (ALBERT) is named
            once.
        total: parameters of the backbone without the task head; tied and shared tensors are counted once.
        head: names of the top-level modules that are the task head, such as ``("classifier",)``; empty for base models
            and language models, whose output embeddings belong to the backbone.
        skipped: what is no site and why, one readable line per reason.
    """

    model_type: str
    sites: Mapping[str, Site]
    blocks: Mapping[str, tuple[str, ...]]
    total: int
    head: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def stacks(self) -> dict[str, int]:
        """Stack name -> number of blocks."""
        return {name: len(paths) for name, paths in self.blocks.items()}

    @classmethod
    def from_model(cls, model: nn.Module, roles: Mapping[str, str] | None = None) -> ModelMap:
        """Map a transformers model, on any device (``meta`` included). The model is only read.

        Args:
            model: a base model or a model with a head.
            roles: overrides, regex -> role, matched in full on the path of a projection inside its block
                (``mlp.side_proj``) or in the model. Roles are ``q k v qkv kv o gate gate_up up down``, with the part in
                front where it matters (``cross_attention.q``), and ``skip``.

        Raises:
            ArchitectureError: when the model carries adapters, has no attention, a projection has no role, or an
                override is wrong.
        """
        _require_bare(model)
        overrides = Overrides.parse(roles)
        stacks = find_stacks(model, overrides.is_attention)
        blocks = {stack.name: _assign_stack(stack, overrides) for stack in stacks}
        _require_attention(model, [roles for own in blocks.values() for roles in own])
        _require_all_used(overrides, stacks)
        _require_roles(stacks, blocks)
        found = [entry for stack in stacks for entry in _survey(model, stack, blocks[stack.name], stacks)]
        head = _head(model)
        return cls(
            model_type=str(getattr(getattr(model, "config", None), "model_type", type(model).__name__)),
            sites={entry.id: entry for entry in found if isinstance(entry, Site)},
            blocks={stack.name: tuple(block.path for block in stack.blocks) for stack in stacks},
            total=_backbone_parameters(model, head),
            head=head,
            skipped=_merge(entry for entry in found if isinstance(entry, Note)),
        )


def _assign_stack(stack: Stack, overrides: Overrides) -> list[BlockRoles]:
    widths = [hidden_width(block, overrides) for block in stack.blocks]
    common = Counter(width for width in widths if width is not None).most_common(1)
    fallback = common[0][0] if common else 0
    return [assign(block, width or fallback, overrides) for block, width in zip(stack.blocks, widths, strict=True)]


def _survey(
    model: nn.Module, stack: Stack, blocks: Sequence[BlockRoles], stacks: Sequence[Stack]
) -> Iterator[Site | Note]:
    """Yield the sites of a stack in model order, and notes on what is none."""
    for layer, (block, roles) in enumerate(zip(stack.blocks, blocks, strict=True)):
        yield from block_sites(stack.name, layer, block, roles)
    if (norm := final_norm(model, stack, stacks)) is not None:
        yield norm_site(stack.name, None, norm, norm.path)


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
    # Quantised Linears pack several weights into a number, so they are counted by their widths.
    linear = {id(m.weight): m.in_features * m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    inside = (parameter for name, parameter in model.named_parameters() if name.partition(".")[0] not in head)
    return sum(linear.get(id(parameter), parameter.numel()) for parameter in inside)


def _require_bare(model: nn.Module) -> None:
    adapted = next((path for path, _ in model.named_modules() if path.endswith(".base_layer")), None)
    if adapted is not None:
        raise ArchitectureError(
            f"{adapted}: the model already carries adapters; map the model before peft wraps it, or unload them first"
        )


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


def _merge(notes: Iterable[Note]) -> tuple[str, ...]:
    """Merge notes that are equal but for their layer: ``layers.0-2,4: reason``."""
    layers: dict[tuple[str, str], list[int]] = {}
    for note in notes:
        layers.setdefault((note.stack, note.text), []).append(note.layer)
    return tuple(f"{stack}.{ranges(own)}: {text}" for (stack, text), own in layers.items())


def ranges(numbers: Iterable[int]) -> str:
    """Return ascending numbers as text: ``0-2,4``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
