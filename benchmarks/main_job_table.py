"""Print the table of docs/results.md from the summaries in benchmarks/results/main_job."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "results" / "main_job"


def row(path: Path) -> str:
    s = json.loads(path.read_text(encoding="utf-8"))
    final = s["final"]

    def scores(name: str) -> str:
        f = final[name]
        return f"{f['mean']:.3f}" + (f" +- {f['std']:.3f}" if f["std"] is not None else "") + f" (n={len(f['scores'])})"

    low_high = "" if final["interval"] is None else "{:+.3f} to {:+.3f}".format(*final["interval"])
    searched = [t for t in s["trials"] if t["stage"] == "search"]
    cells = [
        path.stem,
        s["metric"],
        f"{s['budget']['text']} = {s['budget']['parameters']:,}",
        f"{len(searched)} x {searched[0]['steps']} steps",
        scores("baseline"),
        scores("best") if s["best"]["plan"] != s["baseline"]["plan"] else "uniform LoRA",
        f"{final['difference']:+.3f} {f'({low_high})' if low_high else ''}".strip(),
        f"{s['spent']['forward_backward_passes']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    print("| run | metric | budget | search | uniform LoRA | chosen plan | difference (95 %) | passes |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(FOLDER.glob("*.json")):
        print(row(path))


if __name__ == "__main__":
    main()
