import io
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

from peftscout.plan import Plan
from peftscout.report import tables

PLAN = Plan.of({("layers.0.attention.q", "lora"): 2, ("layers.1.ffn", "serial"): 3})
SUMMARY = {
    "task": "rte [real]",
    "metric": "accuracy",
    "budget": {"text": "0.5%", "parameters": 1234},
    "best": {"cost": 1200, "score": 0.8125},
    "baseline": {"cost": 1100, "score": None},
    "final": {
        "best": {"scores": [0.8, 0.82], "mean": 0.81, "std": 0.0141},
        "baseline": {"scores": [0.79, 0.8], "mean": 0.795, "std": 0.0071},
        "difference": 0.015,
        "interval": [-0.01, 0.04],
    },
    "verdict": "No significant gain over [uniform] LoRA.",
    "spent": {"seconds": 3725.4, "forward_backward_passes": 1234.5, "tokens": 9, "tokens_per_real_token": 1.049},
}
DRY = {
    "model": "some/model",
    "parameters": 22_700_000,
    "sites": 150,
    "task": "rte",
    "rows": {"train": 2000, "search": 490},
    "budget": {"text": "0.5%", "parameters": 113_500},
    "space": {"name": "all", "choices": 400, "plans": 10**300 + 7},
    "cheapest": {"cost": 384},
    "dearest": {"cost": 40_000_000},
    "baseline": {"label": "uniform LoRA 8 on q, v", "cost": 110_000},
    "strategy": "random",
    "evaluations": 22,
    "steps": 188,
    "seconds_per_step": 0.25,
    "supernet": {"steps": 94, "seconds": 120.0},
    "from_study": "12 evaluations of studies/wide are a prior",
    "seconds": 3700.0,
}


def shown(renderable, width=110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_a_dry_run_names_every_number_that_a_decision_needs():
    text = shown(tables.dry_run(DRY))
    for part in (
        "22,700,000 parameters, 150 sites",
        "2,000 training rows, 490 search rows",
        "0.5% = 113,500 trainable parameters, head apart",
        "at most 94 steps, about 0:02:00",
        "12 evaluations of studies/wide are a prior",
        "400 choices, about 10^300 plans",
        "uniform LoRA 8 on q, v, 110,000 parameters",
        "at most 22 evaluations of 188 steps",
        "about 1:01:40, from a probe of 0.250 s a step",
    ):
        assert part in text


@pytest.mark.parametrize(("plans", "text"), [(0, "0"), (5_446_350, "5,446,350"), (10**12, "about 10^12")])
def test_large_spaces_are_told_as_powers_of_ten(plans, text):
    assert f"choices, {text} plans" in shown(tables.dry_run({**DRY, "space": {**DRY["space"], "plans": plans}}))


def test_the_comparison_shows_both_contenders_with_spread_and_interval():
    lines = shown(tables.comparison(SUMMARY)).splitlines()
    row = {line.split("│")[1].strip(): line for line in lines if line.startswith("│")}
    assert "0.8100 +- 0.0141 (n=2)" in row["chosen plan"]
    assert "0.8125" in row["chosen plan"]
    assert "0.7950 +- 0.0071 (n=2)" in row["uniform LoRA"]
    assert "- " in row["uniform LoRA"].split("│")[3]
    assert "+0.0150 (-0.0100 to +0.0400)" in row["difference"]


def test_without_a_final_comparison_there_is_no_difference_to_show():
    text = shown(tables.comparison({**SUMMARY, "final": None}))
    assert "difference" not in text
    assert "0.8125" in text


def test_with_one_seed_there_is_no_spread_and_no_interval():
    one = {"scores": [0.8], "mean": 0.8, "std": None}
    text = shown(
        tables.comparison({**SUMMARY, "final": {"best": one, "baseline": one, "difference": 0.0, "interval": None}})
    )
    assert "0.8000 (n=1)" in text
    assert "+-" not in text
    assert "+0.0000" in text


def test_the_end_of_a_search_says_what_to_type_next_and_takes_brackets_as_they_are():
    text = shown(tables.result(SUMMARY, Path("studies/mine")))
    assert "No significant gain over [uniform] LoRA." in text
    assert "peftscout report studies/mine" in text
    assert "peftscout export studies/mine OUT" in text


def test_the_status_shows_running_failed_and_finished_evaluations():
    keys = ("number", "stage", "label", "state", "cost", "score", "seconds")
    rows = [
        dict(zip(keys, (0, "search", "uniform [LoRA]", "done", 1100, 0.5, 2.04), strict=True)),
        dict(zip(keys, (1, "search", "random", "diverged", 900, None, 1.0), strict=True)),
        dict(zip(keys, (2, "final", "random", "running", None, None, None), strict=True)),
    ]
    text = shown(tables.status(rows))
    assert "uniform [LoRA]" in text
    assert "0.5000" in text
    assert "diverged" in text
    assert "running" in text
    assert "None" not in text


def test_the_report_leads_with_the_verdict_and_ends_with_what_was_spent():
    front = pd.DataFrame([{"number": 3, "cost": 700, "score": 0.75, "label": "random"}])
    study = SimpleNamespace(verdict=SUMMARY["verdict"], summary=SUMMARY, front=front, best=SimpleNamespace(plan=PLAN))
    text = shown(tables.report(study))
    assert text.startswith("No significant gain over [uniform] LoRA.")
    assert "Front" in text
    assert "700" in text
    assert "Chosen plan" in text
    assert "lora 2" in text
    assert "serial 3" in text
    ending = "Spent 1:02:05 and 1,234 forward-backward passes. Computed 1.05 positions for each token."
    assert " ".join(text.split()).endswith(ending)


def test_the_report_tells_rank_correlations_and_what_came_from_another_study():
    about = tables._about_rungs(
        [
            {"steps": 12, "rank_correlation": 0.714, "plans": 9},
            {"steps": 37, "rank_correlation": None, "plans": 0},
        ]
    )
    assert about == "\nRank correlation with the end of training: 0.71 after 12 steps (9 plans)."
    assert tables._about_rungs([]) == ""
    assert tables._about_earlier(None) == ""
    known = {"study": "a/b", "used_as": "observations", "evaluations": 7, "differences": []}
    assert (
        tables._about_earlier(known)
        == "\n7 evaluations of a/b were known from the start; they are not among the trials."
    )
