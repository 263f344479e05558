"""The whole way of the command line for models that write: search, report, export, apply, load again elsewhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peftscout import cli
from tiny_task import save_tiny_writer, tiny_tokenizer, write_task, write_texts

pytestmark = pytest.mark.slow

CASES = {
    "labels-as-text": ("t5", "classes", "accuracy"),
    "text-to-text": ("t5", "prompts", "exact_match"),
    "causal-lm": ("llama", "prompts", "neg_loss"),
    "choice-likelihood": ("llama", "choices", "accuracy"),
}


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["peftscout", *map(str, arguments)])
        with pytest.raises(SystemExit) as leave:
            cli.main()
        out, err = capsys.readouterr()
        return int(leave.value.code or 0), out, err

    return run


def options(kind: str, data: Path) -> list[object]:
    own = ["--data", data, "--kind", kind, "--steps", 3, "--set", "training.precision=fp32"]
    return [*own, "--set", "training.batch_size=8", "--set", "data.max_search_rows=20"]


@pytest.mark.parametrize("kind", CASES)
def test_search_export_and_apply_a_model_that_writes(kind, run, tmp_path):
    name, data, metric = CASES[kind]
    model = save_tiny_writer(tmp_path / "model", name)
    rows = {"train": 60, "validation": 16}
    folder = (
        write_task(tmp_path / "data", **rows) if data == "classes" else write_texts(tmp_path / "data", data, **rows)
    )
    study = tmp_path / "study"
    asked = ["search", model, "--budget", "5%", "--trials", 3, "--final-seeds", 1, "--study", study]
    code, out, err = run(*asked, "--set", "final.lr_scales=[1.0]", *options(kind, folder))
    assert code == 0, err
    assert metric in out

    summary = json.loads((study / "summary.json").read_text())
    assert summary["metric"] == metric
    assert {t["state"] for t in summary["trials"]} == {"done"}
    code, out, err = run("export", study, tmp_path / "out")
    assert code == 0, err
    adapter = tmp_path / "out"
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    base = auto.from_pretrained(model)
    loaded = PeftModel.from_pretrained(base, adapter).eval()
    ids = tiny_tokenizer(writes=True)("good word1 word2", return_tensors="pt")
    first, again = (loaded.generate(**ids, max_new_tokens=4, do_sample=False) for _ in range(2))
    assert torch.equal(first, again)
    code, out, err = run(
        "apply",
        study / "summary.json",
        model,
        "--out",
        tmp_path / "applied",
        "--format",
        "composite",
        *options(kind, folder),
    )
    assert code == 0, err
    assert metric in json.loads(out[out.index("{") :])["report"]


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("strategy", "estimator"), [("bipeft", "split"), ("s3delta", "unrolled")])
def test_models_that_write_are_searched_on_a_supernet(kind, strategy, estimator, run, tmp_path):
    name, data, _ = CASES[kind]
    model, rows = save_tiny_writer(tmp_path / "model", name), {"train": 60, "validation": 16}
    folder = (
        write_task(tmp_path / "data", **rows) if data == "classes" else write_texts(tmp_path / "data", data, **rows)
    )
    study = tmp_path / "study"
    asked = ["search", model, "--budget", "5%", "--trials", 2, "--final-seeds", 0, "--study", study]
    asked += ["--strategy", strategy, "--space", "bipeft-s1", "--set", f"strategy_options.estimator={estimator}"]
    code, _, err = run(*asked, *options(kind, folder))
    assert code == 0, err
    found = json.loads((study / "summary.json").read_text())["trials"][1]
    assert (found["label"], found["state"]) == (strategy, "done")


def test_what_a_model_cannot_do_is_said_before_anything_is_written(run, tmp_path):
    data = write_texts(tmp_path / "data", "prompts", train=20, validation=8)
    for name, kind, said in (
        ("t5", "causal-lm", "is an encoder-decoder, causal_lm is for decoders"),
        ("llama", "text-to-text", "transformers has no AutoModelForSeq2SeqLM for it"),
        ("bert", "causal-lm", "earlier positions see later ones"),
    ):
        model = save_tiny_writer(tmp_path / name, name)
        study = tmp_path / f"study-{name}"
        code, _, err = run("search", model, "--budget", "5%", "--study", study, *options(kind, data))
        assert code == 1
        assert said in " ".join(err.split())
        assert not study.exists()
