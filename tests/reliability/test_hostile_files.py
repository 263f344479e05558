"""R13-R15: reading runs nothing, code of models is off unless asked for, and nothing leads out of a study's folder."""

from __future__ import annotations

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_studies import RANDOM, Finished

from figures import record
from peftscout import handover
from peftscout.backbone import load_backbone
from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.errors import ArchitectureError, DiskError, StudyError
from peftscout.plan import Plan
from peftscout.preparation import prepare
from peftscout.report.page import write_report
from peftscout.report.progress import Silent
from peftscout.seal import KEY
from peftscout.study import Study, read_records, write_json, write_sealed
from peftscout.tasks import load_task
from test_study import header
from tiny_task import save_tiny_model

NAMES = (
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "adapter_model.bin",
    "adapter_model.pt",
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pth",
    "rng_state_0.pth",
    "model.pt",
    "model.pkl",
    "state.pkl",
    "tokenizer.pkl",
    "vocab.pkl",
    "train.pkl",
    "train.pt",
    "validation.pickle",
    "ledger.pkl",
    "study.pkl",
    "summary.pkl",
    "outcome.pkl",
    "plan.pkl",
    "predictions.npy",
    "predictions.npz",
    "dataset.joblib",
    "cache.dill",
)
"""File names under which something that peftscout, peft, transformers or datasets knows keeps pickles."""


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def plant(folder: Path, marker: Path) -> int:
    """Put a bomb under every name into a folder, half as bare pickles and half as torch writes them."""
    for n, name in enumerate(NAMES):
        if n % 2:
            torch.save(Payload(marker), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    return len(NAMES)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "it-ran"


def test_the_bombs_would_go_off(tmp_path, marker):
    plant(tmp_path, marker)
    pickle.loads((tmp_path / NAMES[0]).read_bytes())  # noqa: S301 - that it can
    assert marker.exists()
    marker.unlink()
    torch.load(tmp_path / NAMES[1], weights_only=False)
    assert marker.exists()


@pytest.mark.slow
def test_no_pickle_is_run_wherever_it_lies(model, data, random_study, tmp_path, marker):
    """In the model's folder, among the data, and everywhere in a study that is resumed, reported and exported."""
    ours, rows, study = (tmp_path / name for name in ("model", "data", "study"))
    shutil.copytree(model, ours)
    shutil.copytree(data, rows)
    for folder in (ours, rows):
        plant(folder, marker)
    config = StudyConfig.from_mapping({"model": str(ours), "data": {"source": str(rows)}, "budget": "8%", **RANDOM})
    prepared = prepare(config)
    run_study(prepared, study, Silent())
    folders = [study, *(p for p in study.rglob("*") if p.is_dir())]
    planted = sum(plant(folder, marker) for folder in folders)
    (study / "summary.json").unlink()
    run_study(prepared, study, Silent())
    read_records(study)
    write_report(study)
    out = handover.export_study(study, tmp_path / "out").folder
    assert (out / "adapter_model.safetensors").is_file()
    record("pickle bombs laid", planted + 2 * len(NAMES))
    record("pickle bombs that went off", int(marker.exists()))
    assert not marker.exists()


def test_an_adapter_that_is_there_as_a_pickle_only_is_not_loaded(random_study, tmp_path, marker):
    study = tmp_path / "s"
    shutil.copytree(random_study.folder, study)
    adapter = study / "trials" / f"{handover._trained_trial(random_study.summary):03d}" / "adapter"
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(Payload(marker), adapter / "adapter_model.bin")
    with pytest.raises(StudyError, match=r"adapter_model\.safetensors: the trained adapter is missing.*apply"):
        handover.export_study(study, tmp_path / "out")
    assert not marker.exists()


def test_an_index_that_names_a_pickle_does_not_get_it_run(data, tmp_path, marker):
    ours = save_tiny_model(tmp_path / "m")
    (ours / "model.safetensors").unlink()
    torch.save(Payload(marker), ours / "evil.bin")
    index = {"metadata": {"total_size": 1}, "weight_map": {"embeddings.word_embeddings.weight": "evil.bin"}}
    (ours / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArchitectureError, match=r"names 'evil\.bin'; weights are read from safetensors files"):
        load_backbone(str(ours), load_task(data))
    assert not marker.exists()


# --- code that comes with a model ------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import BertForSequenceClassification, BertTokenizerFast
class Mine(BertForSequenceClassification): ...
class MineToo(BertTokenizerFast): ...
"""


def test_code_beside_a_model_of_a_known_type_is_not_run(data, tmp_path, marker):
    ours = save_tiny_model(tmp_path / "m")
    (ours / "mine.py").write_text(CODE.format(marker=str(marker)))
    for name, entry in (
        ("config.json", {"AutoModelForSequenceClassification": "mine.Mine", "AutoModel": "mine.Mine"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["mine.MineToo", "mine.MineToo"]}),
    ):
        content = json.loads((ours / name).read_text())
        (ours / name).write_text(json.dumps({**content, "auto_map": entry}))
    with suppress(ArchitectureError):  # whether it is refused is up to transformers; what matters is the next line
        load_backbone(str(ours), load_task(data))
    assert not marker.exists()


def trusting(study: Finished, folder: Path) -> Path:
    """A copy of a study that says that the model's own code was run, as one that came by mail might."""
    shutil.copytree(study.folder, folder)
    said = json.loads((folder / "study.json").read_text())
    said["config"]["trust_remote_code"] = True
    del said[KEY]
    write_json(folder / "study.json", said)
    summary = json.loads((folder / "summary.json").read_text())
    write_json(folder / "summary.json", {key: summary[key] for key in summary if key not in ("study", KEY)})
    return folder


def test_the_word_of_a_study_is_not_enough_to_run_a_models_code(random_study, tmp_path, monkeypatch):
    study, asked = trusting(random_study, tmp_path / "s"), []
    monkeypatch.setattr(handover, "export_trained", lambda *a, **k: asked.append(k["trust_remote_code"]))
    with pytest.raises(ArchitectureError, match="read that code, then add --trust-remote-code"):
        handover.export_study(study, tmp_path / "out")
    assert asked == []
    handover.export_study(study, tmp_path / "out", trust_remote_code=True)
    assert asked == [True]


@pytest.mark.parametrize(
    "reference",
    [
        {"name_or_path": "m", "auto_class": "pipeline", "kwargs": {}},
        {"name_or_path": "m", "auto_class": "AutoModelForSequenceClassification", "kwargs": {"trust_remote_code": 1}},
        {"name_or_path": "m", "auto_class": "AutoModelForSequenceClassification", "kwargs": {"use_safetensors": 0}},
        {"name_or_path": "m", "auto_class": "AutoModelForSequenceClassification", "code": "x"},
        {},
    ],
)
def test_a_study_cannot_name_what_else_is_called(random_study, tmp_path, reference):
    study = trusting(random_study, tmp_path / "s")
    said = json.loads((study / "study.json").read_text())
    said["model"]["reference"] = reference
    write_json(study / "study.json", said)
    with pytest.raises(StudyError, match=r"study\.json: model\.reference is nothing that peftscout writes"):
        handover.export_study(study, tmp_path / "out", trust_remote_code=True)


def test_an_adapter_of_a_type_that_trials_do_not_write_is_refused(random_study, tmp_path):
    """peft imports modules that the configs of some of its types name."""
    folder = trusting(random_study, tmp_path / "s")
    number = handover._trained_trial(random_study.summary)
    path = folder / "trials" / f"{number:03d}" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "megatron_core": "os", "megatron_config": {}}))
    with pytest.raises(StudyError, match=r"adapter_config\.json: (is not what was written|peft_type 'LORA')"):
        handover.export_study(folder, tmp_path / "out", trust_remote_code=True)
    (folder / "ledger.journal").unlink()
    for outcome in folder.glob("trials/*/outcome.json"):
        outcome.unlink()  # no ledger, no hashes
    with pytest.raises(StudyError, match="peft_type 'LORA'"):
        handover.export_study(folder, tmp_path / "out", trust_remote_code=True)


# --- names and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space", "ümlaut 模型", "-n", "'; rm -rf ~ #", "a" * 200, "$(touch x)", "%s{0}"])
def test_a_study_may_be_called_anything(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with Study(Path(name), header()) as study:
        study.fresh_trial_folder(0, Plan(()))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert read_records(Path(name)) == []


@pytest.mark.parametrize(("name", "message"), [("a" * 300, "too long"), ("file/s", "is a file"), ("loop/s", "circle")])
def test_a_path_that_cannot_be_is_named_before_any_time_is_spent(random_study, tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DiskError, match=message):
        run_study(random_study.prepared, tmp_path / name, Silent())


@pytest.mark.parametrize("link", ["trials", "trials/000"])
def test_a_link_in_a_study_does_not_get_files_elsewhere_removed(tmp_path, link):
    precious = tmp_path / "precious" / "000"
    precious.mkdir(parents=True)
    (precious / "thesis.tex").write_text("years of work")
    with Study(tmp_path / "s", header()) as study:
        place = tmp_path / "s" / link
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(precious if link.endswith("000") else precious.parent, target_is_directory=True)
        with pytest.raises(StudyError, match="a link leads out of the study"):
            study.fresh_trial_folder(0, Plan(()))
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_a_study_may_lie_behind_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with Study(tmp_path / "s", header()) as study:
        study.fresh_trial_folder(0, Plan(()))
    assert (tmp_path / "elsewhere" / "trials" / "000" / "plan.json").is_file()


def test_numbers_of_trials_in_a_summary_are_no_paths(random_study, tmp_path):
    study = tmp_path / "s"
    shutil.copytree(random_study.folder, study)
    summary = json.loads((study / "summary.json").read_text())
    del summary[KEY]
    for number in ("../../../etc", -1, 10**6):
        changed = {**summary, "trials": [], "best": {**summary["best"], "trial": number}}
        write_sealed(study / "summary.json", changed)
        with pytest.raises((StudyError, ValueError)):
            handover.export_study(study, tmp_path / "out")
