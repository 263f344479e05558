"""The figures of docs/reliability.md: what the tests of reliability count in one run of their own.

::

    python benchmarks/reliability.py          # runs the tests, writes benchmarks/results/reliability.csv
    python benchmarks/reliability.py --docs   # writes the table of that file into docs/reliability.md

Counts are added up while the tests run, and a figure that should be 0 is counted like the others; with a failed test
nothing is written.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "reliability.csv"
PAGE = ROOT / "docs" / "reliability.md"
TESTS = ("tests/reliability", "tests/tasks/test_task_bad_data.py")
HEADER = "| counted in one run of the tests | |"


def figures_of(lines: list[str]) -> dict[str, int]:
    """Add up what tests recorded, one JSON object a line, in alphabetical order."""
    counted: Counter[str] = Counter()
    for line in lines:
        entry = json.loads(line)
        counted[entry["figure"]] += entry["count"]
    return dict(sorted(counted.items()))


def run() -> dict[str, int]:
    """Run the tests and return their figures."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "figures.jsonl"
        path.touch()
        environment = {**os.environ, "PEFTSCOUT_RELIABILITY": str(path), "CI": "1"}
        command = [sys.executable, "-m", "pytest", "-q", *TESTS]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            sys.exit("a test failed: no figures are written")
        return figures_of(path.read_text(encoding="utf-8").splitlines())


def table_of(figures: dict[str, int]) -> str:
    """Return the figures as Markdown."""
    rows = [f"| {name} | {count:,} |" for name, count in figures.items()]
    return "\n".join([HEADER, "|---|---|", *rows])


def with_table(page: str, table: str) -> str:
    """Return ``page`` with ``table`` in the place of the one that begins with the same line."""
    before, header, rest = page.partition(HEADER)
    if not header:
        sys.exit(f"{PAGE} has no table that begins with {HEADER!r}")
    _, _, after = rest.partition("\n\n")
    return f"{before}{table}\n\n{after}"


def read() -> dict[str, int]:
    """Return the figures that were written last."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return {row["figure"]: int(row["count"]) for row in csv.DictReader(file)}


def main(arguments: list[str]) -> None:
    if "--docs" not in arguments:
        figures = run()
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("figure", "count"), *figures.items()])
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table_of(read())), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
