"""A plan in words, for verdicts and labels: "LoRA r=2 on attention q,v of layers 3-5 + biases on every norm"."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from peftscout.cost import OPS, ops_at
from peftscout.plan import Plan, Sites
from peftscout.sites import Site

_NAMES = {
    "lora": "LoRA r={}",
    "bias": "biases",
    "scale": "scales",
    "norm": "norm weights",
    "serial": "serial adapters of {}",
    "parallel": "parallel adapters of {}",
    "lowrank_adapter": "low-rank adapters r={}",
    "prefix": "prefixes of {}",
}
_EVERY = {"linear": "every linear layer", "norm": "every norm", "sublayer": "every sublayer"}
_MOST_PHRASES = 4
_MOST_WITH_LAYERS = 2
_MOST_RUNS = 4

Layer = tuple[str, int | None]
"""Stack and index."""


@dataclass(frozen=True, slots=True)
class _Phrase:
    """The same op of the same sizes on sites that are spoken of together."""

    op: str
    sizes: tuple[int, ...]
    sites: tuple[Site, ...]


def describe(plan: Plan, sites: Sites) -> str:
    """Return ``plan`` in one line of words.

    Exact while that takes at most four phrases. A more irregular plan is summed up: one phrase for each op, with the
    range of its sizes and a count, and without the layers when there are more than two.

    Raises:
        KeyError: when a site of the plan is not in ``sites``; see `Plan.check`.
    """
    if not len(plan):
        return "nothing"
    phrases = _exact(plan, sites)
    if len(phrases) > _MOST_PHRASES:
        phrases = _by_op(plan, sites)
        if len(phrases) > _MOST_WITH_LAYERS:
            return " + ".join(f"{_say_op(phrase)} on {_count(phrase.sites)}" for phrase in phrases)
    return " + ".join(_say(phrase, sites) for phrase in phrases)


def _exact(plan: Plan, sites: Sites) -> list[_Phrase]:
    """Bring together what has one op and one size, then the columns of those that are on the same layers."""
    order = {site: n for n, site in enumerate(sites)}
    placed: dict[tuple[str, int], list[Site]] = defaultdict(list)
    for p in sorted(plan, key=lambda p: order[p.site]):
        placed[p.op, p.size].append(sites[p.site])
    phrases = []
    for (op, size), members in sorted(placed.items(), key=lambda item: (OPS.index(item[0][0]), item[0][1])):
        if _everywhere(op, members, sites):
            phrases.append(_Phrase(op, (size,), tuple(members)))
            continue
        columns: dict[str, list[Site]] = defaultdict(list)
        for site in members:
            columns[_column(site)].append(site)
        together: dict[tuple[str, frozenset[Layer]], list[Site]] = defaultdict(list)
        for own in columns.values():
            together[own[0].kind, _layers(own)].extend(own)
        phrases += [_Phrase(op, (size,), tuple(group)) for group in together.values()]
    return phrases


def _by_op(plan: Plan, sites: Sites) -> list[_Phrase]:
    return [
        _Phrase(
            op, tuple(sorted({p.size for p in plan if p.op == op})), tuple(sites[p.site] for p in plan if p.op == op)
        )
        for op in plan.ops
    ]


def _say(phrase: _Phrase, sites: Sites) -> str:
    if every := _everywhere(phrase.op, phrase.sites, sites):
        return f"{_say_op(phrase)} on {every}"
    columns = list(dict.fromkeys(_column(site) for site in phrase.sites))
    layers = _layers(phrase.sites)
    regular = all(_layers(s for s in phrase.sites if _column(s) == column) == layers for column in columns)
    where = _say_columns(columns) if regular else _count(phrase.sites)
    inside = {layer for layer in layers if layer[1] is not None}
    of = f" of {_say_layers(inside, columns if regular else None, sites)}" if inside else ""
    return f"{_say_op(phrase)} on {where}{of}"


def _say_op(phrase: _Phrase) -> str:
    low, high = phrase.sizes[0], phrase.sizes[-1]
    return _NAMES[phrase.op].format(low if low == high else f"{low}-{high}")


def _everywhere(op: str, members: Collection[Site], sites: Sites) -> str:
    """Return ``every norm`` and the like when ``members`` are all the sites of their kind that can hold ``op``."""
    kinds = {site.kind for site in members}
    able = {site.id for site in sites.values() if site.kind in kinds and op in ops_at(site)}
    if {site.id for site in members} != able:
        return ""
    return "every attention" if op == "prefix" else " and ".join(_EVERY[kind] for kind in _EVERY if kind in kinds)


def _count(members: Sequence[Site]) -> str:
    kinds = {site.kind for site in members}
    noun = (
        {"linear": "linear module", "norm": "norm", "sublayer": "sublayer"}[kinds.pop()] if len(kinds) == 1 else "site"
    )
    return f"1 {noun}" if len(members) == 1 else f"{len(members)} {noun}s"


def _say_columns(columns: Sequence[str]) -> str:
    """Return ``attention q,v and ffn up`` for ``attention.q``, ``attention.v``, ``ffn.up``."""
    parts: dict[str, list[str]] = {}
    for column in columns:
        part, _, role = column.partition(".")
        parts.setdefault(part, []).append(role)
    said = [f"{part} {','.join(filter(None, roles))}".strip() for part, roles in parts.items()]
    return _listed(text.replace("cross_attention", "cross-attention").replace("_", " ") for text in said)


def _say_layers(layers: Collection[Layer], columns: Sequence[str] | None, sites: Sites) -> str:
    """Return ``layers 3-5``; ``all layers``, or ``all decoder layers``, when no other layer has these columns."""
    every = {(s.stack, s.layer) for s in sites.values() if s.layer is not None}
    possible = {
        (s.stack, s.layer) for s in sites.values() if s.layer is not None and (columns is None or _column(s) in columns)
    }
    stacks = list(dict.fromkeys(s.stack for s in sites.values() if (s.stack, s.layer) in layers))
    several = len({stack for stack, _ in every}) > 1
    if layers == every or (layers == possible and not several):
        return "all layers"
    said = []
    for stack in stacks:
        own = sorted(layer for s, layer in layers if s == stack and layer is not None)
        named = f"{stack} " if several else ""
        total = len({layer for s, layer in possible if s == stack})
        if len(own) == total:
            said.append(f"all {named}layers")
        elif len(runs := _runs(own)) > _MOST_RUNS:
            said.append(f"{len(own)} of {total} {named}layers")
        else:
            said.append(f"{named}layer{'s' if len(own) > 1 else ''} {', '.join(runs)}")
    return _listed(said)


def _runs(numbers: Sequence[int]) -> list[str]:
    """Return ``0-2`` and ``5`` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]


def _column(site: Site) -> str:
    """Return the part of the id that says where in the block the site is."""
    prefix = f"{site.stack}." if site.layer is None else f"{site.stack}.{site.layer}."
    return site.id.removeprefix(prefix)


def _layers(members: Iterable[Site]) -> frozenset[Layer]:
    return frozenset((site.stack, site.layer) for site in members)


def _listed(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
