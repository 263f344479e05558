"""What ``peftscout inspect`` shows: where ops can sit in a model, with shapes and prices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from peftscout.architecture.model_map import ranges
from peftscout.cost import SIZELESS, Price, largest_size, ops_at, price
from peftscout.errors import SpaceError
from peftscout.sites import Site

if TYPE_CHECKING:
    from peftscout.architecture import ModelMap
    from peftscout.space import Space

SCHEMA = 1
"""Version of the JSON form."""

_LEGEND = (
    "Parameters per layer: lora=1,536n is 1,536 for each unit of the size n (rank, bottleneck, prefix length). "
    "Rank 1: LoRA of rank 1 in every layer of the row."
)
_SPACE_LEGEND = "In brackets: the sizes that the space offers."
_RUNS_SHOWN = 3
_KINDS = ("linear", "norm", "sublayer")


Offers = Mapping[str, Mapping[str, tuple[int, ...]]]
"""Site id -> op -> sizes that a space offers."""


@dataclass(frozen=True, slots=True)
class _Row:
    """Sites of one stack that are alike but for their layer."""

    stack: str
    name: str
    shape: str
    bias: str
    ops: str
    lora: bool


def inspect_text(model_map: ModelMap, space: Space | None = None) -> RenderableType:
    """Return the structure of a model as a table: one row for all layers in which a site is the same.

    Args:
        model_map: of the model.
        space: shows only the ops that this space offers, with their sizes.
    """
    legend = _LEGEND if space is None else f"{_LEGEND} {_SPACE_LEGEND}"
    parts: list[RenderableType] = [_facts(model_map, space), Text(), _table(model_map, _offers(model_map, space))]
    parts += [Text(), Text(legend, style="dim")]
    return Group(*parts, *_left_out(model_map))


def inspect_tree(model_map: ModelMap, space: Space | None = None) -> RenderableType:
    """Return the structure of a model as a tree: stacks, their equal layers, parts of a layer, sites with prices.

    It says what `inspect_text` says; layers that are alike in everything share a branch.
    """
    offers = _offers(model_map, space)
    tree = Tree(Text(model_map.model_type, style="bold"))
    for stack in dict.fromkeys(site.stack for site in model_map.sites.values()):
        branch = tree.add(Text(stack, style="bold"))
        for layers, sites in _alike(model_map, offers, stack):
            parent = branch if layers is None else branch.add(Text(f"layer{'s' * (not layers.isdigit())} {layers}"))
            _add_sites(parent, sites, offers)
    legend = _LEGEND if space is None else f"{_LEGEND} {_SPACE_LEGEND}"
    return Group(_facts(model_map, space), Text(), tree, Text(), Text(legend, style="dim"), *_left_out(model_map))


def _alike(model_map: ModelMap, offers: Offers, stack: str) -> list[tuple[str | None, list[Site]]]:
    """Group the layers of a stack that are alike: their numbers in words, and the sites of the first of them."""
    layers: dict[int | None, list[Site]] = {}
    for site in model_map.sites.values():
        if site.stack == stack:
            layers.setdefault(site.layer, []).append(site)
    groups: dict[tuple[_Row, ...], list[int | None]] = {}
    for layer, sites in layers.items():
        groups.setdefault(tuple(_row(site, offers.get(site.id, {})) for site in sites), []).append(layer)
    return [
        (None if own[0] is None else _shortened(ranges(n for n in own if n is not None)), layers[own[0]])
        for own in groups.values()
    ]


def _add_sites(parent: Tree, sites: list[Site], offers: Offers) -> None:
    """Add the sites of one layer: projections below their sublayer, then the sublayer's own ops and its norm."""
    parts: dict[str, Tree] = {}
    for site in sites:
        row = _row(site, offers.get(site.id, {}))
        part, _, role = row.name.rpartition(".")
        place = parent if not part else parts.get(part) or parts.setdefault(part, parent.add(Text(part)))
        if not part and site.kind == "sublayer" and site.role in parts:
            place, role = parts[site.role], "as a whole"
        bias = "" if site.kind == "sublayer" else ", with bias" if site.has_bias else ""
        line = Text(role)
        line.append(f"  {row.shape}{bias}  ", style="dim")
        line.append(row.ops)
        place.add(line)


def _left_out(model_map: ModelMap) -> list[RenderableType]:
    if not model_map.skipped:
        return []
    notes = "\n".join(f"- {note}" for note in model_map.skipped)
    return [Text(), Text("Left out:", style="bold"), Text(notes)]


def inspect_json(model_map: ModelMap, space: Space | None = None) -> dict[str, Any]:
    """Return the structure of a model as plain data, every site with the price of each op that can sit there.

    ``{"schema", "model_type", "stacks", "parameters", "head", "skipped", "lora_rank_1", "sites": [{"id", "kind",
    "role", ..., "ops": {op: {"fixed", "per_size", "largest_size"}}}]}``; with ``space`` also ``{"space": {"name",
    "choices", "variables", "plans", "cheapest", "dearest"}}``, where ``plans`` is ``null`` when they cannot be counted.
    """
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "model_type": model_map.model_type,
        "stacks": dict(model_map.stacks),
        "parameters": model_map.total,
        "head": list(model_map.head),
        "skipped": list(model_map.skipped),
        "lora_rank_1": _lora_everywhere(model_map.sites.values()),
        "sites": [_site_json(site) for site in model_map.sites.values()],
    }
    if space is not None:
        data["space"] = {
            "name": space.name,
            "choices": len(space.choices),
            "variables": len(space.variables),
            "plans": _plans(space),
            "cheapest": space.cheapest().cost(model_map.sites),
            "dearest": space.dearest().cost(model_map.sites),
        }
    return data


def _site_json(site: Site) -> dict[str, Any]:
    ops = {op: asdict(price(site, op)) | {"largest_size": largest_size(site, op)} for op in ops_at(site)}
    return asdict(site) | {"ops": ops}


def _facts(model_map: ModelMap, space: Space | None) -> RenderableType:
    facts = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    lora = _lora_everywhere(model_map.sites.values())
    blocks = ", ".join(f"{name}: {n} block{'s' * (n != 1)}" for name, n in model_map.stacks.items())
    facts.add_row("model type", Text(model_map.model_type))
    facts.add_row("stacks", Text(blocks))
    facts.add_row("backbone", f"{model_map.total:,} parameters")
    if model_map.head:
        facts.add_row("task head", Text(f"{', '.join(model_map.head)} (counted apart)"))
    facts.add_row("LoRA, rank 1", f"{lora:,} parameters on every projection ({_share(lora, model_map.total)})")
    if space is not None:
        plans = _plans(space)
        count = "" if plans is None else f", {_big(plans)} plans"
        sites = model_map.sites
        low, high = space.cheapest().cost(sites), space.dearest().cost(sites)
        facts.add_row("space", Text(f"{space.name}: {len(space.choices):,} choices{count}"))
        facts.add_row("plans cost", f"{low:,} to {high:,} parameters ({_share(high, model_map.total)})")
    return facts


def _table(model_map: ModelMap, offers: Offers) -> Table:
    rows: dict[_Row, list[Site]] = {}
    for site in model_map.sites.values():
        rows.setdefault(_row(site, offers.get(site.id, {})), []).append(site)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("site", no_wrap=True)
    table.add_column("layers", no_wrap=True)
    table.add_column("in -> out", no_wrap=True, justify="right")
    table.add_column("bias", no_wrap=True)
    table.add_column("ops and their parameters", overflow="fold")
    table.add_column("rank 1", no_wrap=True, justify="right")
    stacks = list(dict.fromkeys(row.stack for row in rows))
    for stack in stacks:
        if len(stacks) > 1:
            table.add_row(Text(stack, style="bold"))
        own = [(row, sites) for row, sites in rows.items() if row.stack == stack]
        for row, sites in sorted(own, key=lambda entry: _KINDS.index(entry[1][0].kind)):
            layers = _shortened(ranges(site.layer for site in sites if site.layer is not None))
            rank_1 = f"{_lora_everywhere(sites):,}" if row.lora else ""
            table.add_row(Text(row.name), layers, row.shape, row.bias, row.ops, rank_1)
        if stack != stacks[-1]:
            table.add_row()
    return table


def _row(site: Site, offered: Mapping[str, tuple[int, ...]]) -> _Row:
    depth = 1 if site.layer is None else 2
    ops = (f"{op}{_sizes(sizes)}={_price(price(site, op), op)}" for op, sizes in offered.items())
    return _Row(
        stack=site.stack,
        name=site.id.split(".", depth)[depth],
        shape=str(site.out_features) if site.kind == "norm" else f"{site.in_features} -> {site.out_features}",
        bias="" if site.kind == "sublayer" else "yes" if site.has_bias else "no",
        ops=" ".join(ops) or "-",
        lora="lora" in offered,
    )


def _offers(model_map: ModelMap, space: Space | None) -> Offers:
    """Return what ``space`` offers at each site; without a space every op that can sit there, of any size."""
    if space is None:
        return {site.id: dict.fromkeys(ops_at(site), ()) for site in model_map.sites.values()}
    offers: dict[str, dict[str, tuple[int, ...]]] = {}
    for choice in space.choices:
        offers.setdefault(choice.site, {})[choice.op] = () if choice.op in SIZELESS else choice.sizes
    return offers


def _sizes(sizes: tuple[int, ...]) -> str:
    """Return sizes in brackets: ``[1,2,4]``, or ``[1..32]`` where there are more than four; nothing for none."""
    if not sizes:
        return ""
    return f"[{sizes[0]}..{sizes[-1]}]" if len(sizes) > 4 else f"[{','.join(map(str, sizes))}]"


def _price(p: Price, op: str) -> str:
    """Return a price as a formula of the size n: ``768``, ``1,536n`` or ``768+1,537n``."""
    if op in SIZELESS:
        return f"{p.at(1):,}"
    return f"{p.fixed:,}+{p.per_size:,}n" if p.fixed else f"{p.per_size:,}n"


def _lora_everywhere(sites: Iterable[Site]) -> int:
    return sum(price(site, "lora").at(1) for site in sites if site.kind == "linear")


def _plans(space: Space) -> int | None:
    try:
        return space.cardinality()
    except SpaceError:  # ties too entangled to be counted
        return None


def _big(number: int) -> str:
    return f"{number:,}" if number < 10**12 else f"about 10^{int(math.log10(number))}"


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.2g}%"


def _shortened(layers: str) -> str:
    runs = layers.split(",")
    return layers if len(runs) <= _RUNS_SHOWN else ",".join([*runs[: _RUNS_SHOWN - 1], f"..,{runs[-1]}"])
