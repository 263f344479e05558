"""What a study may take from another one, and what it may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fake_headers import header
from fake_sites import fake_sites
from peftscout.earlier import FILE, Earlier, earlier_for
from peftscout.errors import StudyError
from peftscout.header import Header, what_changes_scores
from peftscout.ledger import Ledger
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan
from peftscout.space import load_space
from peftscout.strategies.base import Problem
from peftscout.study import write_json

SITES = fake_sites("encoder")
BASELINE = Plan.of({(f"layers.{i}.attention.{r}", "lora"): 2 for i in (0, 1) for r in "qv"})
SERIAL = Plan.of({("layers.1.ffn", "serial"): 4})
FULL = Fidelity(10)
PROBLEM = Problem(SITES, load_space("all", SITES), Budget(600, "5%"), BASELINE, FULL, 3)


def done(plan: Plan, score: float, steps: int = 10, seed: int = 0) -> tuple[Evaluate, Outcome]:
    request = Evaluate(plan, Fidelity(steps), seed, label="a plan")
    return request, Outcome(State.DONE, plan.cost(SITES), score, steps=steps)


def a_study(folder: Path, *evaluated: tuple[Evaluate, Outcome], of: Header | None = None, stage="search") -> Path:
    folder.mkdir()
    write_json(folder / "study.json", (of or header()).to_json())
    ledger = Ledger.at(folder / "ledger.journal")
    for request, outcome in evaluated:
        ledger.finish(ledger.start(request, stage), outcome)
    return folder


def take(source: Path, into: Path, mine: Header | None = None, problem: Problem = PROBLEM) -> Earlier:
    return earlier_for(into, source, mine or header(), problem)


def test_evaluations_of_the_same_problem_are_observations(tmp_path):
    evaluated = (done(BASELINE, 0.7), done(SERIAL, 0.8))
    earlier = take(a_study(tmp_path / "a", *evaluated), tmp_path / "b")
    assert earlier.observed == evaluated
    assert earlier.related == ()
    assert "2 evaluations of" in earlier.note
    assert "known from the start" in earlier.note


def test_a_study_that_still_runs_gives_what_it_has(tmp_path):
    source = a_study(tmp_path / "a", done(SERIAL, 0.8))
    Ledger.at(source / "ledger.journal").start(Evaluate(BASELINE, FULL, 0), "search")
    assert take(source, tmp_path / "b").observed == (done(SERIAL, 0.8),)


def test_trainings_of_the_final_comparison_are_not_taken(tmp_path):
    source = a_study(tmp_path / "a", done(SERIAL, 0.8))
    ledger = Ledger.at(source / "ledger.journal")
    request, outcome = done(SERIAL, 0.9, seed=10_000)
    ledger.finish(ledger.start(request, "final"), outcome)
    assert take(source, tmp_path / "b").observed == (done(SERIAL, 0.8),)


@pytest.mark.parametrize(
    "config",
    [
        {"budget": "1%"},
        {"strategy": "autopeft"},
        {"space": "lora"},
        {"trials": 99},
        {"seed": 3},
        {"from_study": "elsewhere"},
        {"training": {"threads": 1, "cache_bytes": 0}},
        {"final": {"seeds": 0}},
    ],
)
def test_what_does_not_change_a_score_makes_no_difference(config):
    assert what_changes_scores(header(), header(**config)) == ()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"training": {"batch_size": 8}}, "training.batch_size: 32 -> 8"),
        ({"training": {"learning_rates": {"lora": 0.5}}}, "training.learning_rates.lora: None -> 0.5"),
        ({"training": {"backbone_dropout": "paper"}}, "training.backbone_dropout"),
        ({"data": {"source": "rte", "max_length": 32}}, "max_length: 256 -> 32"),
        ({"model": "another"}, "model: 'm' -> 'another'"),
    ],
)
def test_other_training_makes_the_evaluations_a_prior_and_says_why(tmp_path, config, word):
    earlier = take(a_study(tmp_path / "a", done(SERIAL, 0.8)), tmp_path / "b", header(**config))
    assert earlier.observed == ()
    assert earlier.related == (done(SERIAL, 0.8),)
    assert word in earlier.note
    assert earlier.summary()["used_as"] == "prior"


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["a", "b", "c"]},
        {"metrics": ["matthews"]},
        {"splits": {name: {"rows": 8, "sha256": "else"} for name in ("train", "search", "report")}},
    ],
)
def test_another_task_is_a_prior(tmp_path, changes):
    earlier = take(a_study(tmp_path / "a", done(SERIAL, 0.8)), tmp_path / "b", header(changes))
    assert earlier.related
    assert not earlier.observed


def test_other_steps_are_a_prior(tmp_path):
    earlier = take(a_study(tmp_path / "a", done(SERIAL, 0.8, steps=5)), tmp_path / "b")
    assert earlier.related
    assert "fidelity" in earlier.differences[0]


def test_a_folder_of_a_model_is_the_same_however_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert what_changes_scores(header(model="model"), header(model=str(tmp_path / "model"))) == ()


# -- refused ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(StudyError, match="is not a study"):
        take(tmp_path / "nothing", tmp_path / "b")


def test_a_study_does_not_begin_with_itself(tmp_path):
    source = a_study(tmp_path / "a", done(SERIAL, 0.8))
    with pytest.raises(StudyError, match="is the study itself; running it again continues it"):
        take(source, source)


def test_plans_of_another_model_are_refused(tmp_path):
    wider = fake_sites("encoder", 2, 64, 128)
    request, _ = done(SERIAL, 0.8)
    source = a_study(tmp_path / "a", (request, Outcome(State.DONE, SERIAL.cost(wider), 0.8, steps=10)))
    with pytest.raises(
        StudyError, match=r"its plans do not fit this model \(m there, m here\): layers.1.ffn: serial 4"
    ):
        take(source, tmp_path / "b")
    deeper = Plan.of({("layers.7.ffn", "serial"): 3})
    other = a_study(tmp_path / "c", (Evaluate(deeper, FULL, 0), Outcome(State.DONE, 50, 0.8)))
    with pytest.raises(StudyError, match="give a study of a model with the same layers and widths"):
        take(other, tmp_path / "b")


def test_a_study_without_a_score_in_the_space_is_refused_with_its_space(tmp_path):
    failed = Evaluate(SERIAL, FULL, 0), Outcome(State.FAILED, SERIAL.cost(SITES), message="x")
    with pytest.raises(StudyError, match="none of its 1 evaluations has a score of a plan in space 'all'"):
        take(a_study(tmp_path / "a", failed), tmp_path / "b")
    lora = replace(PROBLEM, space=load_space("lora", SITES))
    with pytest.raises(StudyError, match=r"space 'lora'; give the --space that it searched \('all'\)"):
        take(a_study(tmp_path / "c", done(SERIAL, 0.8)), tmp_path / "b", problem=lora)


# -- kept -------------------------------------------------------------------------------------------------------------


def test_what_was_taken_stays_when_the_other_study_goes_on_or_away(tmp_path):
    source, mine = a_study(tmp_path / "a", done(SERIAL, 0.8)), tmp_path / "b"
    earlier = take(source, mine)
    mine.mkdir()
    earlier.save(mine)
    ledger = Ledger.at(source / "ledger.journal")
    request, outcome = done(BASELINE, 0.7)
    ledger.finish(ledger.start(request, "search"), outcome)
    assert take(source, mine) == earlier
    take(source, tmp_path / "c").save(mine)
    assert Earlier.load(mine) == earlier
    (source / "study.json").unlink()
    assert take(source, mine) == earlier


def test_a_damaged_copy_is_named(tmp_path):
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(StudyError, match=FILE):
        Earlier.load(tmp_path)
