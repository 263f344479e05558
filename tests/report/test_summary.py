from dataclasses import replace
from types import SimpleNamespace

import pytest

from fake_sites import fake_sites
from peftscout.comparison import Comparison, Scores
from peftscout.config import StudyConfig
from peftscout.earlier import Earlier
from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan
from peftscout.report.summary import SupernetSpent, share, summarise, verdict
from peftscout.space import load_space
from peftscout.strategies.base import Problem

SITES = fake_sites("encoder")
LORA = Plan.of({(f"layers.{i}.attention.{r}", "lora"): 2 for i in (0, 1) for r in "qv"})
OTHER = Plan.of({("layers.1.ffn", "serial"): 3})
PROBLEM = Problem(SITES, load_space("all", SITES), Budget(600, "5%"), LORA, Fidelity(10), 3)
TASK = SimpleNamespace(name="rte", metrics=("accuracy", "f1"), labels=("no", "yes"))
CONFIG = StudyConfig.from_mapping({"model": "m", "budget": "5%", "data": {"source": "rte"}})


def record(number: int, plan: Plan, score: float | None, stage="search", seed=0) -> Record:
    state = State.DONE if score is not None else State.DIVERGED
    outcome = Outcome(state, plan.cost(SITES), score, seconds=2.0, steps=10, passes=12.5, tokens=100, real_tokens=80)
    return Record(number, stage, Evaluate(plan, Fidelity(10), seed, 1.0, f"plan {number}"), outcome)


def comparison(ours, theirs, interval) -> Comparison:
    difference = sum(ours) / len(ours) - sum(theirs) / len(theirs)
    return Comparison(Scores(tuple(ours)), Scores(tuple(theirs)), difference, interval)


def say(c: Comparison | None, best: Plan = OTHER, baseline_score: float | None = 0.7) -> str:
    return verdict(TASK, PROBLEM, record(1, best, 0.8), record(0, LORA, baseline_score), c, 12_000)


def test_a_gain_is_told_with_its_numbers():
    text = say(comparison([0.85, 0.83], [0.80, 0.82], (0.002, 0.058)))
    assert text.startswith("serial adapters of 3 on")
    assert "227 trainable parameters (1.89 %)" in text
    assert "accuracy 0.8400 +- 0.0141, 3.0 points above uniform LoRA at the same budget (0.8100 +- 0.0141;" in text
    assert "95% interval 0.2 to 5.8)" in text
    assert "No significant gain" not in text


def test_a_loss_of_language_models_is_no_share_so_its_differences_are_not_told_in_points(monkeypatch):
    monkeypatch.setattr(TASK, "metrics", ("neg_loss",))
    text = say(comparison([-1.0, -1.1], [-1.8, -1.7], (0.069, 1.452)))
    assert "neg_loss -1.0500 +- 0.0707, 0.7000 above uniform LoRA at the same budget (-1.7500 +- 0.0707;" in text
    assert "95% interval 0.0690 to 1.4520)" in text
    assert "points" not in text


def test_an_interval_that_holds_zero_is_no_gain():
    assert say(comparison([0.85, 0.83], [0.80, 0.82], (-0.01, 0.07))).startswith(
        "No significant gain over uniform LoRA"
    )


def test_a_loss_advises_the_baseline():
    text = say(comparison([0.70, 0.71], [0.80, 0.82], (-0.15, -0.05)))
    assert text.startswith("Uniform LoRA is better")
    assert "10.5 points below" in text
    assert text.endswith("Use uniform LoRA.")


def test_one_seed_proves_nothing():
    text = say(comparison([0.9], [0.5], None))
    assert "nothing is proven" in text
    assert "+-" not in text


def test_when_the_baseline_itself_was_best_that_is_said():
    text = say(comparison([0.8, 0.8], [0.8, 0.8], (0.0, 0.0)), best=LORA)
    assert text.startswith("No plan was better than uniform LoRA in this search.")


def test_without_a_comparison_only_the_search_score_is_claimed():
    text = say(None)
    assert "accuracy 0.8000 on the search split; not compared on the report split." in text
    assert "did not train" not in text
    assert "Uniform LoRA did not train to a score." in say(None, baseline_score=None)


@pytest.mark.parametrize(
    ("cost", "total", "text"), [(350, 100_000, "0.35 %"), (1, 1_000_000, "0.0001 %"), (5000, 100_000, "5.00 %")]
)
def test_shares_keep_two_digits_that_matter(cost, total, text):
    assert share(cost, total) == text


def test_the_summary_counts_everything_that_was_spent_and_every_trial():
    records = [
        record(0, LORA, 0.7),
        record(1, OTHER, 0.8),
        record(2, OTHER, None, seed=1),
        record(3, OTHER, 0.81, "final", 9),
    ]
    running = Record(4, "search", Evaluate(LORA, Fidelity(10), 7), None)
    c = comparison([0.85, 0.83], [0.80, 0.82], (0.002, 0.058))
    s = summarise(
        CONFIG, TASK, PROBLEM, [*records, running], best=records[1], baseline=records[0], comparison=c, total=12_000
    )
    spent = {"seconds": 8.0, "forward_backward_passes": 50.0, "tokens": 400, "tokens_per_real_token": 1.25}
    assert s["spent"] == spent | {"supernet": None}
    assert [(t["number"], t["state"], t["score"]) for t in s["trials"]] == [
        (0, "done", 0.7),
        (1, "done", 0.8),
        (2, "diverged", None),
        (3, "done", 0.81),
        (4, "running", None),
    ]
    assert s["best"]["cost"] == OTHER.cost(SITES)
    assert s["final"]["best"] == {
        "scores": [0.85, 0.83],
        "mean": pytest.approx(0.84),
        "std": pytest.approx(0.0141, abs=1e-3),
    }
    assert s["final"]["interval"] == [0.002, 0.058]
    assert s["metric"] == "accuracy"
    assert s["labels"] == ["no", "yes"]


def test_a_run_that_goes_on_from_a_lower_rung_is_counted_once_as_far_as_it_came():
    def at(number, steps):
        outcome = Outcome(
            State.DONE, 1, 0.5, seconds=1.0, steps=steps, passes=float(steps), tokens=steps, real_tokens=1
        )
        return Record(number, "search", Evaluate(OTHER, Fidelity(steps, rungs=(10, 30)), 0), outcome)

    records = [record(0, LORA, 0.7), at(1, 10), at(2, 30)]
    s = summarise(CONFIG, TASK, PROBLEM, records, best=records[2], baseline=records[0], comparison=None, total=12_000)
    assert s["spent"]["forward_backward_passes"] == 12.5 + 30
    assert s["spent"]["seconds"] == 4.0
    assert s["spent"]["tokens"] == 130


def test_what_a_supernet_took_is_part_of_what_was_spent():
    records = [record(0, LORA, 0.7), record(1, OTHER, 0.8)]
    supernet = SupernetSpent(steps=20, passes=41, seconds=3.5)
    without, with_it = (
        summarise(
            CONFIG, TASK, PROBLEM, records, best=records[1], baseline=records[0], comparison=None, total=12_000,
            supernet=spent,
        )["spent"]
        for spent in (None, supernet)
    )  # fmt: skip
    assert with_it["seconds"] == without["seconds"] + 3.5
    assert with_it["forward_backward_passes"] == without["forward_backward_passes"] + 41
    assert with_it["supernet"] == {"steps": 20, "passes": 41, "seconds": 3.5}


def test_the_rank_correlation_of_rungs_and_end_is_that_of_the_plans_trained_to_the_end():
    ladder = (10, 30)

    def run(number, rank, early, final=None):
        """The record of a run that went to its end, or of one that was left at the rung."""
        plan = Plan.of({(f"layers.0.attention.{'qkvo'[rank % 4]}", "lora"): 1 + rank // 4})
        steps = 30 if final is not None else 10
        curve = ((10, None, early), (30, None, final)) if final is not None else ((10, None, early),)
        outcome = Outcome(State.DONE, plan.cost(SITES), final or early, steps=steps, curve=curve)
        return Record(number, "search", Evaluate(plan, Fidelity(steps, rungs=ladder), 0), outcome)

    problem = replace(PROBLEM, fidelity=Fidelity(30, rungs=ladder))

    def rungs(records):
        return summarise(
            CONFIG, TASK, problem, records, best=records[0], baseline=records[0], comparison=None, total=12_000
        )["rungs"]

    agreeing = [run(n, n, n / 10, 0.5 + n / 10) for n in range(4)]
    (rung,) = rungs(agreeing)
    assert rung == {"steps": 10, "rank_correlation": pytest.approx(1.0), "plans": 4}
    (opposed,) = rungs([run(n, n, n / 10, 1.5 - n / 10) for n in range(4)])
    assert opposed["rank_correlation"] == pytest.approx(-1.0)
    gone_on = [run(9, 0, 0.0), *agreeing, run(10, 7, 0.2)]
    assert rungs(gone_on)[0]["plans"] == 4
    (nothing,) = rungs([run(0, 0, 0.1)])
    assert nothing == {"steps": 10, "rank_correlation": None, "plans": 0}


def test_what_came_from_another_study_stands_apart():
    records = [record(0, LORA, 0.7), record(1, OTHER, 0.8)]
    earlier = Earlier("studies/rte", ("task.kind: 'a' -> 'b'",), ((records[1].request, records[1].outcome),))
    of = {"best": records[1], "baseline": records[0], "comparison": None, "total": 12_000}
    s = summarise(CONFIG, TASK, PROBLEM, records, earlier=earlier, **of)
    assert s["from_study"] == {
        "study": "studies/rte",
        "used_as": "prior",
        "evaluations": 1,
        "differences": ["task.kind: 'a' -> 'b'"],
    }
    assert len(s["trials"]) == 2
    assert summarise(CONFIG, TASK, PROBLEM, records, **of)["from_study"] is None
