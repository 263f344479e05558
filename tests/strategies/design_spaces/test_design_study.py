"""A whole study with design spaces on a tiny model: real training, and the stage report from the ledger alone."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

import peftscout
from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.errors import ConfigError
from peftscout.preparation import prepare
from peftscout.report.progress import Silent
from peftscout.strategies.design_spaces import DesignSpacesOptions, design_spaces
from peftscout.study import read_header, read_records
from tiny_task import save_tiny_model, write_task

pytestmark = pytest.mark.slow

SPACE = """
name: two-groups
groups: 2
methods:
  lora: {op: lora, sites: ["*.attention.{q,v}"]}
  bitfit: {op: bias, sites: ["*"], biased_only: true}
  adapter: {op: serial, sites: ["*.ffn"]}
  prefix: {op: prefix, sites: ["*.attention"]}
axes:
  grouping: [uniform]
  allocation: [uniform]
  tunable: [[G1, G2], [G2]]
  methods: {G1: [[lora], [lora, prefix]], G2: [[lora, adapter], [lora, bitfit], [adapter, prefix]]}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("design-spaces")
    (folder / "space.yaml").write_text(SPACE)
    settings = {"models": 3, "least_models": 2, "rungs": [0.5, 1.0], "reference": 2, "resamples": 200}
    result = peftscout.search(
        save_tiny_model(folder / "model"),
        write_task(folder / "data", train=80, validation=24),
        budget=2000,
        study=folder / "study",
        progress=False,
        strategy="design-spaces",
        strategy_options={"design_space": str(folder / "space.yaml"), **settings},
        trials=24,
        steps=4,
        seed=1,
        final={"seeds": 0},
    )
    config = StudyConfig.from_mapping(read_header(folder / "study").config)
    return result, prepare(config).problem, DesignSpacesOptions(**config.strategy_options)


def test_a_study_with_design_spaces_runs_end_to_end_within_the_budget(study):
    result, problem, _ = study
    assert 15 < len(result.summary["trials"]) <= 24  # fewer where the found rule has no more plans
    assert all(0 < cost <= 2000 for cost in result.trials["cost"])
    assert {trial["state"] for trial in result.summary["trials"]} == {"done"}
    assert result.best.plan.cost(problem.sites) <= 2000


def test_the_costs_in_the_ledger_are_those_of_the_built_models(study):
    result, problem, _ = study
    for record in read_records(result.folder):
        assert record.outcome.cost == record.request.plan.cost(problem.sites)


def test_the_stage_report_regenerates_from_the_ledger_without_training(study):
    result, problem, options = study
    strategy = design_spaces(problem, options)
    for record in read_records(result.folder):
        strategy.tell(record.request, record.outcome)
    report = strategy.report()
    assert report.finished
    assert not strategy.ask(1)
    assert [(stage.name, stage.axis) for stage in report.stages] == [
        ("S1", "grouping"),
        ("S2", "allocation"),
        ("S3", "tunable"),
        ("S4", "methods.G1"),
        ("S5", "methods.G2"),
    ]
    assert [stage.verdict for stage in report.stages[:2]] == ["fixed", "fixed"]
    compared = [stage for stage in report.stages if stage.models]
    assert compared
    assert all(row.mean is not None for stage in compared for row in stage.rows)
    assert json.loads(json.dumps(report.to_json()))["finished"]


def test_base_models_differ_in_their_seed_and_options_do_not(study):
    result, _, _ = study
    requests = [r.request for r in read_records(result.folder) if " tunable: " in r.request.label]
    by_label = {label: [r.seed for r in requests if label in r.label] for label in ("all groups", "tunable: G2")}
    assert by_label["all groups"]
    assert set(by_label["tunable: G2"]) <= set(by_label["all groups"])
    assert min(by_label["all groups"]) == 1


def test_the_same_search_again_trains_nothing(study):
    result, _, _ = study
    config = StudyConfig.from_mapping(read_header(result.folder).config)
    before = len(read_records(result.folder))
    again = peftscout.search(
        config.model,
        config.data.source,
        budget=config.budget,
        study=result.folder,
        progress=False,
        **{k: v for k, v in config.to_mapping().items() if k not in ("model", "data", "budget")},
    )
    assert len(read_records(result.folder)) == before
    assert again.best.plan == result.best.plan


class StoppedAfter(Silent):
    """Presses Ctrl-C when so many evaluations have ended."""

    def __init__(self, evaluations: int) -> None:
        self.left = evaluations

    def finished(self, record, best, recalled) -> None:
        self.left -= not recalled
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A study on a classification and a regression task, uninterrupted; and its configuration."""
    folder = tmp_path_factory.mktemp("several-tasks")
    (folder / "space.yaml").write_text(SPACE)
    write_task(folder / "grades", kind="regression", train=80, validation=24)
    settings = {"models": 2, "least_models": 2, "rungs": [1.0], "reference": 2, "resamples": 200}
    config = StudyConfig.from_mapping(
        {
            "model": str(save_tiny_model(folder / "model")),
            "data": {"source": str(write_task(folder / "moods", train=80, validation=24))},
            "also": [{"source": str(folder / "grades")}],
            "budget": 2000,
            "strategy": "design-spaces",
            "strategy_options": {"design_space": str(folder / "space.yaml"), **settings},
            "trials": 21,
            "steps": 4,
            "final": {"seeds": 1},
        }
    )
    return search_config(config, folder / "study", Silent()), config


def test_every_model_is_trained_on_each_of_several_tasks(several):
    result, _ = several
    searched = [r.request for r in read_records(result.folder) if r.stage == "search"]
    own = [r for r in searched[1:] if not r.task]
    assert {r.task for r in searched} == {"", "grades"}
    assert sorted(replace(r, task="grades").key for r in own) == sorted(r.key for r in searched if r.task)
    assert len(searched) <= 21
    assert {trial["state"] for trial in result.summary["trials"]} == {"done"}


def test_the_score_of_the_own_task_decides_what_is_handed_over(several):
    result, _ = several
    own = [t for t in result.summary["trials"] if t["stage"] != "final" and not t["task"]]
    assert result.best.score == max(t["score"] for t in own)
    finals = [t for t in result.summary["trials"] if t["stage"] == "final"]
    assert finals
    assert not any(t["task"] for t in finals)
    assert set(result.front["cost"]) <= {t["cost"] for t in own}


def test_the_stages_judge_by_all_tasks_and_regenerate_from_the_ledger(several):
    result, config = several
    problem = prepare(config).problem
    assert problem.tasks == ("", "grades")
    records = [r for r in read_records(result.folder) if r.stage == "search"]

    def means(raised: float) -> list[float]:
        """Mean of every option that was compared, were the scores of the second task higher by so much."""
        strategy = design_spaces(problem, DesignSpacesOptions(**config.strategy_options))
        for record in records:
            score = record.outcome.score + raised * bool(record.request.task)
            strategy.tell(record.request, replace(record.outcome, score=score))
        report = strategy.report()
        assert report.finished
        return [row.mean for stage in report.stages for row in stage.rows if row.mean is not None]

    assert means(0.0)
    assert means(1.0) == pytest.approx([mean + 0.5 for mean in means(0.0)])


def test_a_study_on_several_tasks_that_was_interrupted_ends_as_if_it_had_not_been(several, tmp_path):
    result, config = several
    with pytest.raises(KeyboardInterrupt):
        search_config(config, tmp_path / "study", StoppedAfter(7))
    again = search_config(config, tmp_path / "study", Silent())
    told, expected = ({r.request.key: r.outcome.score for r in read_records(f)} for f in (again.folder, result.folder))
    assert told == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": "random", "strategy_options": {}},
            "also: strategy 'random' judges by one task; use design-spaces",
        ),
        ({"also": [{"source": "moods"}]}, "also.0: a second task 'moods'; every task needs a name of its own"),
    ],
)
def test_tasks_that_cannot_be_judged_together_are_refused_before_a_study_is_there(several, tmp_path, changes, message):
    _, config = several
    if "also" in changes:
        changes = {"also": [{"source": config.data.source}]}
    with pytest.raises(ConfigError, match=re.escape(message)):
        search_config(StudyConfig.from_mapping(config.to_mapping() | changes), tmp_path / "study", Silent())
    assert not (tmp_path / "study").exists()


def test_an_option_of_the_strategy_that_does_not_exist_is_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"strategy_options.pairs: strategy 'design-spaces' does not know it"):
        peftscout.search(
            tmp_path / "no-model",
            tmp_path / "no-data",
            budget=2000,
            progress=False,
            strategy="design-spaces",
            strategy_options={"pairs": 3},
        )
