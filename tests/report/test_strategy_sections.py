"""What a strategy has to tell: from the event log of its supernet, and from a replay of the ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from study_data import LORA, SITES, study, summary

from fake_sites import fake_sites
from peftscout.config import StudyConfig
from peftscout.ledger import Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget
from peftscout.report.replay import Prediction, predictions, problem_of, refinement
from peftscout.report.scout_section import module_values, ranking_table, scout_section
from peftscout.report.strategy_data import (
    NAMES_SHOWN,
    bipeft_sizes,
    calibration_table,
    calibration_words,
    distributions,
    final_gates,
    options_tables,
    read_events,
    s3delta_sizes,
    stages_table,
)
from peftscout.report.strategy_sections import strategy_section
from peftscout.report.view import View
from peftscout.space import load_space
from peftscout.strategies import make_strategy
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import lora_on_query_value

BIPEFT = [
    {
        "iteration": i, "triggers_left": 2 - n, "expected_size": size, "budget": 800, "reduction": 1.0,
        "pruned": [f"layers.{m}.ffn:serial" for m in range(pruned)], "fixed": fixed, "scores": {},
    }
    for n, (i, size, pruned, fixed) in enumerate(
        [(10, 2000.4, 8, {}), (20, 1100.0, 0, {"layers.1.ffn:serial": 4}), (30, 790.0, 1, {})]
    )
]  # fmt: skip
S3DELTA = [
    {
        "iteration": i, "expected_size": 799.9, "budget": 800, "loss": {"train": 0.7, "validation": 0.8},
        "probabilities": {"layers.0.attention.q:lora": [p], "layers.1.ffn:serial": [0.1, 0.2]},
    }
    for i, p in ((10, 0.4), (20, 0.9))
]  # fmt: skip

SCOUT = [
    {"iteration": 5, "slack": 8, "left": 2, "dropped": []},
    {
        "iteration": 9,
        "values": [
            {"name": "layers.0.attention.q:lora", "places": [["layers.0.attention.q", "lora"]], "sizes": [1, 4],
             "values": [1.0, 3.0]},
            {"name": "ffn", "places": [["layers.0.ffn", "serial"], ["layers.1.ffn", "serial"]], "sizes": [8],
             "values": [1.0]},
            {"name": "end", "places": [["final_norm", "norm"]], "sizes": [1], "values": [-2.0]},
        ],
        "ranking": [
            {"label": "scout", "cost": 700, "value": 4.0, "held_out_loss": 0.5, "all_rows": True, "plan": {}},
            {"label": "scout, diverged", "cost": 300, "value": 4.0, "held_out_loss": None, "all_rows": False,
             "plan": {}},
            {"label": "uniform LoRA in the space", "cost": 800, "value": 2.0, "held_out_loss": 0.4, "plan": {}},
            {"label": "by fisher", "cost": 80, "value": 2.0, "held_out_loss": 0.3, "all_rows": False, "plan": {}},
        ],
    },
]  # fmt: skip


def with_events(folder: Path, events, made) -> Path:
    place = study(folder, made) / "search"
    place.mkdir()
    place.joinpath("events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return folder


def test_bipefts_triggers_are_told_one_by_one(tmp_path):
    sizes = bipeft_sizes(BIPEFT)
    assert sizes is not None
    assert (sizes.steps, sizes.expected, sizes.budget) == ((10, 20, 30), (2000.4, 1100.0, 790.0), 800.0)
    first, second, _ = sizes.table.rows
    assert first[:4] == (10, 2000, 2, 8)
    assert str(first[4]).endswith(f" and {8 - NAMES_SHOWN} more")
    assert second[5:] == (1, "layers.1.ffn:serial = 4")


def test_s3deltas_gates_are_told_and_at_the_end_listed_by_probability():
    sizes = s3delta_sizes(S3DELTA)
    assert sizes is not None
    assert [row[4] for row in sizes.table.rows] == ["0 of 2", "1 of 2"]
    gates = final_gates(S3DELTA)
    assert gates is not None
    assert gates.rows == (("layers.0.attention.q:lora", 0.9), ("layers.1.ffn:serial", 0.2))


def test_an_event_log_is_read_as_far_as_it_can_be(tmp_path):
    assert read_events(tmp_path) == []
    (tmp_path / "search").mkdir()
    lines = ['{"iteration": 1}', "not json", "[2]", '{"iteration": "x"}', '{"iteration": 3}', '{"iterat']
    (tmp_path / "search" / "events.jsonl").write_text("\n".join(lines))
    assert [event["iteration"] for event in read_events(tmp_path)] == [1, 3]
    assert bipeft_sizes([]) is None
    assert s3delta_sizes(BIPEFT) is None
    assert final_gates(BIPEFT) is None


def test_scouts_values_are_shares_by_layer_and_place():
    values = module_values(SCOUT)
    assert values is not None
    assert (values.rows, values.columns) == (("end", "0", "1"), ("attention.q lora", "final_norm norm", "ffn serial"))
    assert values.shares == ((None, 0.0, None), (0.75, None, 0.125), (None, None, 0.125))
    assert [row[0] for row in values.table.rows] == ["layers.0.attention.q:lora", "ffn", "end"]
    assert values.table.rows[0][1:] == (75.0, "1: 1, 4: 3")


def test_scouts_ranking_begins_with_the_lowest_loss_on_all_rows_and_ends_with_what_diverged():
    ranking = ranking_table(SCOUT)
    assert ranking is not None
    best_first = ["uniform LoRA in the space", "scout", "by fisher", "scout, diverged"]
    assert [row[0] for row in ranking.rows] == best_first
    assert [row[4] for row in ranking.rows] == ["all rows", "all rows", "a part of them", "a part of them"]


def test_a_search_that_was_stopped_before_its_ranking_has_nothing_to_tell():
    assert module_values(SCOUT[:1]) is None
    assert ranking_table([]) is None
    assert scout_section(SCOUT[:1], "What scout found") is None


def test_the_strongest_place_is_said_in_words():
    section = scout_section(SCOUT, "What scout found")
    assert section is not None
    assert section.drawings[0].words == "Most is worth attention.q lora in layer 0: 75 % of the worth of all modules."


@pytest.mark.parametrize(
    ("strategy", "events"), [("bipeft", BIPEFT), ("s3delta", S3DELTA), ("scout", SCOUT), ("auto", SCOUT)]
)
def test_a_search_on_a_supernet_has_a_section_with_a_figure_and_tables(tmp_path, strategy, events):
    made = summary(strategy=strategy)
    section = strategy_section(with_events(tmp_path / "s", events, made), View(made))
    assert section is not None
    assert ("800" in section.drawings[0].words) is (strategy in ("bipeft", "s3delta"))
    assert section.tables[0][1].rows


def test_without_an_event_log_and_for_strategies_with_nothing_to_tell_there_is_no_section(tmp_path):
    for n, strategy in enumerate(("bipeft", "s3delta", "random", "uniform", "design-spaces", "autopeft")):
        made = summary(strategy=strategy)
        assert strategy_section(study(tmp_path / str(n), made), View(made)) is None


# -- replay -----------------------------------------------------------------------------------------------------------

TALL = fake_sites("encoder", layers=4)


def searched(
    name: str, space: str, trials: int, budget: int = 1200, **options
) -> tuple[Problem, StudyConfig, list[Record]]:
    """A search against a formula, as the ledger has it."""
    limit = Budget(budget, str(budget))
    baseline = lora_on_query_value(TALL, limit).plan
    problem = Problem(TALL, load_space(space, TALL), limit, baseline, Fidelity(10), trials)
    fields = {"model": "m", "budget": str(budget), "data": {"source": "rte"}, "strategy": name, "space": space}
    config = StudyConfig.from_mapping({**fields, "trials": trials, "strategy_options": options})
    strategy = make_strategy(name, problem, options)
    records: list[Record] = []

    def tell(request: Evaluate) -> None:
        cost = request.plan.cost(TALL)
        noise = np.random.default_rng([int(request.key, 16) % 2**32]).normal(0, 0.01)
        outcome = Outcome(State.DONE, cost, 0.5 + 0.1 * math.log10(cost) + float(noise), steps=request.fidelity.steps)
        records.append(Record(len(records), "search", request, outcome))
        strategy.tell(request, outcome)

    tell(Evaluate(baseline, problem.fidelity, 0))
    while len(records) < trials and (asked := strategy.ask(4)):
        for request in asked[: trials - len(records)]:
            tell(request)
    return problem, config, records


def test_the_surrogate_is_asked_about_each_trial_just_before_it_is_told_the_score():
    problem, config, records = searched("autopeft", "autopeft", 14)
    found = predictions(problem, config, records)
    assert 0 < len(found) < 14
    scores = {r.number: r.outcome.score for r in records if r.outcome is not None}
    assert all(p.score == scores[p.number] and p.std > 0 for p in found)
    shorter = predictions(problem, config, records[: found[-1].number])
    assert shorter == found[:-1], "what came later does not change what was expected before"


def test_calibration_counts_what_lay_within_one_and_two_standard_deviations():
    found = [Prediction(n, 0.5, 0.1, score) for n, score in enumerate((0.55, 0.65, 0.9))]
    assert calibration_words(found).startswith("Of 3 scores, 1 lay within one standard deviation")
    assert "and 2 within two" in calibration_words(found)
    assert [row[-1] for row in calibration_table(found).rows] == [0.5, 1.5, 4.0]


def test_the_stages_of_design_spaces_come_back_from_the_ledger():
    problem, config, records = searched(
        "design-spaces", "all", 60, models=8, least_models=2, reference=4, rungs=[1.0], resamples=200, finalists=2
    )
    report = refinement(problem, config, records)
    assert report.stages
    table = stages_table(report)
    assert [row[0] for row in table.rows] == [stage.name for stage in report.stages]
    compared = [stage for stage in report.stages if stage.rows]
    assert len(options_tables(report)) == len(compared)
    for stage, (_, options) in zip(compared, options_tables(report), strict=True):
        assert [row[0] for row in options.rows] == [row.option for row in stage.rows]
    for found in distributions(report):
        for _, points in found.curves:
            assert [share for _, share in points] == sorted(share for _, share in points)
            assert points[-1][1] == pytest.approx(1.0)


def test_the_problem_is_the_one_that_the_strategy_saw_and_unknown_without_sites_or_records():
    view = View(summary())
    config = StudyConfig.from_mapping({"model": "m", "budget": "800", "data": {"source": "rte"}, "export": "lora"})
    first = Record(0, "search", Evaluate(LORA, Fidelity(7), 0), None)
    problem = problem_of(view, config, [first])
    assert problem is not None
    assert (problem.baseline, problem.fidelity, problem.budget.parameters) == (LORA, Fidelity(7), 800)
    assert {choice.op for choice in problem.space.choices} == {"lora"}
    assert set(problem.sites) == set(SITES)
    assert problem_of(view, config, []) is None
    assert problem_of(View({**summary(), "sites": []}), config, [first]) is None
