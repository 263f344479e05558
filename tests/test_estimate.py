"""What a dry run says: numbers that a decision needs, with the supernet of strategies that search on one."""

from __future__ import annotations

import pytest

import peftscout
from peftscout.api import dry_run_config
from peftscout.config import StudyConfig
from peftscout.errors import StudyError
from peftscout.estimate import PROBE_STEPS, one_after_the_other
from tiny_task import save_tiny_model, write_task


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dry")
    data = write_task(folder / "data", train=80, validation=20)
    return {"model": str(save_tiny_model(folder / "model")), "data": str(data)}


def dry(places, **changes):
    fields = {"model": places["model"], "budget": "5%", "data": {"source": places["data"]}, "trials": 5, "steps": 40}
    return dry_run_config(StudyConfig.from_mapping(fields | {"training": {"threads": 1}} | changes))


def test_a_dry_run_writes_nothing_and_estimates_the_time(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = dry(places, strategy="random")
    assert plan["seconds"] > 0
    assert plan["evaluations"] == 5 + 2 * (2 + 3)
    assert plan["cheapest"]["cost"] < plan["baseline"]["cost"] <= plan["budget"]["parameters"] < plan["dearest"]["cost"]
    assert plan["space"]["plans"] > 10**20
    assert plan["supernet"] is None
    assert plan["from_study"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("strategy", "space", "options", "steps"),
    [
        ("scout", "all", {"steps": 30}, 30),
        ("auto", "all", {}, 20),  # half a training
        ("bipeft", "bipeft-s1", {"steps": 24}, 24),
        ("bipeft", "bipeft-s1", {"steps": 24, "estimator": "split"}, 24),
        ("s3delta", "s3delta-m", {"steps": 16}, 16),
    ],
)
def test_the_steps_of_a_supernet_are_counted_and_timed(places, strategy, space, options, steps):
    plan = dry(places, strategy=strategy, space=space, strategy_options=options)
    assert plan["supernet"]["steps"] == steps
    assert 0 < plan["supernet"]["seconds"] < plan["seconds"]


def test_a_supernet_with_fewer_steps_than_the_probe_is_probed_to_its_end(places):
    plan = dry(places, strategy="bipeft", space="bipeft-s1", strategy_options={"steps": PROBE_STEPS - 1})
    assert plan["supernet"]["steps"] == PROBE_STEPS - 1


def test_a_dry_run_says_what_another_study_is_good_for_and_refuses_what_is_none(places, tmp_path):
    study = peftscout.search(
        places["model"], places["data"], budget="5%", study=tmp_path / "other", progress=False,
        strategy="random", trials=2, steps=4, final={"seeds": 0}, training={"threads": 1},
    )  # fmt: skip
    plan = dry(places, strategy="autopeft", from_study=str(study.folder))
    assert "2 evaluations" in plan["from_study"]
    before = sorted(p.name for p in study.folder.iterdir())
    with pytest.raises(StudyError, match="no study"):
        dry(places, strategy="autopeft", from_study=str(tmp_path / "nothing"))
    assert sorted(p.name for p in study.folder.iterdir()) == before


@pytest.mark.parametrize(("workers", "rounds"), [(None, 13 + 10), (1, 13 + 10), (4, 1 + 3 + 3), (100, 3)])
def test_workers_take_evaluations_at_the_same_time(workers, rounds):
    """Twelve after the baseline, then two learning rates and three seeds for each of two contenders."""
    fields = {"model": "m", "budget": "5%", "data": {"source": "d"}, "trials": 13, "executor": {"workers": workers}}
    assert one_after_the_other(StudyConfig.from_mapping(fields)) == rounds
