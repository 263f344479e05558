"""Plan and Budget: the result of every search, and its upper bound. Pure; does not know torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any, Self

from peftscout.cost import OPS, SIZELESS, largest_size, price
from peftscout.errors import BudgetError, PlanError, nearest
from peftscout.sites import Site

SCHEMA = 1
"""Version of the JSON form of a plan."""

Sites = Mapping[str, Site]
"""Sites by id, in model order."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One op of one size at one site."""

    site: str
    op: str
    size: int

    def __str__(self) -> str:
        return f"{self.site}: {self.op}" + ("" if self.op in SIZELESS else f" {self.size}")


def _canonical(placement: Placement) -> tuple[object, ...]:
    """Sort key: site ids with their numbers compared as numbers, then ops in their canonical order."""
    order = OPS.index(placement.op) if placement.op in OPS else len(OPS)
    return _natural(placement.site), placement.site, order


@lru_cache(maxsize=100_000)
def _natural(site: str) -> tuple[tuple[int, int, str], ...]:
    """Split an id into text and numbers, so that layer 9 comes before layer 10 (longer numbers are larger)."""
    parts = re.findall(r"[0-9]+|[^0-9]+", site)
    return tuple((0, len(part), part) if part[0] in "0123456789" else (1, 0, part) for part in parts)


@dataclass(frozen=True)
class Plan:
    """A frozen set of (site, op, size). What is not in it is absent; size 0 never exists.

    ``Plan.of({("layers.0.attention.q", "lora"): 8})`` or ``Plan((Placement(...), ...))``; order does not matter.

    Raises:
        PlanError: on an unknown op, a size below 1, a size other than 1 where the op has none, or a doubled (site, op).
    """

    placements: tuple[Placement, ...] = ()

    def __post_init__(self) -> None:
        placements = tuple(sorted(self.placements, key=_canonical))
        seen: set[tuple[str, str]] = set()
        for p in placements:
            if p.op not in OPS:
                raise PlanError(f"{p.site}: unknown op {p.op!r}{nearest(p.op, OPS)}; the ops are {', '.join(OPS)}")
            if type(p.size) is not int or p.size < 1:
                raise PlanError(
                    f"{p.site}: {p.op} of size {p.size!r}; sizes are whole numbers from 1, leave an absent op out"
                )
            if p.op in SIZELESS and p.size != 1:
                raise PlanError(f"{p.site}: {p.op} has no size, write 1 instead of {p.size}")
            if (p.site, p.op) in seen:
                raise PlanError(f"{p.site}: {p.op} is there twice")
            seen.add((p.site, p.op))
        object.__setattr__(self, "placements", placements)

    @classmethod
    def of(cls, sizes: Mapping[tuple[str, str], int]) -> Self:
        """Build a plan from ``{(site, op): size}``; entries of size 0 are taken as absent."""
        return cls(tuple(Placement(site, op, size) for (site, op), size in sizes.items() if size != 0))

    @cached_property
    def sizes(self) -> dict[tuple[str, str], int]:
        """``{(site, op): size}`` in canonical order."""
        return {(p.site, p.op): p.size for p in self.placements}

    @property
    def ops(self) -> tuple[str, ...]:
        """The distinct ops of the plan, in canonical order."""
        used = {p.op for p in self.placements}
        return tuple(op for op in OPS if op in used)

    def __iter__(self) -> Iterator[Placement]:
        return iter(self.placements)

    def __len__(self) -> int:
        return len(self.placements)

    def cost(self, sites: Sites) -> int:
        """Return the exact number of trainable parameters, head excluded.

        Raises:
            PlanError: when a site does not exist in ``sites`` or an op cannot sit there.
        """
        return sum(price(self._site(p, sites), p.op).at(p.size) for p in self.placements)

    def check(self, sites: Sites) -> None:
        """Raise a PlanError that names the first placement which the model behind ``sites`` cannot hold."""
        for p in self.placements:
            limit = largest_size(self._site(p, sites), p.op)
            if p.size > limit:
                raise PlanError(f"{p.site}: {p.op} {p.size} > {limit}, the largest size at this site")

    @staticmethod
    def _site(placement: Placement, sites: Sites) -> Site:
        try:
            return sites[placement.site]
        except KeyError:
            raise PlanError(f"{placement.site}: no such site in this model{nearest(placement.site, sites)}") from None

    @cached_property
    def digest(self) -> str:
        """Hash of the canonical JSON: equal plans have equal digests, on any machine."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form: ``{"schema": 1, "placements": [[site, op, size], ...]}`` in canonical order."""
        return {"schema": SCHEMA, "placements": [[p.site, p.op, p.size] for p in self.placements]}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read the JSON form (strict).

        Raises:
            PlanError: naming what is wrong: not an object, unknown schema or key, malformed placement.
        """
        if not isinstance(data, dict):
            raise PlanError(f"a plan is a JSON object, not {type(data).__name__}")
        if unknown := sorted(set(data) - {"schema", "placements"}, key=str):
            raise PlanError(f"plan: unknown key {unknown[0]!r}{nearest(str(unknown[0]), ('schema', 'placements'))}")
        schema = data.get("schema")
        if type(schema) is not int or schema != SCHEMA:
            raise PlanError(f"plan: schema {schema!r}, this version of peftscout reads schema {SCHEMA}")
        rows = data.get("placements")
        if not isinstance(rows, list):
            raise PlanError("plan: 'placements' must be a list of [site, op, size]")
        for n, row in enumerate(rows):
            well_formed = isinstance(row, list) and [type(part) for part in row] == [str, str, int]
            if not well_formed:
                raise PlanError(f"plan: placements[{n}] is {row!r}, expected [site, op, size]")
        return cls(tuple(Placement(site, op, size) for site, op, size in rows))

    def __str__(self) -> str:
        return "; ".join(map(str, self.placements)) or "nothing"


def diff(old: Plan, new: Plan) -> list[str]:
    """Return one readable line per difference: ``+`` added, ``-`` removed, ``~`` resized; canonical order."""
    keys = Plan.of({**old.sizes, **new.sizes}).sizes
    lines = []
    for site, op in keys:
        before, after = old.sizes.get((site, op)), new.sizes.get((site, op))
        if before is None:
            lines.append(f"+ {Placement(site, op, after or 0)}")
        elif after is None:
            lines.append(f"- {Placement(site, op, before)}")
        elif before != after:
            lines.append(f"~ {site}: {op} {before} -> {after}")
    return lines


_SHARES = {"%": 100, "‰": 1000, "‱": 10_000}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6}
_BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(
    r"""(?P<number> (?: [0-9]{1,3}(?:,[0-9]{3})+ | [0-9]+(?:_[0-9]+)* ) (?:\.[0-9]+)? | \.[0-9]+ )
        \s* (?P<unit> %|‰|‱|[A-Za-z]* )""",
    re.VERBOSE,
)
_LONGEST_BUDGET = 40
_HOW_TO_WRITE = "write a number of parameters (200_000, 200k), a share (0.5%, 1.39‱) or a size on disk (2MB)"


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bound on the cost of a plan, in trainable parameters.

    Attributes:
        parameters: the bound; a plan whose cost equals it is within.
        text: as the user wrote it.
    """

    parameters: int
    text: str

    @classmethod
    def parse(cls, value: str | int, total: int, bytes_per_parameter: int = 4) -> Self:
        """Read a number of parameters, a share of the backbone, or a size of the weights on disk.

        ``200_000``, ``"200k"``, ``"1.5M"``; ``"0.5%"``, ``"0.1‰"``, ``"1.39‱"`` (of ``total``); ``"2MB"``, ``"1MiB"``
        (at ``bytes_per_parameter``). Exact: fractions, rounded down. MB are 10^6 bytes, MiB are 2^20.

        Args:
            value: what the user wrote.
            total: parameters of the backbone without its head.
            bytes_per_parameter: 4 for float32, 2 for bfloat16.

        Raises:
            BudgetError: when the text cannot be read, no parameter fits into it, or the share is above the whole.
        """
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BudgetError(f"budget {value!r}: {_HOW_TO_WRITE}")
        text = value.strip() if isinstance(value, str) else _digits(value)
        match = _BUDGET.fullmatch(text)
        if match is None or len(text) > _LONGEST_BUDGET:
            raise BudgetError(f"budget {text[:_LONGEST_BUDGET]!r}: {_HOW_TO_WRITE}")
        number, unit = Fraction(re.sub("[_,]", "", match["number"])), match["unit"].lower()
        if unit in _SHARES:
            parameters = number * total / _SHARES[unit]
        elif unit in _COUNTS:
            parameters = number * _COUNTS[unit]
        elif unit in _BYTES:
            parameters = number * _BYTES[unit] / bytes_per_parameter
        else:
            raise BudgetError(
                f"budget {text!r}: unknown unit {match['unit']!r}; use %, ‰, ‱, k, M, kB, MB, GB, KiB or MiB"
            )
        if parameters < 1:
            raise BudgetError(f"budget {text!r}: that is less than one parameter of {total:,}")
        if unit in _SHARES and number > _SHARES[unit]:
            raise BudgetError(f"budget {text!r}: more than the whole backbone ({total:,} parameters)")
        return cls(int(parameters), text)

    def __contains__(self, cost: int) -> bool:
        return cost <= self.parameters

    def __str__(self) -> str:
        plain = f"{self.parameters:,} parameters"
        return (
            plain if self.text.replace("_", "").replace(",", "") == str(self.parameters) else f"{self.text} = {plain}"
        )


def _digits(number: int) -> str:
    """Write a number with its thousands apart; one too long to be written, which no budget is, by its magnitude."""
    return f"{number:_}" if abs(number) < 10**_LONGEST_BUDGET else f"about 2^{number.bit_length()}"


def union(plans: Iterable[Plan]) -> Plan:
    """Return the plan that holds every placement of ``plans``; where they disagree, the larger size."""
    sizes: dict[tuple[str, str], int] = {}
    for plan in plans:
        for key, size in plan.sizes.items():
            sizes[key] = max(size, sizes.get(key, 0))
    return Plan.of(sizes)
