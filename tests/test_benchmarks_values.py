"""The study of scout's values: correlations are what they say, and rows that are there are not computed again."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "strategies"))
from contract import problem

import mixed_rates
import search_quality
import value_correlation
from peftscout.outcome import Outcome, State
from peftscout.plan import Plan
from peftscout.space import load_space
from peftscout.strategies import STRATEGIES
from value_correlation import COLUMNS, PREDICTORS, append, by_seed, cell, correlation, plans_of, read, table


def rows(seeds: int = 2, plans: int = 12, noise: float = 0.0) -> list[dict[str, str]]:
    """Plan n scores n, and ``difference`` says so; ``removal`` says the opposite; all else is always the same."""
    rng = np.random.default_rng(0)
    return [
        {
            **dict.fromkeys(COLUMNS, "1"), "task": "sst2", "set": "0.1%", "seed": str(seed), "plan": str(n),
            "difference": str(n), "removal": str(-n), "score": str(n + noise * rng.random()), "loss": str(-n),
        }
        for seed in range(seeds)
        for n in range(plans)
    ]  # fmt: skip


def test_a_predictor_is_compared_with_the_trainings_of_other_seeds() -> None:
    seeds = by_seed(rows())
    seeds[0]["score"] = seeds[0]["score"][::-1]
    every = np.arange(12)
    assert correlation(by_seed(rows()), "difference", "score", every) == pytest.approx(1.0)
    assert correlation(by_seed(rows()), "removal", "score", every) == pytest.approx(-1.0)
    assert correlation(seeds, "difference", "score", every) == pytest.approx(0.0)
    assert correlation(seeds[:1], "difference", "score", every) == pytest.approx(-1.0)


def test_a_low_loss_is_a_good_one() -> None:
    assert correlation(by_seed(rows()), "difference", "loss", np.arange(12)) == pytest.approx(1.0)


def test_where_a_predictor_is_constant_there_is_no_correlation() -> None:
    assert np.isnan(correlation(by_seed(rows()), "cost", "score", np.arange(12)))


def test_only_plans_that_all_seeds_have_are_compared() -> None:
    some = [row for row in rows() if not (row["seed"] == "1" and int(row["plan"]) > 7)]
    assert [len(seed["score"]) for seed in by_seed(some)] == [8, 8]


def test_with_one_seed_there_is_no_agreement_of_two_trainings() -> None:
    assert cell(by_seed(rows(1)), "score", "score") == ""
    assert cell(by_seed(rows(2)), "score", "score").startswith("1.00 [")


def test_the_table_has_a_line_for_each_target(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(value_correlation, "RESULTS", tmp_path / "rows.csv")
    assert len(table().splitlines()) == 2
    for row in rows():
        append(row)
    assert read() == rows()
    header, _, score, loss = table().splitlines()
    assert [cell.strip() for cell in header.split("|")[8:-2]] == list(PREDICTORS)
    assert score.startswith("| sst2 | 1 | 0.1% | 1 | score | 12 | 2 | 1.00 [")
    assert loss.startswith("| sst2 | 1 | 0.1% | 1 | loss | 12 | 2 | 1.00 [")


def test_the_plans_of_a_set_are_always_the_same_and_within_their_budgets() -> None:
    p = problem(space="lora")
    total = 2_000_000
    assert plans_of("0.1%", p, total, 3) == plans_of("0.1%", p, total, 5)[:3]
    assert max(plan.cost(p.sites) for plan in plans_of("0.1%", p, total, 9)) <= 2000
    costs = [plan.cost(p.sites) for plan in plans_of("across", p, total, 10)]
    assert all(
        cost <= share * total for cost, share in zip(costs, [0.0002, 0.0005, 0.001, 0.002, 0.005] * 2, strict=True)
    )


def test_rows_that_are_there_are_not_computed_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(value_correlation, "RESULTS", tmp_path / "rows.csv")
    for row in rows(seeds=2, plans=3):
        append({**row, "steps": "4", "space": "lora"})

    class Prepared:
        backbone = Namespace(model_map=Namespace(total=2_000_000))

    monkeypatch.setattr(value_correlation, "study", lambda *_: (problem(space="lora"), Prepared()))
    monkeypatch.setattr(value_correlation, "make_evaluator", lambda *_: None)
    asked = Namespace(tasks=["sst2"], glue=tmp_path, space="lora", sets=["0.1%"], seeds=2, plans=3, steps=4)
    value_correlation.run(asked)
    assert len(read()) == 6
    with pytest.raises(AttributeError):  # there is no evaluator here, so whatever is missing cannot be computed
        value_correlation.run(Namespace(**{**vars(asked), "plans": 4}))


def test_every_search_of_the_quality_benchmark_is_a_strategy() -> None:
    assert {name for name, _ in search_quality.SEARCHES.values()} <= set(STRATEGIES)
    assert "scout" in search_quality.SEARCHES


def quality_row(contender: str, score: float, *, seed: int = 0, space: str = "lora", **times: float) -> dict[str, str]:
    columns = dict.fromkeys(search_quality.COLUMNS, "")
    given = {"task": "sst2", "budget": "0.1%", "seed": seed, "contender": contender, "space": space, "score": score}
    return columns | {name: str(value) for name, value in {**given, **times}.items()}


@pytest.fixture
def quality(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search_quality, "RESULTS", tmp_path / "quality.csv")
    for seed in (0, 1):
        search_quality.append(quality_row("uniform", 0.5 + seed / 10, seed=seed, space="all"))
        search_quality.append(quality_row("scout", 0.7 + seed / 10, seed=seed, search_seconds=30.0, train_seconds=20.0))
        for n in range(search_quality.RANDOM_PLANS):
            search_quality.append(quality_row(f"random-{n}", 0.4 + n / 100 + seed / 10, seed=seed))


@pytest.mark.usefixtures("quality")
def test_a_search_is_compared_where_both_were_trained_and_within_its_space() -> None:
    search_quality.append(quality_row("scout", 0.1, space="all"))
    by = search_quality.scores("lora")
    assert {name: list(of.values()) for name, of in by.items()} == {
        "uniform": [0.5, 0.6],
        "random, mean": pytest.approx([0.435, 0.535]),
        "random, best of 8": pytest.approx([0.47, 0.57]),
        "scout": pytest.approx([0.7, 0.8]),
    }
    lines = search_quality.table("lora").splitlines()
    assert lines[2] == "| sst2 | 0.1% | 0.550 | 0.485 | 0.520 | 0.750 |"
    assert lines[-1] == "| scout | +0.265 [+0.265, +0.265] | 2 | +0.200 [+0.200, +0.200] | 2 |  | 0 | 1.5 |"


@pytest.mark.usefixtures("quality")
def test_the_figure_has_every_contender_also_where_one_has_no_score(tmp_path) -> None:
    search_quality.append(quality_row("bipeft", 0.6, seed=2))
    search_quality.figure("lora", tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("quality")
def test_a_cell_with_random_plans_missing_has_no_random_mean() -> None:
    search_quality.append(quality_row("scout", 0.9, seed=2))
    search_quality.append(quality_row("random-0", 0.9, seed=2))
    assert ("sst2", "0.1%", "2") not in search_quality.scores("lora")["random, mean"]


@pytest.mark.usefixtures("quality")
def test_uniform_lora_is_trained_once_for_all_spaces() -> None:
    done = {search_quality.key_of(row) for row in search_quality.read()}
    cells = list(search_quality.cells(["sst2"], ["0.1%"], [0], ["scout", "random"], "bipeft-s1"))
    assert [cell.contender for cell in cells if cell.key in done] == ["uniform"]
    assert len(cells) == 2 + search_quality.RANDOM_PLANS


@pytest.mark.usefixtures("quality")
def test_tuned_uniform_lora_has_the_factor_that_is_best_on_the_mean_over_the_seeds_that_all_factors_have() -> None:
    for seed, (low, high) in enumerate([(0.9, 0.4), (0.3, 0.9)]):
        search_quality.append(quality_row("uniform x0.33", low, seed=seed))
        search_quality.append(quality_row("uniform x3", high, seed=seed))
    search_quality.append(quality_row("uniform x0.33", 1.0, seed=2))
    assert search_quality.scores("lora")["uniform, tuned"] == {("sst2", "0.1%", "0"): 0.4, ("sst2", "0.1%", "1"): 0.9}
    assert "| +0.100 [-2.441, +2.641] | 2 | 1.5 |" in search_quality.table("lora")


def test_the_factors_of_tuned_uniform_lora_are_trained_once_for_all_spaces() -> None:
    of = {cell.key[-1] for cell in search_quality.cells(["sst2"], ["0.1%"], [0], ["tuned"], "bipeft-s1")}
    assert of == {""}


def test_scout_is_tuned_with_the_plan_of_its_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(search_quality, "RESULTS", tmp_path / "rows.csv")
    cells = [c for c in search_quality.cells(["sst2"], ["0.1%"], [0], ["scout-tuned"], "lora") if c.base == "scout"]
    assert [(c.contender, c.factor, c.key[-1]) for c in cells] == [
        ("scout x0.33", 0.33, "lora"),
        ("scout x3", 3, "lora"),
    ]
    with pytest.raises(SystemExit, match=r"scout x0.33: there is no row of scout for it yet; name that first"):
        search_quality.plan_of(cells[0], problem(space="lora"), None)
    search_quality.append(quality_row("scout", 0.8, plan="layers.0.ffn.up: lora 4", search_seconds=9, train_seconds=9))
    found = Plan.of({("layers.0.ffn.up", "lora"): 4})
    assert search_quality.plan_of(cells[0], problem(space="lora"), None) == (found, 0.0)
    search_quality.append(quality_row("scout x0.33", 0.7))
    search_quality.append(quality_row("scout x3", 0.9))
    search_quality.append(quality_row("uniform", 0.85, space=""))
    assert search_quality.scores("lora")["scout, tuned"] == {("sst2", "0.1%", "0"): 0.9}
    search_quality.append(quality_row("bipeft", 0.78, search_seconds=9, train_seconds=9))
    written = search_quality.table("lora")
    assert "| scout, tuned |  | 0 | 0.050 | 1 |  | 0 |  |" in written
    assert "| scout less bipeft | 0.020 | 1 |" in written


def test_a_search_that_trains_is_given_its_trials_and_the_best_of_them_is_its_plan() -> None:
    asked = []

    def evaluator(request):
        asked.append(request.plan)
        failed = len(asked) == 4
        score = None if failed else float(-abs(len(asked) - 7))
        return Outcome(State.FAILED if failed else State.DONE, request.plan.cost(p.sites), score)

    p = problem(space="lora")
    plan = search_quality.best_trained("random", {}, p, evaluator)
    assert len(asked) == search_quality.TRAINED_TRIALS
    assert plan == asked[6]


def test_a_search_that_trains_never_does_so_on_the_rows_that_are_scored() -> None:
    cell = search_quality.Cell("sst2", "0.1%", 0, "autopeft", "lora")
    with pytest.raises(ValueError, match="autopeft trains in its search: give it an evaluator of other rows"):
        search_quality.plan_of(cell, problem(space="lora"), None)


def test_rates_are_named_by_what_they_multiply_and_by_how_much() -> None:
    assert mixed_rates.factors("alone") == {}
    assert mixed_rates.factors("norm x0.33") == {"norm": 0.33}
    assert mixed_rates.factors("vectors x2") == {"bias": 2.0, "norm": 2.0}
    assert set(mixed_rates.factors("all x0.5")) == {"lora", "lowrank_adapter", "bias", "norm"}


def test_rates_of_each_family_alone_take_back_what_the_rule_does_to_vectors() -> None:
    p = problem(space="lora")
    everywhere = load_space("all", p.sites)
    plan = Plan.of({(c.site, c.op): c.sizes[-1] for c in everywhere.choices if c.op in ("bias", "norm", "lora")})
    assert mixed_rates.scales("by the rule", plan, p) == {}
    assert mixed_rates.scales("alone", plan, p) == pytest.approx({"bias": 3.0, "norm": 3.0})
    assert mixed_rates.scales("all x0.5", plan, p) == pytest.approx({"bias": 1.5, "norm": 1.5, "lora": 0.5})
    lora = Plan.of({key: size for key, size in plan.sizes.items() if key[1] == "lora"})
    assert mixed_rates.scales("alone", lora, p) == mixed_rates.scales("by the rule", lora, p) == {}


def test_a_plan_on_every_projection_is_named_by_its_rank_and_other_names_are_refused() -> None:
    p = problem(space="lora")
    plan = mixed_rates.plan_named(search_quality.Cell("sst2", "0.1%", 0, "all-linear-2", "lora"), p, None)
    assert {placement.size for placement in plan} == {2}
    assert len(plan) == sum(site.kind == "linear" for site in p.sites.values())
    with pytest.raises(SystemExit, match="best: a plan is uniform, random-N, all-linear-R or in the rows"):
        mixed_rates.plan_named(search_quality.Cell("sst2", "0.1%", 0, "best", "lora"), p, None)


def test_a_plan_is_read_back_from_its_row(tmp_path, monkeypatch) -> None:
    plan = Plan.of({("layers.0.ffn.up", "lora"): 4, ("layers.1.attention.q", "bias"): 1, ("layers.1.ffn", "serial"): 8})
    assert search_quality.plan_from(str(plan)) == plan
    cell = search_quality.Cell("sst2", "0.1%", 2, "scout", "lora")
    row = dict.fromkeys(search_quality.COLUMNS, "0") | {
        "task": "sst2", "budget": "0.1%", "seed": 2, "contender": "scout", "space": "lora", "plan": str(plan)
    }  # fmt: skip
    monkeypatch.setattr(search_quality, "RESULTS", tmp_path / "rows.csv")
    search_quality.append(row)
    assert search_quality.found_plan(cell) == plan
    assert search_quality.found_plan(replace(cell, seed=1)) is None
