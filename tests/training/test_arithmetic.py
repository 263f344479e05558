"""Dtype and attention are chosen by a probe that is remembered; threads never outnumber cores."""

from __future__ import annotations

import json

import pytest
import torch

from peftscout.errors import ConfigError
from peftscout.training import arithmetic
from peftscout.training.arithmetic import CANDIDATES, FP32, Arithmetic, available_cores, choose, probe, use_threads

CPU = torch.device("cpu")
EAGER, SDPA = CANDIDATES[1:]


@pytest.fixture
def measured(monkeypatch):
    """Replace the probe by given seconds; return what it is called with and how often."""
    calls = []

    def of(fp32, eager, sdpa):
        def fake():
            calls.append(1)
            return dict(zip(CANDIDATES, (fp32, eager, sdpa), strict=True))

        monkeypatch.setattr(arithmetic, "probe", fake)
        return calls

    return of


@pytest.mark.parametrize(("seconds", "chosen"), [
    ((1.0, 0.5, 0.8), EAGER),
    ((1.0, 0.8, 0.5), SDPA),
    ((1.0, 0.9, 0.95), FP32),
    ((1.0, 30.0, 30.0), FP32),
])  # fmt: skip
def test_bf16_is_chosen_where_it_is_clearly_faster_and_with_the_faster_attention(measured, tmp_path, seconds, chosen):
    measured(*seconds)
    assert choose("auto", CPU, tmp_path) == chosen


def test_what_was_asked_for_is_obeyed(measured, tmp_path):
    calls = measured(1.0, 30.0, 20.0)
    assert choose("fp32", CPU, tmp_path) == FP32
    assert not calls
    assert choose("bf16", CPU, tmp_path) == SDPA


def test_the_probe_runs_once_for_a_machine(measured, tmp_path, monkeypatch):
    calls = measured(1.0, 0.5, 0.8)
    assert choose("auto", CPU, tmp_path) == choose("auto", CPU, tmp_path) == EAGER
    assert len(calls) == 1
    monkeypatch.setattr(arithmetic, "machine", lambda: "another")
    choose("auto", CPU, tmp_path)
    assert len(calls) == 2
    assert len(json.loads((tmp_path / "arithmetic.json").read_text())) == 2


@pytest.mark.parametrize("content", ["", "[1, 2]", '{"x": ', "null"])
def test_a_damaged_memory_is_measured_anew_and_mended(measured, tmp_path, content):
    calls = measured(1.0, 0.5, 0.8)
    (tmp_path / "arithmetic.json").write_text(content)
    assert choose("auto", CPU, tmp_path) == choose("auto", CPU, tmp_path) == EAGER
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written_only_costs_the_memory(measured, tmp_path):
    measured(1.0, 0.5, 0.8)
    (tmp_path / "file").write_text("in the way")
    assert choose("auto", CPU, tmp_path / "file") == EAGER


def test_the_probe_measures_every_candidate_and_leaves_the_random_stream_alone():
    state = torch.get_rng_state()
    seconds = probe()
    assert set(seconds) == set(CANDIDATES)
    assert all(0 < s < 3 for s in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_an_arithmetic_survives_json(candidate):
    assert Arithmetic.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate


@pytest.mark.parametrize("data", [{}, {"dtype": "fp8"}, {"dtype": "bf16", "attention": "flash"}])
def test_what_is_no_arithmetic_is_refused(data):
    with pytest.raises(ValueError, match="no arithmetic"):
        Arithmetic.from_json(data)


def test_more_threads_than_cores_are_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"training\.threads 10000: this process may use \d+ cores.*half the speed"):
        use_threads(10_000)
    before = torch.get_num_threads()
    use_threads(None)
    assert torch.get_num_threads() == before
    use_threads(available_cores())
    assert torch.get_num_threads() == available_cores()
    torch.set_num_threads(before)
