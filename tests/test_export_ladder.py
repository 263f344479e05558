"""Every rung of the ladder on every family that reads texts: equal outputs in a process of its own.

The readers are two processes for all of this file, since starting one takes seconds: one that never imports peftscout,
which the check makes sure of at every answer, and one for the composite.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adapted import everything, logits, stir
from models_table import FAMILIES
from peftscout import export_check, tuner
from peftscout.architecture import ModelMap
from peftscout.backbone import load_model
from peftscout.errors import ExportError
from peftscout.export import FORMATS, export_adapter
from peftscout.handover import probe_batch
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from tiny_models import tiny_model

pytestmark = pytest.mark.slow

READER = """
import json, runpy, sys, traceback
check = runpy.run_path(sys.argv[1])
for path in sys.stdin:
    try:
        check["main"](path.strip())
        print(json.dumps("")) or sys.stdout.flush()
    except Exception:
        print(json.dumps(traceback.format_exc())) or sys.stdout.flush()
"""
AUTO = {
    "bert": "AutoModelForSequenceClassification",
    "llama": "AutoModelForCausalLM",
    "gpt2": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "bart": "AutoModelForSeq2SeqLM",
    **dict.fromkeys(("roberta", "albert", "modernbert"), "AutoModelForSequenceClassification"),
    **dict.fromkeys(("mistral", "qwen3", "gemma", "gpt_neox", "phi", "mixtral", "qwen2_moe"), "AutoModelForCausalLM"),
    "t5_gated": "AutoModelForSeq2SeqLM",
}
OPS_OF = {"lora": ("lora",), "ln_tuning": ("norm",), "ia3": ("scale",), "merged": ("lora", "scale", "norm")}
RUNGS = FORMATS[1:]


class Reader:
    """A process that answers one request after another."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", READER, export_check.__file__]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command[-1]}\n")
        self.process.stdin.flush()
        error = self.process.stdout.readline()
        return subprocess.CompletedProcess(command, int(error != '""\n'), "", error)


@pytest.fixture(scope="module")
def readers() -> Iterator[Callable[[str], Reader]]:
    started: dict[bool, Reader] = {}

    def reader_of(rung: str) -> Reader:
        with_us = rung == "composite"
        if with_us not in started:
            started[with_us] = Reader()
        return started[with_us]

    yield reader_of
    for reader in started.values():
        reader.process.kill()
        reader.process.wait()


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseReference]:
    folder = tmp_path_factory.mktemp("bases")
    for name, auto in AUTO.items():
        tiny_model(name, "sequence" if "Classification" in auto else "lm").save_pretrained(folder / name)
    return {name: BaseReference(str(folder / name), auto) for name, auto in AUTO.items()}


def adapted_on(base: BaseReference, only: tuple[str, ...] | None) -> tuple[PeftModel, Plan, ModelMap]:
    model = load_model(base, seed=0)
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=only)
    return stir(tuner.build(model, plan, model_map, settings=tuner.OpSettings(lora_scale=2.0))).eval(), plan, model_map


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("rung", RUNGS)
def test_a_rung_gives_equal_outputs_in_another_process_and_through_load_adapter(
    name: str, rung: str, bases: dict[str, BaseReference], readers: Callable[[str], Reader], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = bases[name]
    adapted, plan, model_map = adapted_on(base, OPS_OF.get(rung))
    probe = probe_batch(adapted.get_base_model(), writes="Seq2Seq" in base.auto_class)
    expected = logits(adapted, probe)
    monkeypatch.setattr(subprocess, "run", readers(rung))
    format = rung if rung == "merged" else "auto"
    report = export_adapter(adapted, plan, model_map, tmp_path / "out", base=base, probe=probe, format=format)
    assert report.rung == rung
    assert (tmp_path / "out" / "README.md").is_file()
    assert ("import peftscout" in report.snippet) == (rung == "composite")
    if rung != "merged":
        fresh = load_model(base, seed=0)
        fresh.load_adapter(str(tmp_path / "out"))
        torch.testing.assert_close(logits(fresh.eval(), probe), expected, rtol=1e-4, atol=1e-4)


def test_every_family_that_reads_texts_goes_through_the_ladder() -> None:
    assert set(AUTO) == {family.name for family in FAMILIES} - {"vit"}


def test_the_readers_notice_what_does_not_load(
    bases: dict[str, BaseReference], readers: Callable[[str], Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted, plan, model_map = adapted_on(bases["bert"], ("lora",))
    gone = BaseReference(str(tmp_path / "gone"), AUTO["bert"])
    monkeypatch.setattr(subprocess, "run", readers("lora"))
    with pytest.raises(ExportError, match=r"(?s)the lora export does not load in a fresh process:.*gone"):
        export_adapter(adapted, plan, model_map, tmp_path / "out", base=gone, probe=probe_batch(adapted))
