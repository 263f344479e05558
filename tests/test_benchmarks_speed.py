"""The speed benchmarks: lengths are what they say, rows never mix, ratios stay within a repeat, all train the same."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import evaluator_speed
import packing
import speed_rows
import speed_variants
import trial_overhead
from speed_cases import MAX_LENGTH, QUANTILES, ROWS, SHAPES, Case, draw_lengths, known_lengths, load_tokenizer
from speed_cases import make_data as make_rows
from speed_rows import CASE, COLUMNS, WARM_UP, Measured, append, missing_repeats, ratio, read

DATA = evaluator_speed.DATA
MEANS = {"rte": 66.6, "sst2": 13.3}
"""Tokens a row of the real training rows, cut at 128."""

FACTS = {name: f"some {name}" for name in CASE} | {"train_rows": "64"}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def write(path: Path, *rows: tuple[str, int, float], facts=FACTS) -> list[speed_rows.Row]:
    for variant, repeat, seconds in rows:
        append(path, facts, variant, repeat, Measured(2 * seconds, seconds, 7))
    return read(path)


# --- lengths and rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTILES)
def test_stored_quantiles_rise_within_the_longest_row(name):
    quantiles = QUANTILES[name]
    assert len(quantiles) == 51
    assert list(quantiles) == sorted(quantiles)
    assert 3 <= quantiles[0] < quantiles[-1] <= MAX_LENGTH


@pytest.mark.parametrize("name", QUANTILES)
def test_lengths_drawn_by_quantiles_have_the_mean_of_the_data(name):
    lengths = draw_lengths(name, 20_000, np.random.default_rng(0))
    assert lengths.mean() == pytest.approx(MEANS[name], rel=0.03)
    assert lengths.min() >= 3
    assert lengths.max() <= MAX_LENGTH


@pytest.mark.parametrize("name", QUANTILES)
def test_stored_quantiles_are_those_of_the_data(name, tokenizer):
    known = known_lengths(name, DATA, tokenizer)
    if known is None:
        pytest.skip(f"{DATA / name} is not there")
    assert known.mean() == pytest.approx(MEANS[name], abs=0.1)
    inner = np.linspace(0.02, 0.98, 961)  # between the first two and the last two stored points the tails are thin
    stored = np.interp(inner, np.linspace(0, 1, len(QUANTILES[name])), QUANTILES[name])
    assert np.abs(np.quantile(known, inner) - stored).max() <= 1.5


def test_where_there_are_no_data_no_lengths_are_known(tmp_path, tokenizer):
    assert known_lengths("rte", tmp_path, tokenizer) is None


def test_known_lengths_count_pairs_with_special_tokens_and_cut_long_rows(tmp_path, tokenizer):
    (tmp_path / "rte").mkdir()
    rows = [{"sentence1": "one two", "sentence2": "three"}, {"sentence1": "word " * 500, "sentence2": "end"}]
    (tmp_path / "rte" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert known_lengths("rte", tmp_path, tokenizer).tolist() == [3 + 3, MAX_LENGTH]


def test_known_rows_are_drawn_without_putting_back_while_they_last():
    known, rng = np.arange(3, 53), np.random.default_rng(0)
    assert sorted(draw_lengths("sst2", 50, rng, known)) == known.tolist()
    assert set(draw_lengths("sst2", 80, rng, known)) <= set(known.tolist())


def test_texts_have_exactly_the_lengths_that_were_drawn(tokenizer):
    case = Case("tiny", "sst2", "all", 200, 20)
    data = make_rows(case, tokenizer, known=np.arange(3, 129))
    lengths = {name: [len(ids) for ids in tokenizer(split["text"][:])["input_ids"]] for name, split in data.items()}
    assert {name: len(found) for name, found in lengths.items()} == {"train": 200, "validation": 20, "test": 8}
    drawn = draw_lengths("sst2", 200, np.random.default_rng(0), np.arange(3, 129))
    assert lengths["train"] == drawn.tolist()


def test_rows_are_balanced_and_the_same_every_time(tokenizer):
    case = Case("tiny", "rte", "all", 30, 10)
    one, other = make_rows(case, tokenizer), make_rows(case, tokenizer)
    assert one["train"][:] == other["train"][:]
    assert sum(one["train"]["label"]) == 15
    assert make_rows(case, tokenizer, seed=1)["train"][:]["text"] != one["train"][:]["text"]


@pytest.mark.parametrize(("shape", "tuned", "layers"), [
    ("minilm", "all", range(6)), ("minilm", "upper", range(3, 6)),
    ("base", "all", range(12)), ("base", "upper", range(6, 12)),
])  # fmt: skip
def test_a_case_tunes_query_and_value_of_its_layers(shape, tuned, layers):
    case = Case(shape, "rte", tuned, 8, 8)
    assert case.layers == tuple(layers)
    assert {p.site for p in case.plan} == {f"layers.{i}.attention.{part}" for i in layers for part in "qv"}
    assert {(p.op, p.size) for p in case.plan} == {("lora", 8)}


def test_every_shape_has_a_number_of_rows_for_every_kind_of_lengths():
    assert set(ROWS) == {(shape, lengths) for shape in SHAPES for lengths in QUANTILES}
    assert SHAPES["minilm"]["hidden_size"] == 384
    assert SHAPES["base"]["num_hidden_layers"] == 12


# --- the file of rows ------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = write(tmp_path / "new" / "speed.csv", ("ours", 1, 0.5), ("theirs", 1, 1.0))
    assert tuple(rows[0]) == COLUMNS
    assert [row["variant"] for row in rows] == ["ours", "theirs"]
    assert float(rows[0]["cpu_seconds"]) == 1.0
    assert float(rows[0]["loop_cpu_seconds"]) == 0.5
    assert rows[0]["parameters"] == "7"
    assert all(rows[1][name] == FACTS[name] for name in CASE)


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert read(tmp_path / "speed.csv") == []
    assert missing_repeats([], ["ours"], 3) == [1, 2, 3]


@pytest.mark.parametrize("fact", CASE)
def test_rows_of_other_code_machines_or_shapes_are_another_case(tmp_path, fact):
    path = tmp_path / "speed.csv"
    other = FACTS | {fact: "9"}
    write(path, ("ours", 1, 1.0))
    rows = write(path, ("ours", 1, 2.0), facts=other)
    assert [float(row["loop_cpu_seconds"]) for row in speed_rows.of_case(rows, FACTS)] == [1.0]
    assert speed_rows.cases(rows) == [FACTS, other]


def test_a_repeat_is_complete_when_every_variant_ran_in_it(tmp_path):
    rows = write(
        tmp_path / "speed.csv",
        ("ours", WARM_UP, 9.0), ("theirs", WARM_UP, 9.0), ("ours", 1, 1.0), ("theirs", 1, 1.0), ("ours", 2, 1.0),
    )  # fmt: skip
    assert speed_rows.complete_repeats(rows, ["ours", "theirs"]) == {1}
    assert speed_rows.complete_repeats(rows, ["ours"]) == {1, 2}


def test_what_is_missing_is_run_under_numbers_that_were_never_begun(tmp_path):
    rows = write(tmp_path / "speed.csv", ("ours", 1, 1.0), ("theirs", 1, 1.0), ("ours", 2, 1.0))
    assert missing_repeats(rows, ["ours", "theirs"], 3) == [3, 4]
    assert missing_repeats(rows, ["ours", "theirs"], 1) == []
    assert missing_repeats(rows, ["ours", "new"], 2) == [3, 4]


@given(
    begun=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=12),
    wanted=st.integers(0, 5),
)
def test_after_the_missing_repeats_exactly_so_many_are_complete_as_were_wanted(begun, wanted):
    rows = [{"variant": variant, "repeat": str(repeat)} for variant, repeat in begun]
    complete = speed_rows.complete_repeats(rows, "ab")
    todo = missing_repeats(rows, "ab", wanted)
    assert not {str(repeat) for repeat in todo} & {row["repeat"] for row in rows}
    rows += [{"variant": variant, "repeat": str(repeat)} for repeat in todo for variant in "ab"]
    assert len(speed_rows.complete_repeats(rows, "ab")) == max(wanted, len(complete))


# --- ratios ----------------------------------------------------------------------------------------------------------


def test_a_ratio_is_taken_within_a_repeat_and_then_the_median(tmp_path):
    rows = write(
        tmp_path / "speed.csv",
        ("ours", 1, 1.0), ("theirs", 1, 4.0), ("theirs", 2, 60.0), ("ours", 2, 10.0),
        ("ours", 3, 2.0), ("theirs", 3, 4.0),
    )  # fmt: skip
    found = ratio(rows, "ours", "theirs")
    assert found == speed_rows.Ratio(4.0, 2.0, 6.0, 3)
    assert str(found) == "4.00 [2.00-6.00]"
    assert ratio(rows, "theirs", "theirs") == speed_rows.Ratio(1.0, 1.0, 1.0, 3)


def test_warm_up_and_halves_of_repeats_do_not_count(tmp_path):
    rows = write(
        tmp_path / "speed.csv",
        ("ours", WARM_UP, 100.0), ("theirs", WARM_UP, 1.0), ("ours", 1, 1.0), ("theirs", 1, 3.0), ("ours", 2, 1.0),
    )  # fmt: skip
    assert ratio(rows, "ours", "theirs") == speed_rows.Ratio(3.0, 3.0, 3.0, 1)
    assert ratio(rows, "ours", "nobody") is None
    assert speed_rows.samples_per_second(rows, "ours") == 64.0
    assert speed_rows.samples_per_second(rows, "nobody") is None


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=9))
def test_the_median_of_the_ratios_lies_between_the_extremes(times):
    rows = [
        {"variant": name, "repeat": str(i), "cpu_seconds": str(seconds), "loop_cpu_seconds": "1"}
        for i, pair in enumerate(times, start=1)
        for name, seconds in zip(("ours", "theirs"), pair, strict=True)
    ]
    found = ratio(rows, "ours", "theirs", "cpu_seconds")
    assert found.lowest <= found.median <= found.highest
    assert found.median == pytest.approx(statistics.median(b / a for a, b in times))


def test_the_table_has_a_line_for_each_variant_in_the_order_asked_for(tmp_path):
    rows = write(tmp_path / "speed.csv", ("ours", 1, 1.0), ("autopeft", 1, 4.0), ("trainer", 1, 2.0))
    lines = speed_rows.table(rows, ["autopeft", "trainer", "absent", "ours"]).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == ["autopeft", "trainer", "ours"]
    assert lines[4] == (
        "| ours | 64.0 | 4.00 [4.00-4.00] | 2.00 [2.00-2.00] | 4.00 [4.00-4.00] | 2.00 [2.00-2.00] | 1 |"
    )


def test_a_variant_without_bases_has_no_ratios(tmp_path):
    rows = write(tmp_path / "speed.csv", ("ours", WARM_UP, 1.0))
    assert speed_rows.table(rows, ["ours"]).splitlines()[2] == "| ours | - | - | - | - | - | 0 |"


# --- facts -----------------------------------------------------------------------------------------------------------


def test_machine_facts_name_cpu_and_versions():
    import torch

    facts = speed_rows.machine()
    assert set(facts) == {"cpu", "flags", "torch", "transformers", "peft"}
    assert all(facts.values())
    assert facts["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_the_code_hash_changes_with_content_and_with_names(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    first = speed_rows.code_hash(tmp_path)
    assert speed_rows.code_hash(tmp_path) == first
    (tmp_path / "note.txt").write_text("not code")
    assert speed_rows.code_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = speed_rows.code_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, speed_rows.code_hash(tmp_path)}) == 3


def test_levers_are_settings_that_the_configuration_knows():
    from peftscout.config import StudyConfig

    assert speed_variants.LEVERS["peftscout"] == {}
    for changes in speed_variants.LEVERS.values():
        config = {"model": "m", "budget": 1, "data": {"source": "rte"}, "training": dict(changes)}
        training = StudyConfig.from_mapping(config).training
        assert all(getattr(training, name) == value for name, value in changes.items())


def test_a_stopwatch_counts_only_what_runs_inside_and_also_what_fails():
    import types

    def work(n):
        if n < 0:
            raise ValueError
        return sum(i * i for i in range(n))

    module = types.SimpleNamespace(work=work)
    with speed_variants.timed(module, "work") as watch:
        assert watch.seconds == 0
        module.work(300_000)
        first = watch.seconds
        assert first > 0
        with pytest.raises(ValueError):  # noqa: PT011 - ours, from above
            module.work(-1)
        assert watch.seconds >= first
    module.work(300_000)
    assert watch.seconds < 2 * first + 1
    assert module.work is work


# --- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_variants_train_the_same_plan_and_a_second_run_adds_only_what_is_missing(tmp_path, monkeypatch, capsys):
    out = tmp_path / "speed.csv"
    names = ["autopeft", "trainer", "peftscout", "buckets-only"]
    case = Case("tiny", "rte", "upper", 40, 8)
    rows = evaluator_speed.measure(case, names, 1, out, tmp_path)
    assert {(row["variant"], int(row["repeat"])) for row in rows} == {
        *((name, 1) for name in names),
        *((name, WARM_UP) for name in names[2:]),
    }
    assert {row["parameters"] for row in rows} == {str(2 * 8 * (32 + 32))}
    assert {row["length_source"] for row in rows} == {"quantiles"}
    assert all(float(row["cpu_seconds"]) >= float(row["loop_cpu_seconds"]) > 0 for row in rows)

    monkeypatch.setattr(evaluator_speed, "make_variant", lambda *_: pytest.fail("nothing was missing"))
    assert evaluator_speed.measure(case, names, 1, out, tmp_path) == rows
    evaluator_speed.report(out)
    printed = capsys.readouterr().out
    assert "tiny, rte lengths (quantiles), upper layers tuned, 40 + 8 rows" in printed
    assert printed.count("\n| ") == 1 + len(names)


@pytest.mark.slow
def test_padding_is_what_tells_the_two_trainers_apart(tmp_path, tokenizer):
    case = Case("tiny", "sst2", "all", 8, 4)
    data = make_rows(case, tokenizer)
    model = evaluator_speed.save_model("tiny", tokenizer, tmp_path)
    padded, plain = (speed_variants.HfTrainer(case, model, data, tokenizer, pad) for pad in (True, False))
    assert {len(ids) for ids in padded._rows["train"]["input_ids"]} == {MAX_LENGTH}
    assert [len(ids) for ids in plain._rows["train"]["input_ids"]] == [
        len(ids) for ids in tokenizer(data["train"]["text"][:])["input_ids"]
    ]


@pytest.mark.slow
def test_the_overhead_of_a_trial_is_the_sum_of_its_parts(tmp_path):
    search = trial_overhead.Search("tiny", 3, tmp_path, tmp_path)
    with search.running():
        trial = search.trial()
        assert 0 < trial.loop_seconds < trial.seconds
        assert trial.outside == pytest.approx(1 - trial.loop_seconds / trial.seconds)
        found = trial_overhead.parts(search, 2)
        assert set(found) == {"ask", *trial_overhead.PARTS, "everything else"}
        assert all(found[name] > 0 for name in ("build", "check gradients", "save the adapter", "reset"))
        assert found["everything else"] > -1
        stats = trial_overhead.profiled(search, 1)
    ours = trial_overhead.largest(stats, 1, 50, ours=True)
    assert [row[0] for row in ours] == sorted((row[0] for row in ours), reverse=True)
    names = [name for _, _, name in ours]
    assert any(name.startswith("tuner/") for name in names)
    assert not any("training/loop.py" in name for name in names)
    with (tmp_path / "study" / "ledger.journal").open() as file:
        assert sum(1 for _ in file) > 4


@pytest.mark.slow
def test_a_process_for_every_trial_costs_time(capsys):
    evaluator_speed.start_up("tiny", 1)
    seconds = float(capsys.readouterr().out.split()[1])
    assert 0.1 < seconds < 120


def test_the_committed_rows_have_the_columns_of_today():
    if not evaluator_speed.RESULTS.exists():
        pytest.skip("no rows are committed yet")
    with evaluator_speed.RESULTS.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_the_page_shows_the_committed_rows_of_packing():
    page = (packing.RESULTS.parents[2] / "docs" / "performance.md").read_text(encoding="utf-8")
    for row in packing.csv_rows.read(packing.RESULTS):
        tokens = [f"{float(row[name]):.2f}" for name in ("padded_per_real_token", "packed_per_real_token")]
        ratio, low, high = (f"{float(row[name]):.2f}" for name in ("ratio", "lowest", "highest"))
        batches = -(-int(row["rows"]) // int(row["batch_size"]))
        assert f"| {row['rows']} | {batches} | {' | '.join(tokens)} | {ratio} [{low}-{high}] |" in page
        assert f"n = {row['rounds']}, other work on the machine" in page


def test_packing_is_measured_on_the_same_losses_and_saves_positions():
    model = packing.adapted(layers=1, hidden=32)
    row = packing.measure(model, packing.texts(16), batch_size=16, rounds=1)
    assert tuple(row) == packing.COLUMNS
    assert 1 <= float(row["packed_per_real_token"]) < float(row["padded_per_real_token"])
    assert float(row["lowest"]) == float(row["ratio"]) == float(row["highest"]) > 0
