"""The rows of `evaluator_speed.py`: a CSV file that grows, what is missing in it, and ratios within one repeat."""

from __future__ import annotations

import csv
import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

WARM_UP = 0
"""The repeat that is not counted: it fills caches. Counted repeats begin at 1."""

ISA = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")
"""CPU flags that decide the speed of matrix products, the best ones first."""

CASE = (
    "code", "cpu", "flags", "torch", "transformers", "peft",
    "shape", "lengths", "length_source", "tuned", "train_rows", "eval_rows",
)  # fmt: skip
"""Rows are comparable only when all of these are equal: ``code`` is a hash of peftscout's sources."""

COLUMNS = (*CASE, "variant", "repeat", "parameters", "cpu_seconds", "loop_cpu_seconds")

Row = Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """What one call of a variant took.

    Attributes:
        cpu_seconds: process CPU time of the whole call: build, train, evaluate, take apart.
        loop_cpu_seconds: of the training steps and the evaluation alone.
        parameters: trained, head excluded: equal for all variants of a case.
    """

    cpu_seconds: float
    loop_cpu_seconds: float
    parameters: int


@dataclass(frozen=True)
class Ratio:
    """How many times less CPU time than the base, over the repeats in which both ran."""

    median: float
    lowest: float
    highest: float
    repeats: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.lowest:.2f}-{self.highest:.2f}]"


def machine() -> dict[str, str]:
    """Return CPU, its flags that matter, and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    has = set((facts.get("flags") or facts.get("Features") or "").split())
    flags = " ".join(flag for flag in ISA if flag in has)
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"cpu": facts.get("model name", "unknown"), "flags": flags or "unknown", **versions}


def code_hash(folder: Path) -> str:
    """Return a hash of the Python sources in ``folder``: rows of different code are never mixed."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def append(path: Path, case: Row, variant: str, repeat: int, measured: Measured) -> None:
    """Add one row; a killed run loses the row that it was measuring and no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        seconds = {k: f"{getattr(measured, k):.4f}" for k in ("cpu_seconds", "loop_cpu_seconds")}
        writer.writerow({**case, "variant": variant, "repeat": repeat, "parameters": measured.parameters, **seconds})


def read(path: Path) -> list[Row]:
    """Return all rows; none when there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def of_case(rows: Iterable[Row], case: Row) -> list[Row]:
    """Return the rows of ``case``."""
    return [row for row in rows if all(row[name] == case[name] for name in CASE)]


def cases(rows: Iterable[Row]) -> list[Row]:
    """Return the distinct cases in order of appearance."""
    return list({tuple(row[name] for name in CASE): {name: row[name] for name in CASE} for row in rows}.values())


def complete_repeats(rows: Iterable[Row], variants: Sequence[str]) -> set[int]:
    """Return the counted repeats in which every one of ``variants`` was measured; the rows are of one case."""
    seen: dict[int, set[str]] = {}
    for row in rows:
        seen.setdefault(int(row["repeat"]), set()).add(row["variant"])
    return {repeat for repeat, found in seen.items() if repeat != WARM_UP and found >= set(variants)}


def missing_repeats(rows: Sequence[Row], variants: Sequence[str], wanted: int) -> list[int]:
    """Return numbers for the repeats to run: none that was begun, so that no repeat is half of two runs."""
    begun = max((int(row["repeat"]) for row in rows), default=WARM_UP)
    missing = max(0, wanted - len(complete_repeats(rows, variants)))
    return list(range(begun + 1, begun + 1 + missing))


def ratio(rows: Iterable[Row], variant: str, base: str, column: str = "loop_cpu_seconds") -> Ratio | None:
    """Return time of ``base`` / time of ``variant`` within each repeat; the rows are of one case."""
    times: dict[int, dict[str, float]] = {}
    for row in rows:
        if int(row["repeat"]) != WARM_UP:
            times.setdefault(int(row["repeat"]), {})[row["variant"]] = float(row[column])
    ratios = [t[base] / t[variant] for t in times.values() if base in t and variant in t]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios), len(ratios)) if ratios else None


def samples_per_second(rows: Iterable[Row], variant: str) -> float | None:
    """Return the median of training rows per CPU second of steps and evaluation; the rows are of one case."""
    rates = [
        int(row["train_rows"]) / float(row["loop_cpu_seconds"])
        for row in rows
        if row["variant"] == variant and int(row["repeat"]) != WARM_UP
    ]
    return statistics.median(rates) if rates else None


def table(rows: Sequence[Row], order: Sequence[str]) -> str:
    """Return a Markdown table of one case, its variants in ``order``: rates, and ratios against both bases."""
    lines = [
        "| variant | samples/s | x autopeft | x trainer | x autopeft, whole call | x trainer, whole call | n |",
        "|---|---|---|---|---|---|---|",
    ]
    found = {row["variant"] for row in rows}
    for variant in (name for name in order if name in found):
        rate = samples_per_second(rows, variant)
        n = len({row["repeat"] for row in rows if row["variant"] == variant and int(row["repeat"]) != WARM_UP})
        ratios = [
            ratio(rows, variant, base, column)
            for column in ("loop_cpu_seconds", "cpu_seconds")
            for base in ("autopeft", "trainer")
        ]
        cells = [
            variant,
            "-" if rate is None else f"{rate:.1f}",
            *("-" if r is None else str(r) for r in ratios),
            str(n),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
