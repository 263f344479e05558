"""Studies and plans side by side."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from study_data import HOSTILE, LORA, MIXED, SITES, SMALL, contender, study, summary

from peftscout.errors import PlanError, StudyError
from peftscout.plan import Plan
from peftscout.report.side_by_side import LINES_SHOWN, read_entry, shown, side_by_side


def plan_file(folder, plan, name="plan.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(plan.to_json()))
    return folder / name


def compared(*places):
    return side_by_side([read_entry(place) for place in places])


def printed(found, width=120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(shown(found))
    return console.file.getvalue()


def test_every_entry_has_a_column_and_every_fact_a_row(tmp_path):
    a = study(tmp_path / "a", summary())
    b = study(tmp_path / "b", summary(strategy="uniform", best=contender(LORA, 0.7, 0), final=None))
    facts = compared(a, b).to_json()["facts"]
    assert facts["strategy"] == {str(a): "random", str(b): "uniform"}
    assert facts["parameters"] == {str(a): MIXED.cost(SITES), str(b): LORA.cost(SITES)}
    assert facts["accuracy, search split"] == {str(a): 0.80, str(b): 0.70}
    assert facts["accuracy, report split"] == {str(a): "0.8200 +- 0.0283 (n=2)", str(b): None}
    assert facts["difference"][str(a)] == "+0.1100 (+0.0200 to +0.2000)"


def test_a_plan_file_is_priced_and_told_in_words_by_the_sites_of_a_study_beside_it(tmp_path):
    a = study(tmp_path / "a", summary())
    facts = compared(plan_file(tmp_path, SMALL), a).to_json()["facts"]
    assert facts["parameters"][str(tmp_path / "plan.json")] == SMALL.cost(SITES)
    assert "biases" in facts["plan"][str(tmp_path / "plan.json")]


def test_plans_alone_have_no_price_but_differences(tmp_path):
    found = compared(plan_file(tmp_path, LORA, "a.json"), plan_file(tmp_path, SMALL, "b.json"))
    assert found.to_json()["facts"]["parameters"] == {str(tmp_path / "a.json"): None, str(tmp_path / "b.json"): None}
    ((_, lines),) = found.differences
    assert len(lines) == len(LORA) + len(SMALL)


def test_a_plan_of_another_model_is_not_priced_by_these_sites(tmp_path):
    a = study(tmp_path / "a", summary())
    other = plan_file(tmp_path, Plan.of({("encoder.7.attention.q", "lora"): 2}))
    assert compared(a, other).to_json()["facts"]["parameters"][str(other)] is None


def test_a_summary_and_the_folder_of_a_trial_are_read_too(tmp_path):
    a = study(tmp_path / "a", summary())
    trial = plan_file(tmp_path / "trials" / "003", LORA).parent
    assert read_entry(a / "summary.json").plan == MIXED
    assert read_entry(trial).plan == LORA


def test_what_makes_scores_incomparable_is_said(tmp_path):
    a = study(tmp_path / "a", summary())
    b = study(tmp_path / "b", summary(task="cola", budget={"parameters": 900, "text": "900"}))
    found = compared(a, b)
    assert found.caveats == ("They differ in the task: their scores cannot be compared.", "They had different budgets.")
    assert compared(a, plan_file(tmp_path, LORA)).caveats == ()


def test_equal_plans_and_long_differences_are_told_shortly(tmp_path):
    many = Plan.of({(s, "bias"): 1 for s in SITES if SITES[s].kind != "sublayer"})
    assert len(many) > LINES_SHOWN
    text = printed(
        compared(*(plan_file(tmp_path, p, n) for p, n in ((SMALL, "a"), (SMALL, "b"), (many, "c")))), width=200
    )
    assert f"{tmp_path / 'b'}: the same plan as {tmp_path / 'a'}." in text
    assert f"... and {len(many) - 1 - LINES_SHOWN} more" in text


def test_hostile_names_are_plain_in_a_terminal(tmp_path):
    text = printed(compared(study(tmp_path / "a", summary(task=HOSTILE, metric="[red]m")), plan_file(tmp_path, LORA)))
    assert "\u202e" not in text
    assert "[red]m" in text.replace("\n", "")


def test_what_cannot_be_compared_is_refused_with_the_remedy(tmp_path):
    plan = plan_file(tmp_path, LORA)
    with pytest.raises(StudyError, match="give two or more"):
        compared(plan)
    with pytest.raises(StudyError, match="is given twice"):
        compared(plan, plan)
    with pytest.raises(StudyError, match="no study, and no file with a plan"):
        compared(plan, tmp_path / "nowhere")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(PlanError, match=r"x\.json: a plan is a JSON object"):
        compared(plan, tmp_path / "x.json")
