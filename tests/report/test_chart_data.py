"""What is drawn is what the summary says."""

import math

import pytest
from study_data import LORA, MIXED, SITES, SMALL, contender, summary, trial

from fake_sites import fake_sites
from peftscout.plan import Plan
from peftscout.report import chart_data
from peftscout.report.table import Table, plain, written
from peftscout.report.view import Trial, View

VIEW = View(summary())


def test_points_are_the_full_trials_of_search_and_tuning_that_have_a_score():
    data = chart_data.front(VIEW)
    costs = [LORA.cost(SITES), MIXED.cost(SITES), SMALL.cost(SITES), MIXED.cost(SITES)]
    assert data.points == tuple(zip(costs, (0.70, 0.80, 0.60, 0.75), strict=True))


def test_the_front_is_cheapest_first_and_each_step_is_better():
    data = chart_data.front(VIEW)
    assert data.front == ((SMALL.cost(SITES), 0.60), (MIXED.cost(SITES), 0.80))
    assert [row[0] for row in data.table.rows] == [2, 1]
    assert data.budget == 800


def test_contenders_carry_mean_and_spread_over_their_seeds():
    (best, baseline) = chart_data.front(VIEW).contenders
    assert best == ("chosen plan", MIXED.cost(SITES), pytest.approx(0.82), pytest.approx(0.028284, abs=1e-5), 2)
    assert baseline[0] == "uniform LoRA"
    assert baseline[2] == pytest.approx(0.71)


def test_without_a_final_comparison_no_contender_has_error_bars_and_with_one_seed_no_spread():
    assert chart_data.front(View(summary(final=None))).contenders == ()
    one = {"scores": [0.8], "mean": 0.8, "std": None}
    final = {"best": one, "baseline": one, "difference": 0.0, "interval": None}
    (_, _, mean, spread, n), _ = chart_data.front(View(summary(final=final))).contenders
    assert (mean, spread, n) == (0.8, 0.0, 1)
    row = chart_data.comparison_table(View(summary(final=final))).rows[0]
    assert row[4:] == ("-", 1)


def test_a_baseline_that_is_the_chosen_plan_is_drawn_once():
    view = View(summary(best=contender(LORA, 0.7, 0)))
    assert len(chart_data.front(view).contenders) == 1
    bill = chart_data.bill(view)
    assert bill is not None
    assert [name for name, _ in bill.plans] == ["chosen plan"]


def test_a_baseline_without_a_score_is_not_drawn():
    assert chart_data.front(View(summary(baseline=contender(LORA, None, 0), final=None))).baseline is None


def test_a_map_has_a_panel_for_each_op_with_every_layer_and_every_place_where_it_can_sit():
    panels = {panel.op: panel for panel in chart_data.site_maps(MIXED, SITES)}
    assert set(panels) == {"lora", "bias", "serial"}
    lora = panels["lora"]
    assert lora.rows == ("0", "1", "2")
    assert lora.columns == ("q", "k", "v", "o", "up", "down")
    assert [row[0] for row in lora.sizes] == [1, 0, 4]
    assert lora.largest == 4
    assert panels["bias"].sizeless
    assert not lora.sizeless


@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder", "decoder"])
def test_the_cells_of_all_panels_are_the_placements_of_the_plan(kind):
    sites = fake_sites(kind, layers=2)
    chosen = list(sites)[::3]
    plan = Plan.of(
        {
            (s, "lora" if sites[s].kind == "linear" else "bias" if sites[s].kind == "norm" else "serial"): 1
            for s in chosen
        }
    )
    for known in (sites, None):
        used = [size for panel in chart_data.site_maps(plan, known) for row in panel.sizes for size in row if size]
        assert len(used) == len(plan)


def test_stacks_have_panels_of_their_own_and_what_lies_outside_the_layers_is_the_end():
    sites = fake_sites("encoder_decoder", layers=2)
    plan = Plan.of({("decoder.final_norm", "norm"): 1, ("encoder.0.ffn_norm", "norm"): 1})
    encoder, decoder = chart_data.site_maps(plan, sites)
    assert (encoder.stack, decoder.stack) == ("encoder", "decoder")
    assert decoder.rows == ("0", "1", "end")
    assert decoder.sizes[-1].count(1) == 1
    assert decoder.sizes[-1].count(None) == len(decoder.columns) - 1


def test_the_best_so_far_never_falls_and_ends_with_the_best_full_score_of_the_search():
    (course,) = chart_data.courses(VIEW).courses
    assert course.seconds == (2.0, 5.0, 6.0, 6.5, 8.5)
    assert course.best == (0.70, 0.80, 0.80, 0.80, 0.80)
    assert list(course.hypervolume) == sorted(course.hypervolume)
    assert course.hypervolume[-1] > course.hypervolume[0]


def test_hypervolume_is_the_area_over_log_parameters():
    (course,) = chart_data.courses(View(summary([trial(0, LORA, 0.5), trial(1, SMALL, 0.9)]))).courses
    expected = (math.log10(801) - math.log10(SMALL.cost(SITES))) * (0.9 - 0.5)
    assert course.hypervolume == pytest.approx((0.0, expected))


def test_a_failed_first_trial_leaves_the_beginning_of_the_course_open():
    (course,) = chart_data.courses(View(summary([trial(0, LORA, None), trial(1, MIXED, 0.8)]))).courses
    assert math.isnan(course.best[0])
    assert course.best[1] == 0.8


def test_a_supernet_counts_before_its_first_result():
    spent = {"seconds": 0, "forward_backward_passes": 0, "supernet": {"seconds": 7.0, "steps": 1, "passes": 1}}
    (course,) = chart_data.courses(View(summary([trial(0, LORA, 0.5), trial(1, MIXED, 0.8)], spent=spent))).courses
    assert course.seconds == (2.0, 11.0)


def test_a_reference_search_has_the_same_floor():
    data = chart_data.courses(VIEW, View(summary([trial(0, LORA, 0.1)], strategy="uniform")))
    assert [c.name for c in data.courses] == ["random", "uniform"]
    assert data.floor == 0.1


def test_the_bill_of_an_op_is_its_price_and_the_bills_add_up_to_the_cost():
    bill = chart_data.bill(VIEW)
    assert bill is not None
    plans = dict(bill.plans)
    assert sum(plans["chosen plan"]) == MIXED.cost(SITES)
    assert sum(plans["uniform LoRA"]) == LORA.cost(SITES)
    assert bill.table.rows[-1] == ("together", 4, MIXED.cost(SITES), 6, LORA.cost(SITES))


def test_summaries_from_before_sites_were_written_have_no_bill_but_a_map():
    old = summary()
    del old["sites"]
    assert chart_data.bill(View(old)) is None
    assert chart_data.site_maps(MIXED, View(old).sites)


def test_memory_is_in_megabytes_and_unknown_where_nothing_was_measured():
    points = chart_data.resources(View(summary([trial(0, LORA, 0.5), trial(1, LORA, 0.6, peak_memory=0)]))).points
    assert points == ((50.0, 2.0, 0.5, 0), (None, 2.0, 0.6, 1))


def test_the_table_of_trials_has_every_trial_and_says_why_one_failed():
    table = chart_data.trials_table(VIEW)
    assert [row[0] for row in table.rows] == list(range(7))
    failed = dict(zip(table.header, table.rows[3], strict=True))
    assert (failed["state"], failed["accuracy"], failed["message"]) == ("failed", None, "it broke")


def test_a_trial_of_an_older_summary_lacks_the_newer_fields():
    old = trial(0, LORA, 0.5)
    for name in ("full", "peak_memory", "message", "passes"):
        del old[name]
    read = Trial.from_json(old)
    assert (read.full, read.peak_memory, read.message) == (True, None, "")


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, "-"), (1234, "1,234"), (0.5, "0.5000"), (1234.56, "1,234.6"), ("a", "a"), (-0.25, "-0.2500")],
)
def test_cells_are_written_for_people(cell, text):
    assert written(cell) == text


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="a row of 1 cells under a header of 2"):
        Table.of(("a", "b"), [(1,)])


def test_plain_text_is_one_line_without_marks_that_turn_its_direction():
    assert plain("a\nb\u202ec\x00d\ud800") == "a bcd"
