"""Finished studies made by hand: a summary, and a folder that holds it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fake_sites import fake_sites
from peftscout.plan import Plan
from peftscout.study import write_json

SITES = fake_sites("encoder", layers=3)
LORA = Plan.of({(f"layers.{i}.attention.{r}", "lora"): 2 for i in range(3) for r in "qv"})
MIXED = Plan.of(
    {
        ("layers.0.attention.q", "lora"): 1,
        ("layers.2.attention.q", "lora"): 4,
        ("layers.1.ffn", "serial"): 3,
        ("layers.1.ffn_norm", "bias"): 1,
    }
)
SMALL = Plan.of({("layers.1.ffn_norm", "bias"): 1})
HOSTILE = "<script>alert('x')</script> \"quoted\" | `tick` \u202egnp.exe $x^2$ =1+1 " + "long" * 60


def trial(number: int, plan: Plan, score: float | None, **changes: Any) -> dict[str, Any]:
    row = {
        "number": number,
        "stage": "search",
        "label": f"plan {number}",
        "state": "done" if score is not None else "failed",
        "cost": plan.cost(SITES),
        "score": score,
        "seconds": 2.0,
        "steps": 10,
        "passes": 12.0,
        "full": True,
        "peak_memory": 50_000_000 + number * 1_000_000,
        "seed": 0,
        "lr_scale": 1.0,
        "message": "" if score is not None else "it broke",
        "plan": plan.to_json(),
    }
    return row | changes


def contender(plan: Plan, score: float | None, number: int) -> dict[str, Any]:
    return {
        "plan": plan.to_json(),
        "cost": plan.cost(SITES),
        "score": score,
        "lr_scale": 1.0,
        "label": "x",
        "trial": number,
    }


TRIALS = [
    trial(0, LORA, 0.70),
    trial(1, MIXED, 0.80, seconds=3.0),
    trial(2, SMALL, 0.60, seconds=1.0),
    trial(3, MIXED, None, seconds=0.5),
    trial(4, LORA, 0.99, full=False),
    trial(5, MIXED, 0.75, stage="tune", lr_scale=3.0),
    trial(6, MIXED, 0.84, stage="final", seed=10_000),
]
FINAL = {
    "best": {"scores": [0.84, 0.80], "mean": 0.82, "std": 0.028284},
    "baseline": {"scores": [0.70, 0.72], "mean": 0.71, "std": 0.014142},
    "difference": 0.11,
    "interval": [0.02, 0.2],
}


def summary(trials: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    made = {
        "schema": 1,
        "model": "some/model",
        "parameters": 100_000,
        "task": "rte",
        "metric": "accuracy",
        "labels": ["no", "yes"],
        "budget": {"parameters": 800, "text": "0.8%"},
        "strategy": "random",
        "space": "all",
        "sites": [asdict(site) for site in SITES.values()],
        "trials": TRIALS if trials is None else trials,
        "best": contender(MIXED, 0.80, 1),
        "baseline": contender(LORA, 0.70, 0),
        "final": FINAL,
        "verdict": "A plan: accuracy 0.8200, 11.0 points above uniform LoRA.",
        "spent": {
            "seconds": 10.0,
            "forward_backward_passes": 99.0,
            "tokens": 9,
            "tokens_per_real_token": 1.1,
            "supernet": None,
        },
    }
    return made | changes


HEADER = {
    "schema": 1,
    "config": {"model": "some/model", "budget": "0.8%", "data": {"source": "rte"}, "seed": 0},
    "data": {"splits": {"train": {"rows": 12, "sha256": "abcdef0123456789"}}},
    "model": {"parameters": 100_000, "reference": {}, "fingerprint": "f"},
    "versions": {"peftscout": "0.1.0", "torch": "2.13.0"},
}


def study(folder: Path, made: dict[str, Any]) -> Path:
    """Write a study's folder with this summary and no ledger."""
    folder.mkdir(parents=True)
    write_json(folder / "study.json", HEADER)
    write_json(folder / "summary.json", made)
    return folder
