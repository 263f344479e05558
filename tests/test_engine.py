"""Whole studies on tiny models: what a user gets from `peftscout.search`."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import peftscout
from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.errors import (
    BudgetError,
    ConfigError,
    DataError,
    NothingFeasibleError,
    PlanError,
    SpaceError,
    StudyError,
)
from peftscout.plan import Plan
from peftscout.report.progress import Silent
from peftscout.study import read_records
from peftscout.training.arithmetic import FP32, Arithmetic
from peftscout.training.stack_evaluator import evaluate_together
from tiny_task import save_tiny_model, write_task

QUICK = {"trials": 3, "steps": 4, "final": {"seeds": 2, "lr_scales": [1.0]}, "progress": False}
SUMMARY_KEYS = {
    "schema", "model", "task", "metric", "labels", "budget", "strategy", "space", "trials", "best", "baseline", "final",
    "verdict", "spent", "rungs", "from_study", "changes", "sites", "parameters",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_task(tmp_path_factory.mktemp("data"), train=120, validation=30)


@pytest.fixture(scope="module")
def result(model, data, tmp_path_factory) -> peftscout.Result:
    return peftscout.search(model, data, budget="5%", study=tmp_path_factory.mktemp("study") / "s", **QUICK)


def test_trial_0_is_uniform_lora_at_the_budget(result):
    first = result.summary["trials"][0]
    assert first["label"].startswith("uniform LoRA")
    assert {op for _, op, _ in first["plan"]["placements"]} == {"lora"}


def test_every_trial_is_within_the_budget(result):
    budget = result.summary["budget"]["parameters"]
    assert all(0 < cost <= budget for cost in result.trials["cost"])


def test_the_summary_has_the_documented_form(result):
    summary = json.loads((result.folder / "summary.json").read_text())
    seals = {key: summary.pop(key) for key in ("seal", "study")}
    assert all(seals.values())
    assert set(summary) == SUMMARY_KEYS
    assert summary == json.loads(json.dumps(result.summary))
    assert set(summary["final"]) == {"best", "baseline", "difference", "interval"}
    assert {"number", "state", "cost", "score", "seconds", "steps", "plan"} <= set(summary["trials"][0])
    assert summary["spent"]["forward_backward_passes"] > sum(t["steps"] for t in summary["trials"])


def test_the_chosen_plan_is_the_best_of_the_search(result):
    searched = result.trials[result.trials["stage"] != "final"]
    assert result.best.score == searched["score"].max()
    assert result.best.cost == result.best.plan.cost(peftscout.map_model(result.summary["model"]).sites)


def test_the_contenders_are_trained_with_fresh_seeds_and_the_same_ones(result):
    finals = result.trials[result.trials["stage"] == "final"]
    seeds = finals.groupby("label")["seed"].apply(sorted)
    assert all(s == seeds.iloc[0] for s in seeds)
    assert set(finals["seed"]).isdisjoint(result.trials[result.trials["stage"] == "search"]["seed"])


def test_the_front_has_no_beaten_plan(result):
    front = result.front
    assert front["cost"].is_monotonic_increasing
    assert front["score"].is_monotonic_increasing
    assert result.best.score == front["score"].iloc[-1]


def test_a_trial_folder_holds_plan_outcome_and_a_safetensors_adapter(result):
    for trial in result.summary["trials"]:
        folder = result.folder / "trials" / f"{trial['number']:03d}"
        assert Plan.from_json(json.loads((folder / "plan.json").read_text())).to_json() == trial["plan"]
        assert json.loads((folder / "outcome.json").read_text())["score"] == trial["score"]
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    suffixes = {p.suffix for p in result.folder.rglob("*") if p.is_file()}
    assert suffixes.isdisjoint({".pt", ".bin", ".pkl", ".pth", ".npy"})


def test_the_same_call_again_trains_nothing_and_gives_the_same_result(result, model, data):
    before = {p: p.stat().st_mtime_ns for p in (result.folder / "trials").rglob("*")}
    again = peftscout.search(model, data, budget="5%", study=result.folder, **QUICK)
    assert again.summary == result.summary
    assert {p: p.stat().st_mtime_ns for p in (result.folder / "trials").rglob("*")} == before


def test_a_changed_configuration_is_refused_with_the_difference(result, model, data):
    with pytest.raises(StudyError, match=r"config.steps: 4 -> 5"):
        peftscout.search(model, data, budget="5%", study=result.folder, **{**QUICK, "steps": 5})


def test_a_finished_study_goes_on_with_more_trials_where_that_is_asked_for(result, model, data, tmp_path):
    shutil.copytree(result.folder, tmp_path / "s")
    more = {**QUICK, "trials": 5}
    longer = peftscout.search(model, data, budget="5%", study=tmp_path / "s", accept_change=True, **more)
    assert longer.summary["changes"] == [{"after": len(result.trials), "differences": ["config.trials: 3 -> 5"]}]
    n = len(result.trials)
    assert list(longer.trials["score"][:n])[:n] == list(result.trials["score"])  # nothing is trained again
    assert sum(longer.trials["stage"] == "search") == 5
    at_once = peftscout.search(model, data, budget="5%", study=tmp_path / "at once", **more)
    searched = [r.trials[r.trials["stage"] == "search"] for r in (longer, at_once)]
    assert list(searched[0]["plan"]) == list(searched[1]["plan"])
    assert list(searched[0]["score"]) == list(searched[1]["score"])
    written = longer.report()
    for page in (written.html, written.markdown):
        assert f"after {n} evaluations this study went on with something else: config.trials: 3" in page.read_text()
    assert longer.export(tmp_path / "out").difference <= 1e-5
    again = peftscout.search(model, data, budget="5%", study=tmp_path / "s", **more)
    assert again.summary == longer.summary


def test_a_supernet_of_another_search_is_not_taken_up_after_a_change(model, data, tmp_path):
    options = {**QUICK, "strategy": "scout", "space": "lora", "final": {"seeds": 0}, "study": tmp_path / "s"}
    options["strategy_options"] = {"steps": 4, "ranking_rows": 8}
    peftscout.search(model, data, budget="5%", **options)
    options["space"] = "all"
    changed = peftscout.search(model, data, budget="5%", accept_change=True, **options)
    assert (tmp_path / "s" / "search.before-change-1").is_dir()
    fresh = peftscout.search(model, data, budget="5%", **{**options, "study": tmp_path / "fresh"})
    assert changed.best == fresh.best


def test_changed_data_are_refused_with_the_difference(result, model, tmp_path, data):
    other = write_task(tmp_path / data.name, train=119, validation=30)
    with pytest.raises(StudyError, match=r"data.splits.train.rows|data.files"):
        peftscout.search(model, other, budget="5%", study=result.folder, **QUICK)


def test_the_export_of_a_study_loads_and_is_verified(result, tmp_path):
    report = result.export(tmp_path / "adapter")
    assert report.difference <= 1e-5
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_an_open_study_is_the_result_of_the_search(result):
    assert peftscout.open_study(result.folder).summary == result.summary


def test_the_same_seed_gives_the_same_scores_in_another_folder(result, model, data, tmp_path):
    again = peftscout.search(model, data, budget="5%", study=tmp_path / "s", **QUICK)
    assert list(again.trials["score"]) == list(result.trials["score"])
    assert list(again.trials["plan"]) == list(result.trials["plan"])


@pytest.mark.parametrize("kind", ["regression", "multiple_choice"])
def test_other_kinds_of_tasks_work_too(model, tmp_path, kind):
    data = write_task(tmp_path / "copa", kind=kind, train=60, validation=20)
    r = peftscout.search(model, data, budget="5%", study=tmp_path / "s", **{**QUICK, "trials": 2})
    assert np.isfinite(r.best.score)
    assert r.export(tmp_path / "out").difference <= 1e-5


@pytest.mark.parametrize("name", ["roberta", "gpt2", "llama", "qwen3"])
def test_other_families_work_too(tmp_path, name, data):
    folder = save_tiny_model(tmp_path / "m", name)
    r = peftscout.search(folder, data, budget="5%", study=tmp_path / "s", **{**QUICK, "trials": 3})
    assert r.trials["state"].eq("done").all()


def test_data_in_memory_work_too(model, tmp_path):
    rows = {"text": [f"good word{i % 20}" for i in range(40)] + [f"bad word{i % 20}" for i in range(40)]}
    labelled = Dataset.from_dict({**rows, "label": [1] * 40 + [0] * 40}).shuffle(seed=0)
    both = DatasetDict(train=labelled, validation=labelled.select(range(20)))
    r = peftscout.search(model, both, budget="5%", study=tmp_path / "s", **{**QUICK, "trials": 1})
    assert r.summary["labels"] == ["0", "1"]


def test_export_lora_keeps_to_lora(model, data, tmp_path):
    r = peftscout.search(model, data, budget="5%", study=tmp_path / "s", export="lora", **QUICK)
    assert {op for plan in r.trials["plan"] for op in plan.ops} == {"lora"}
    assert r.export(tmp_path / "out", "lora").rung == "lora"


def test_a_found_plan_is_applied_to_other_data(result, model, tmp_path):
    other = write_task(tmp_path / "d", train=80, validation=20)
    done = peftscout.apply(result.folder / "summary.json", model, other, tmp_path / "out", steps=3, progress=False)
    assert done["cost"] == result.best.cost
    assert set(done["report"]) == {"accuracy", "macro_f1"}
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_a_plan_of_another_model_is_refused_before_training(result, tmp_path, data):
    plan = Plan.of({("layers.9.attention.q", "lora"): 1})
    with pytest.raises(PlanError, match=r"layers.9.attention.q: no such site"):
        peftscout.apply(plan, result.summary["model"], data, tmp_path / "out", steps=1, progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": "0.0000001%"}, BudgetError, "less than one parameter"),
        ({"budget": 10}, BudgetError, "below one layer"),
        ({"budget": "5 apples"}, BudgetError, "unknown unit"),
        ({"space": "loraa"}, SpaceError, "lora"),
        ({"strategy": "randm"}, ConfigError, "did you mean 'random'"),
        ({"strategy": "random", "strategy_options": {"x": 1}}, ConfigError, "has no options"),
        ({"trials": 0}, ConfigError, "trials"),
    ],
)
def test_bad_input_leaves_no_study_behind(model, data, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        peftscout.search(model, data, study=tmp_path / "s", **{**QUICK, "budget": "5%", **options})
    assert not (tmp_path / "s").exists()


def test_bad_data_leave_no_study_behind(model, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text('{"text": "a", "label": 0}\n')
    with pytest.raises(DataError):
        peftscout.search(model, tmp_path / "d", budget="5%", study=tmp_path / "s", **QUICK)
    assert not (tmp_path / "s").exists()


def test_a_search_in_which_everything_diverges_says_so(model, data, tmp_path):
    wild = {"learning_rates": {"lora": 1e30, "head": 1e30}, "clip": 1e30}
    with pytest.raises(NothingFeasibleError, match="diverged"):
        peftscout.search(model, data, budget="5%", study=tmp_path / "s", training=wild, **{**QUICK, "trials": 1})
    assert [str(r.outcome.state) for r in read_records(tmp_path / "s")] == ["diverged"]


def test_time_limits_the_search_but_never_the_baseline(model, data, tmp_path):
    r = peftscout.search(model, data, budget="5%", study=tmp_path / "s", time=1e-6, **{**QUICK, "trials": 50})
    assert (r.trials["stage"] == "search").sum() == 1


@pytest.mark.slow
def test_killed_at_any_moment_a_study_ends_with_the_same_trials(model, data, tmp_path):
    arguments = [
        sys.executable, "-m", "peftscout", "search", str(model), "--budget", "5%", "--data", str(data),
        "--trials", "5", "--steps", "8", "--final-seeds", "1", "--set", "final.lr_scales=[1.0]",
    ]  # fmt: skip

    def run(study: Path, kill_after: float | None) -> bool:
        process = subprocess.Popen(
            [*arguments, "--study", str(study)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        if kill_after is not None:
            started = False
            for line in process.stderr:  # the clock starts with the first trial, not with the imports
                started = started or "search 0" in line or "search" in line
                if started:
                    break
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors
        return process.returncode == 0

    assert run(tmp_path / "whole", None)
    kills = np.random.default_rng(0).uniform(0.05, 1.5, size=4)
    for kill_after in kills:
        run(tmp_path / "killed", float(kill_after))
    assert run(tmp_path / "killed", None)

    def identity(folder: Path):
        return [(r.number, r.stage, r.request, r.outcome.score) for r in read_records(folder)]

    assert identity(tmp_path / "killed") == identity(tmp_path / "whole")
    assert (tmp_path / "killed" / "summary.json").is_file()


def test_the_best_is_sought_among_those_with_the_most_training():
    from peftscout.engine import _best_of
    from peftscout.ledger import Record
    from peftscout.outcome import Evaluate, Fidelity, Outcome, State

    def record(number, steps, score, rank=1):
        plan = Plan.of({("layers.0.attention.q", "lora"): rank})
        outcome = Outcome(State.DONE, rank, score) if score is not None else Outcome(State.FAILED, rank)
        return Record(number, "search", Evaluate(plan, Fidelity(steps), 0), outcome)

    assert _best_of([record(0, 100, 0.7), record(1, 25, 0.9), record(2, 100, None)]).number == 0
    assert _best_of([record(0, 100, 0.7, rank=3), record(1, 100, 0.7, rank=2), record(2, 100, 0.7, rank=2)]).number == 1


LADDERS = [
    ("halving", {"eta": 3, "r_min": 3, "least_plans": 50}, 4),
    ("one-epoch", {"keep": 1}, 8),
]


@pytest.mark.slow
@pytest.mark.parametrize(("fidelity", "options", "trials"), LADDERS, ids=["halving", "one-epoch"])
def test_an_interrupted_search_on_rungs_ends_as_the_one_that_was_not(model, data, tmp_path, fidelity, options, trials):
    chosen = {"fidelity": fidelity, "fidelity_options": options, "trials": trials, "steps": 27, "budget": "5%"}
    config = StudyConfig.from_mapping(
        {"model": str(model), "data": {"source": str(data)}, "final": {"seeds": 0}, "training": {"batch_size": 16}}
        | chosen
    )
    whole = search_config(config, tmp_path / "whole", Silent())
    trials_of_whole = whole.trials
    assert len(trials_of_whole) > trials
    assert trials_of_whole["steps"].nunique() >= 2
    assert whole.best.score == trials_of_whole[trials_of_whole["steps"] == 27]["score"].max()
    assert trials_of_whole["full"].equals(trials_of_whole["steps"] == 27)
    assert set(whole.front["steps"]) == {27}

    class Interrupting(Silent):
        """Interrupts after so many optimiser steps."""

        def __init__(self, steps: int) -> None:
            self.left = steps

        def step(self, done: int, total: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    for steps in (35, 20, 11):
        with pytest.raises(KeyboardInterrupt):
            search_config(config, tmp_path / "cut", Interrupting(steps))
    cut = search_config(config, tmp_path / "cut", Silent())
    columns = ["label", "cost", "score", "steps", "seed", "plan"]
    assert cut.trials[columns].equals(trials_of_whole[columns])
    assert cut.best == whole.best


def test_what_does_not_go_with_rungs_is_refused_before_anything_is_written(model, data, tmp_path):
    for changes, message in [
        ({"fidelity": "halving", "strategy": "bipeft"}, "searches on one supernet"),
        ({"fidelity": "halving", "steps": 4}, "too few for a rung"),
        ({"fidelity": "one-epoch", "steps": 2}, "an epoch has"),
        ({"fidelity": "halving", "fidelity_options": {"etta": 3}}, "eta"),
    ]:
        with pytest.raises(ConfigError, match=message):
            peftscout.search(model, data, budget="5%", study=tmp_path / "s", **{**QUICK, **changes})
    assert list(tmp_path.iterdir()) == []


def test_the_search_may_use_a_share_of_the_rows_and_the_final_comparison_uses_all(model, data, tmp_path):
    settings = {**QUICK, "trials": 2, "steps": None, "data_fraction": 0.5, "training": {"batch_size": 2}}
    peftscout.search(model, data, budget="5%", study=tmp_path / "s", **settings)
    fidelities = {(r.stage, r.request.fidelity.data_fraction) for r in read_records(tmp_path / "s")}
    assert fidelities == {("search", 0.5), ("final", 1.0)}
    rows = json.loads((tmp_path / "s" / "study.json").read_text())["data"]["splits"]["train"]["rows"]
    assert {r.request.fidelity.steps for r in read_records(tmp_path / "s")} == {round(3 * rows / 2 / 2)}


def test_a_study_goes_on_with_the_arithmetic_it_began_with(model, data, tmp_path, monkeypatch):
    from peftscout import preparation

    monkeypatch.setattr(preparation, "choose", lambda precision, device: Arithmetic("bf16", "eager"))
    first = peftscout.search(model, data, budget="5%", study=tmp_path / "s", **QUICK)
    assert json.loads((tmp_path / "s" / "study.json").read_text())["arithmetic"]["dtype"] == "bf16"
    monkeypatch.setattr(preparation, "choose", lambda precision, device: FP32)
    assert peftscout.search(model, data, budget="5%", study=tmp_path / "s", **QUICK).summary == first.summary
    with pytest.raises(StudyError, match="precision"):
        peftscout.search(model, data, budget="5%", study=tmp_path / "s", **QUICK, training={"precision": "fp32"})


def test_the_summary_says_how_many_positions_were_computed_for_each_token(result):
    assert 1 <= result.summary["spent"]["tokens_per_real_token"] < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "space", "options"),
    [
        ("uniform", "all", {}),
        ("autopeft", "autopeft", {"initial": 3}),
        ("autopeft", "all", {"initial": 3}),
        ("design-spaces", "all", {"models": 2, "least_models": 2, "reference": 2}),
    ],
)
def test_every_strategy_runs_on_a_real_model_and_continues(model, data, tmp_path, strategy, space, options):
    chosen = {"strategy": strategy, "space": space, "strategy_options": options, "trials": 6, "steps": 3}
    chosen |= {"final": {"seeds": 0}, "progress": False, "budget": "8%", "study": tmp_path / "s"}
    r = peftscout.search(model, data, **chosen)
    assert r.trials["state"].isin(["done"]).all()
    assert (r.trials["cost"] <= r.summary["budget"]["parameters"]).all()
    assert peftscout.search(model, data, **chosen).summary == r.summary


def test_a_published_plan_is_compiled_to_the_model_and_the_budget(model, data, tmp_path):
    done = peftscout.apply("s4-model", model, data, tmp_path / "out", budget="20%", steps=2, progress=False)
    assert 0 < done["cost"] <= 0.2 * peftscout.map_model(model).total
    ops = {op for _, op, _ in json.loads((tmp_path / "out" / "plan.json").read_text())["placements"]}
    assert {"bias", "serial", "prefix"} <= ops
    with pytest.raises(ConfigError, match="give one, such as --budget"):
        peftscout.apply("s4-model", model, data, tmp_path / "other", progress=False)
    with pytest.raises(StudyError, match="did you mean 's4-model'"):
        peftscout.apply("s4-modle", model, data, tmp_path / "other", progress=False)


def test_a_baseline_that_wins_once_its_learning_rate_is_tuned_is_the_chosen_plan(model, data, tmp_path, monkeypatch):
    from peftscout.outcome import Outcome, State
    from peftscout.training.evaluator import Evaluator

    def score(self, request, *, after=None, progress=None):
        is_baseline = request.label.startswith("uniform")
        value = (0.9 if request.lr_scale == 3 else 0.5) if is_baseline else 0.7
        if after is not None and request.seed >= 10_000:
            with self.adapted(request.plan, request.seed) as adapted:
                after(adapted)
        return Outcome(State.DONE, request.plan.cost(self.backbone.model_map.sites), value)

    monkeypatch.setattr(Evaluator, "__call__", score)
    tuned = {**QUICK, "final": {"seeds": 2, "lr_scales": [1.0, 3.0]}}
    r = peftscout.search(model, data, budget="5%", study=tmp_path / "s", **tuned)
    assert r.summary["best"] == r.summary["baseline"]
    assert r.summary["best"]["lr_scale"] == 3.0
    assert r.verdict.startswith("No plan was better than uniform LoRA in this search.")
    assert set(r.trials[r.trials["stage"] == "final"]["label"]) == {r.summary["baseline"]["label"]}


def test_plans_that_are_evaluated_together_make_the_study_of_plans_that_are_evaluated_alone(
    model, data, tmp_path, monkeypatch
):
    from peftscout.executors import work

    options = {"budget": "5%", **QUICK, "strategy": "random", "trials": 6, "final": {"seeds": 0}}
    options |= {"training": {"precision": "fp32"}}
    sizes = []

    def counting(evaluator, requests, **kwargs):
        sizes.append(len(requests))
        return evaluate_together(evaluator, requests, **kwargs)

    monkeypatch.setattr(work, "evaluate_together", counting)
    monkeypatch.setattr(work, "capacity", lambda evaluator: 1)
    alone = peftscout.search(model, data, study=tmp_path / "alone", **options)
    assert sizes == []
    monkeypatch.setattr(work, "capacity", lambda evaluator: 3)
    together = peftscout.search(model, data, study=tmp_path / "together", **options)
    assert sizes == [3, 2]
    columns = ["number", "stage", "label", "state", "cost", "steps", "seed", "lr_scale", "plan"]
    assert together.trials[columns].equals(alone.trials[columns])
    assert np.allclose(together.trials["score"], alone.trials["score"], atol=1e-6)
    for number in range(6):
        assert (tmp_path / "together" / "trials" / f"{number:03d}" / "adapter" / "adapter_model.safetensors").is_file()
    assert peftscout.search(model, data, study=tmp_path / "together", **options).summary == together.summary


def test_a_search_with_a_time_limit_goes_plan_by_plan(model, data, tmp_path, monkeypatch):
    from peftscout.executors import work

    monkeypatch.setattr(work, "capacity", lambda evaluator: 16)
    r = peftscout.search(model, data, budget="5%", study=tmp_path / "s", **{**QUICK, "trials": 50, "time": 1})
    assert 1 <= len(r.trials[r.trials["stage"] == "search"]) < 50
