"""R12: whatever happens to a file of a study, it is named, or it changes nothing that is read."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_studies import Finished

from figures import record
from peftscout import handover
from peftscout.engine import run_study
from peftscout.errors import PeftscoutError, StudyError
from peftscout.report.progress import Silent
from peftscout.study import read_records, read_summary, write_json
from peftscout.training.kept_search import KeptSearch


class Notes(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


Damage = Callable[[Path, random.Random], None]


def truncated(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def byte_flipped(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def emptied(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def deleted(path: Path, draw: random.Random) -> None:
    path.unlink()


def exchanged(path: Path, draw: random.Random) -> None:
    """For the same file of another trial, or of a study that is not this one."""
    (path.parent / "stranger").rename(path)


DAMAGES: tuple[Damage, ...] = (truncated, byte_flipped, byte_flipped, byte_flipped, emptied, deleted)


def read(folder: Path, number: int, monkeypatch) -> dict[str, Any]:
    """All that is ever read back of a finished study: by status, report, export and the next run."""
    taken: dict[str, Any] = {}

    def take(peft_model, plan, *args, **kwargs):
        taken["weights"] = {n: p.detach().clone() for n, p in peft_model.named_parameters() if "lora" in n}
        taken["plan"] = plan

    with monkeypatch.context() as patch:
        patch.setattr(handover, "export_adapter", take)
        handover.export_study(folder, folder / "out")
    records = [(r.number, r.stage, r.request, r.outcome) for r in read_records(folder)]
    told: list[str] = []
    kept = KeptSearch(folder / "search", told.append).load()
    return {"summary": read_summary(folder), "records": records, "kept": kept, "told": told, **taken}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b)) if hasattr(a, "shape") else bool(a == b)


def files_that_are_read(study: Finished) -> list[str]:
    """Paths in the folder: of the study itself, of its search, and of the trial that is exported."""
    number = handover._trained_trial(study.summary)
    found = [p for p in study.folder.rglob("*") if p.is_file() and p.name not in ("lock", "README.md")]
    names = [p.relative_to(study.folder).as_posix() for p in sorted(found)]
    return [n for n in names if not n.startswith(("cache/", "trials/")) or n.startswith(f"trials/{number:03d}/")]


def older(path: Path) -> bool:
    """Whether a file of a search is of the state before the last."""
    last = json.loads((path.parent / "kept.json").read_text())["state"]
    return path.name == "kept-before.json" or path.stem == f"state-{last - 1}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random_study", "scout_study"])
def test_a_damaged_file_is_named_or_changes_nothing_that_is_read(name, request, tmp_path, monkeypatch):
    study: Finished = request.getfixturevalue(name)
    number = handover._trained_trial(study.summary)
    whole = read(study.folder, number, monkeypatch)
    draw, named, harmless = random.Random(1), 0, []
    changed: list[str] = []
    copy = tmp_path / "s"
    shutil.copytree(study.folder, copy)
    for file in files_that_are_read(study):
        for damage in DAMAGES:
            damage(copy / file, draw)
            try:
                found = read(copy, number, monkeypatch)
            except PeftscoutError as error:
                place, text = Path(file), str(error)
                assert place.name in text or str(copy / place.parent) in text or str(copy) in text, (file, text)
                named += 1
            else:
                if found["told"]:  # the search would go on from the state before, which is another one
                    assert Path(file).name in found["told"][0]
                    assert not same(found["kept"], whole["kept"])
                    named, found = named + 1, found | {"kept": whole["kept"], "told": []}
                else:
                    harmless.append(f"{file} {damage.__name__}")
                changed += [] if same(found, whole) else [f"{file} {damage.__name__}"]
            shutil.copy2(study.folder / file, copy / file)
    assert same(read(copy, number, monkeypatch), whole)
    never_read = ("README.md", "outcome.json", "plan.json", "events.jsonl", "predictions.safetensors")
    never_read += tuple(p.name for p in (study.folder / "search").glob("*") if older(p))  # while the last one is whole
    quiet = [case for case in harmless if not case.startswith("ledger") and not case.split()[0].endswith(never_read)]
    assert len(quiet) <= 3, quiet
    record("damaged files read", named + len(harmless))
    record("damaged files that changed a result", len(changed))
    assert changed == []


@pytest.mark.parametrize("damage", [truncated, byte_flipped, emptied, deleted])
def test_predictions_that_are_damaged_are_not_compared(random_study, tmp_path, damage):
    copy = tmp_path / "s"
    shutil.copytree(random_study.folder, copy)
    (copy / "summary.json").unlink()
    path = next(copy.glob("trials/*/predictions.safetensors"))
    damage(path, random.Random(0))
    with pytest.raises(StudyError, match=rf"{path.parent.name}/predictions\.safetensors: is (not what|missing)"):
        run_study(random_study.prepared, copy, Silent())
    assert not (copy / "summary.json").exists()


def test_adapters_that_were_exchanged_are_not_exported(random_study, tmp_path):
    copy = tmp_path / "s"
    shutil.copytree(random_study.folder, copy)
    number = handover._trained_trial(random_study.summary)
    other = next(p for p in sorted(copy.glob("trials/*/adapter")) if p.parent.name != f"{number:03d}")
    chosen = copy / "trials" / f"{number:03d}" / "adapter"
    shutil.copy2(other / "adapter_model.safetensors", chosen / "adapter_model.safetensors")
    with pytest.raises(StudyError, match=r"adapter_model\.safetensors: is not what was written"):
        handover.export_study(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["summary.json", "ledger.journal"])
def test_a_file_of_another_study_is_refused(random_study, scout_study, tmp_path, file):
    copy = tmp_path / "s"
    shutil.copytree(random_study.folder, copy)
    shutil.copy2(scout_study.folder / file, copy / file)
    reader = read_summary if file == "summary.json" else read_records
    with pytest.raises(StudyError, match="another study"):
        reader(copy)


@pytest.mark.parametrize("empty", [True, False])
def test_a_lost_ledger_does_not_start_the_study_anew_over_its_finished_trials(random_study, tmp_path, empty):
    copy = tmp_path / "s"
    shutil.copytree(random_study.folder, copy)
    (copy / "ledger.journal").unlink()
    if empty:
        (copy / "ledger.journal").touch()
    before = {p: p.read_bytes() for p in copy.rglob("trials/*/*.json")}
    with pytest.raises(StudyError, match="its ledger knows nothing of 000"):
        run_study(random_study.prepared, copy, Silent())
    with pytest.raises(StudyError):
        read_records(copy)
    assert before == {p: p.read_bytes() for p in copy.rglob("trials/*/*.json")}


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
def test_a_search_of_which_one_bit_was_changed_goes_on_from_the_state_before_to_the_same_end(
    prepared, scout_study, tmp_path, monkeypatch, suffix
):
    save, saved = KeptSearch.save, 0

    def killed_at_the_second(self, *state):
        nonlocal saved
        save(self, *state)
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeptSearch, "save", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_study(scout_study.prepared, tmp_path / "s", Silent())
    path = tmp_path / "s" / "search" / f"state-2.{suffix}"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    reporter = Notes()
    run_study(scout_study.prepared, tmp_path / "s", reporter)
    assert [note for note in reporter.notes if f"{path.name}: is not what was written" in note]
    ours, theirs = (read_records(folder) for folder in (tmp_path / "s", scout_study.folder))
    assert [(r.request, r.outcome.score) for r in ours] == [(r.request, r.outcome.score) for r in theirs]
    ours, theirs = (KeptSearch(folder / "search").load()[0] for folder in (tmp_path / "s", scout_study.folder))
    assert same(ours, theirs)


def test_studies_of_before_there_were_seals_open(random_study, tmp_path):
    """Without seals in header and summary; the ledger's are tested in test_torn_ledger.py."""
    copy = tmp_path / "s"
    shutil.copytree(random_study.folder, copy)
    for name in ("study.json", "summary.json"):
        data = json.loads((copy / name).read_text())
        write_json(copy / name, {key: value for key, value in data.items() if key not in ("seal", "study")})
    assert read_summary(copy) == random_study.summary
    assert [r.outcome for r in read_records(copy)] == [r.outcome for r in read_records(random_study.folder)]
    assert load_file(next(copy.glob("trials/*/adapter/adapter_model.safetensors")))
