"""What is sent to machines that do not have the disk of the search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from peftscout.config import StudyConfig
from peftscout.errors import ExecutorError
from peftscout.executors.shipment import moved, pack, places_of, unpack
from peftscout.executors.work import Workplace
from peftscout.executors.worker import prepared_as
from peftscout.outcome import Evaluate
from peftscout.preparation import prepare
from tiny_task import save_tiny_model, write_task

SPACE = "name: mine\nrules: [{sites: ['*.attention.{q,v}'], op: lora, sizes: [1, 2, 4]}]\n"


@pytest.fixture
def disk(tmp_path) -> Path:
    """A disk with a model, three data sets and a space, and with what none of them needs."""
    disk = tmp_path / "disk"
    save_tiny_model(disk / "my model")
    for name in ("model.bin", "optimizer.pt", "code.py", ".hidden.json"):
        (disk / "my model" / name).write_text("{}")
    for name in ("sst2", "more"):
        write_task(disk / name, train=60, validation=20)
        (disk / name / "raw.zip").write_text("large")
    (disk / "space.yaml").write_text(SPACE)
    return disk


def config_of(disk: Path, **more) -> StudyConfig:
    plain = {
        "model": str(disk / "my model"),
        "budget": "5%",
        "space": str(disk / "space.yaml"),
        "data": {"train": str(disk / "sst2" / "train.jsonl"), "validation": str(disk / "sst2" / "validation.jsonl")},
        "also": [{"source": str(disk / "more")}],
        "strategy": "design-spaces",
        "steps": 2,
        "training": {"precision": "fp32", "threads": 1, "batch_size": 8},
    }
    return StudyConfig.from_mapping(plain | more)


def sent(config: StudyConfig, root: Path) -> dict[str, str]:
    plain = config.to_mapping()
    return {p: unpack(pack(plain, p), root / str(n)) for n, p in enumerate(places_of(plain))}


def test_all_that_is_named_and_there_is_a_place_and_names_of_a_hub_or_preset_are_none(disk, monkeypatch):
    plain = config_of(disk).to_mapping()
    names = ["my model", "space.yaml", "sst2/train.jsonl", "sst2/validation.jsonl", "more"]
    assert places_of(plain) == [str(disk / name) for name in names]
    monkeypatch.chdir(disk)
    (disk / "all").mkdir()
    hub = StudyConfig.from_mapping({"model": "bert-base-uncased", "budget": 5, "data": {"source": "glue/sst2"}})
    assert (hub.space, places_of(hub.to_mapping())) == ("all", [])


def test_only_what_is_read_is_sent_and_no_code_or_pickle(disk):
    _, files = pack(config_of(disk).to_mapping(), str(disk / "my model"))
    assert "my model/model.safetensors" in files
    assert "my model/tokenizer.json" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py")) or "hidden" in name]
    trusted = config_of(disk, trust_remote_code=True).to_mapping()
    assert "my model/code.py" in pack(trusted, str(disk / "my model"))[1]
    assert sorted(pack(trusted, str(disk / "more"))[1]) == ["more/train.jsonl", "more/validation.jsonl"]


def test_a_saved_data_set_is_sent_with_its_folders(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "saved")
    place = unpack(pack({"model": "m"}, str(tmp_path / "saved")), tmp_path / "new")
    names = {p.relative_to(place).as_posix() for p in Path(place).rglob("*") if p.is_file()}
    assert names == {
        p.relative_to(tmp_path / "saved").as_posix() for p in (tmp_path / "saved").rglob("*") if p.is_file()
    }


def test_a_configuration_is_the_same_elsewhere_but_for_its_places(disk, tmp_path):
    plain = config_of(disk).to_mapping()
    new = sent(config_of(disk), tmp_path / "new")
    elsewhere = moved(plain, new)
    assert plain == config_of(disk).to_mapping()
    assert str(disk) not in json.dumps(elsewhere)
    assert moved(elsewhere, {there: here for here, there in new.items()}) == plain


def test_a_machine_without_the_disk_has_the_same_study_and_the_same_scores(disk, tmp_path):
    config = config_of(disk)
    here = prepare(config)
    header = json.loads(json.dumps(here.header().to_json()))
    requests = [Evaluate(here.baseline.plan, here.fidelity, 0, task=task) for task in ("", "more")]

    def scores(prepared, cache: Path):
        evaluators = Workplace(prepared, cache, stacks=False).evaluators
        return [evaluators[request.task](request).score for request in requests]

    ours = scores(here, tmp_path / "cache")
    new = sent(config, tmp_path / "new")
    shutil.rmtree(disk)
    there = prepared_as(header, new)
    assert there.config == config
    assert there.others["more"].config.data.source == str(disk / "more")
    assert scores(there, tmp_path / "other cache") == ours
    assert None not in ours
    assert there.backbone.model.name_or_path == str(disk / "my model")
    assert str(tmp_path / "new") not in str(there.header().to_json())


def test_other_rows_at_a_place_are_found_out(disk, tmp_path):
    config = config_of(disk)
    header = json.loads(json.dumps(prepare(config).header().to_json()))
    new = sent(config, tmp_path / "new")
    train = Path(new[str(disk / "sst2" / "train.jsonl")])
    train.write_text("".join(train.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ExecutorError, match=r"data.splits.train.rows"):
        prepared_as(header, new)


def test_what_is_there_already_is_left_alone(tmp_path):
    parcel = ("data/train.csv", {"data/train.csv": np.frombuffer(b"text,label", dtype=np.uint8)})
    assert unpack(parcel, tmp_path) == str(tmp_path / "data" / "train.csv")
    assert (tmp_path / "data" / "train.csv").read_bytes() == b"text,label"
    before = (tmp_path / "data" / "train.csv").stat().st_mtime_ns
    unpack(parcel, tmp_path)
    assert (tmp_path / "data" / "train.csv").stat().st_mtime_ns == before
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["train.csv"]


@pytest.mark.parametrize("name", ["../x.json", "/tmp/x.json", "a/../../x.json"])
@pytest.mark.parametrize("what", ["place", "file"])
def test_nothing_that_was_sent_lands_elsewhere(tmp_path, name, what):
    content = np.zeros(1, dtype=np.uint8)
    parcel = (name, {"a": content}) if what == "place" else ("a", {"a": content, name: content})
    with pytest.raises(ExecutorError, match="leaves the folder"):
        unpack(parcel, tmp_path / "root")
    assert not (tmp_path / "root").exists()
