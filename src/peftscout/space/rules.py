"""Rules: a space written for any model ("LoRA on every q and v"), and its resolution on the sites of one. Pure.

Each rule claims (site, op) pairs by glob patterns over site ids, says which sizes they may have, and how they are tied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Literal

from peftscout.cost import SIZELESS, largest_size, ops_at
from peftscout.errors import SpaceError, nearest
from peftscout.plan import Sites
from peftscout.sites import Site
from peftscout.space.space import Choice, Space

Sizes = tuple[int, ...] | Literal["any", "halvings_of_width"]
"""Sizes of a rule: a list, every size that fits, or AutoPEFT's grid (see `halvings`)."""

_MOST_ALTERNATIVES = 10_000
_PLACEHOLDERS = ("site", "op", "stack", "layer", "role")
_TIES = {"site": "{site}:{op}", "layer": "{stack}.{layer}:{op}", "all": "{op}"}
_SWITCHES = {"layer": "{stack}.{layer}", "all": "all"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a space.

    Attributes:
        op: what may be placed.
        patterns: globs over site ids (see `matching`); sites that cannot hold ``op`` are passed over.
        sizes: see `Sizes`; ignored by ops without a size.
        size_tie: which choices share one size: ``site`` (none), ``layer`` (those of this op in a layer), ``all`` (those
            of this op), or any name, in which ``{site} {op} {stack} {layer} {role}`` are filled in:
            ``"rank of {role}"`` is one size for each role.
        switch: which choices are on or off together: ``none``, ``layer`` (all of a layer, whatever the op), ``all``, or
            any name, as above.
        excepted: globs of sites that the rule leaves alone; they may match nothing.
        optional: whether the rule and each of its patterns may match nothing.
        where: file and line, for messages.
    """

    op: str
    patterns: tuple[str, ...]
    sizes: Sizes
    size_tie: str = "site"
    switch: str = "none"
    excepted: tuple[str, ...] = ()
    optional: bool = False
    where: str = "rule"


def resolve(name: str, rules: Sequence[Rule], sites: Sites) -> Space:
    """Return the space that ``rules`` describe on a model with ``sites``.

    Choices come in the order of the sites. Sizes above the largest that fits are left out: at each site for itself, or,
    where choices share a size, at all of them when one is too narrow. A site at which no size fits is left out.

    Raises:
        SpaceError: when a pattern matches nothing (and its rule is not optional), two rules claim the same op at the
            same site, no size of a tie fits, or nothing at all is left.
    """
    claims: dict[tuple[str, str], Rule] = {}
    for rule in rules:
        for site in _claimed(rule, sites):
            if other := claims.get((site.id, rule.op)):
                raise SpaceError(f"{rule.where}: {rule.op} at {site.id} is already chosen by the rule at {other.where}")
            claims[site.id, rule.op] = rule
    members: dict[str, list[tuple[Site, Rule]]] = {}
    for (site_id, _), rule in claims.items():
        tie = _named(_TIES.get(rule.size_tie, rule.size_tie), sites[site_id], rule)
        members.setdefault(tie, []).append((sites[site_id], rule))
    choices = [choice for tie, tied in members.items() for choice in _tied_choices(tie, tied)]
    if not choices:
        raise SpaceError(f"space {name!r}: none of its rules applies to this model, so there is nothing to search")
    order = {site_id: n for n, site_id in enumerate(sites)}
    return Space(name, tuple(sorted(choices, key=lambda c: (order[c.site], ops_at(sites[c.site]).index(c.op)))), sites)


def _claimed(rule: Rule, sites: Sites) -> list[Site]:
    """Return the sites at which ``rule`` may place its op."""
    claimed: dict[str, Site] = {}
    for pattern in rule.patterns:
        matched = [sites[site_id] for site_id in matching(pattern, sites, rule.where)]
        able = [site for site in matched if rule.op in ops_at(site)]
        if not able and not rule.optional:
            raise SpaceError(
                f"{rule.where}: {pattern!r} matches "
                + (
                    f"{len(matched)} sites ({matched[0].id}, ...), but none that can hold {rule.op}"
                    if matched
                    else f"no site of this model{nearest(pattern, sites)}"
                )
                + "; correct the pattern or mark the rule 'optional: true'"
            )
        claimed.update((site.id, site) for site in able)
    left_alone = {site_id for pattern in rule.excepted for site_id in matching(pattern, sites, rule.where)}
    return [site for site in claimed.values() if site.id not in left_alone]


def _tied_choices(tie: str, tied: list[tuple[Site, Rule]]) -> Iterator[Choice]:
    """Yield the choices that share the size variable ``tie``: sizes are those that fit all of them."""
    tightest, its_rule = min(tied, key=lambda member: largest_size(member[0], member[1].op))
    largest = largest_size(tightest, its_rule.op)
    width = min(min(site.in_features, site.out_features) for site, _ in tied)
    for site, rule in tied:
        sizes = tuple(size for size in _sizes(rule, width, largest) if size <= largest)
        if sizes:
            switch = None if rule.switch == "none" else _named(_SWITCHES.get(rule.switch, rule.switch), site, rule)
            yield Choice(site.id, rule.op, sizes, tie, switch)
        elif len(tied) > 1:
            raise SpaceError(
                f"{rule.where}: no size fits {tightest.id}, where {its_rule.op} is at most {largest}, and the size "
                f"{tie!r} is shared by {len(tied)} choices; allow a smaller one or untie them"
            )


def _sizes(rule: Rule, width: int, largest: int) -> Sequence[int]:
    """Return the sizes of ``rule`` where the narrowest site is ``width`` wide and the tightest holds ``largest``."""
    if rule.op in SIZELESS:
        return (1,)
    if rule.sizes == "any":
        return range(1, largest + 1)
    if rule.sizes == "halvings_of_width":
        return halvings(width)
    assert not isinstance(rule.sizes, str)
    return rule.sizes


def halvings(width: int) -> tuple[int, ...]:
    """Return ``width``, ``width // 2``, ``width // 4``, ... down to 1, ascending.

    AutoPEFT's grid (dossier 1.1): 1, 3, 6, 12, 24, 48, 96, 192, 384, 768 for BERT-base; with "absent" 11 values.
    """
    return tuple(width >> k for k in reversed(range(width.bit_length())))


def matching(pattern: str, sites: Sites, where: str = "pattern") -> list[str]:
    """Return the ids that match the glob ``pattern``, in model order.

    ``*`` stands for any text, dots included, ``?`` for one character, ``[0-3]`` for one of a set, ``{q,v}`` for
    alternatives, which may be nested, and ``{6..11}`` for whole numbers.

    Raises:
        SpaceError: when the braces do not match or stand for too many alternatives.
    """
    globs = expand_braces(pattern, where)
    return [site_id for site_id in sites if any(fnmatchcase(site_id, glob) for glob in globs)]


def expand_braces(pattern: str, where: str = "pattern") -> list[str]:
    """Return the patterns that ``pattern`` stands for: ``a.{q,v}`` is ``a.q`` and ``a.v``; ``{6..8}`` is 6, 7, 8."""
    start = pattern.find("{")
    if "}" in (pattern if start < 0 else pattern[:start]):
        raise SpaceError(f"{where}: {pattern!r}: a '}}' without its '{{'")
    if start < 0:
        return [pattern]
    depth, cuts = 0, [start]
    for at in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[at], 0)
        if (pattern[at] == "," and depth == 1) or depth == 0:
            cuts.append(at)
        if depth == 0:
            break
    else:
        raise SpaceError(f"{where}: {pattern!r}: a '{{' without its '}}'")
    alternatives = [pattern[a + 1 : b] for a, b in pairwise(cuts)]
    if len(alternatives) == 1 and (numbers := re.fullmatch(r"([0-9]{1,4})\.\.([0-9]{1,4})", alternatives[0])):
        alternatives = [str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    head, tails = pattern[:start], expand_braces(pattern[cuts[-1] + 1 :], where)
    inner = [text for alternative in alternatives for text in expand_braces(alternative, where)]
    if len(inner) * len(tails) > _MOST_ALTERNATIVES:
        raise SpaceError(f"{where}: {pattern!r} stands for more than {_MOST_ALTERNATIVES:,} patterns")
    return [head + text + tail for text in inner for tail in tails]


def _named(template: str, site: Site, rule: Rule) -> str:
    """Fill the placeholders of the name of a size or a switch."""
    layer = "outside" if site.layer is None else str(site.layer)
    values = {"site": site.id, "op": rule.op, "stack": site.stack, "layer": layer, "role": site.role}

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise SpaceError(
                f"{rule.where}: unknown placeholder {match[0]}{nearest(match[1], _PLACEHOLDERS)}; "
                f"possible: {', '.join(_PLACEHOLDERS)}"
            )
        return values[match[1]]

    return re.sub(r"\{(.*?)\}", value, template)
