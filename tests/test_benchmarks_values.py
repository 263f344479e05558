"""The study of scout's values: correlations are what they say, and rows that are there are not computed again."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent / "strategies"))
from contract import problem

import search_quality
import value_correlation
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
