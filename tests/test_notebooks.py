"""The notebooks are scripts in jupytext's percent form: they run as they stand, in small, and become notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from documents import ROOT, misuse

SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))


def test_there_is_one_for_an_encoder_and_one_for_a_decoder() -> None:
    assert [script.stem for script in SCRIPTS] == ["classification", "decoder"]


def run_small(script: Path, folder: Path) -> str:
    environment = {**os.environ, "NOTEBOOK_SMALL": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_decoder_runs_and_writes(tmp_path: Path) -> None:
    printed = run_small(ROOT / "notebooks" / "decoder.py", tmp_path)
    assert printed.count("22 21 20 ->") == 2, "before and after"
    assert (tmp_path / "study-decoder" / "summary.json").is_file()
    assert (tmp_path / "adapter-decoder" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_classification_runs_and_classifies(tmp_path: Path, minilm_path: Path) -> None:
    printed = run_small(ROOT / "notebooks" / "classification.py", tmp_path)
    assert "parameters by op" in printed
    assert (tmp_path / "study-classification" / "report.html").is_file()
    assert (tmp_path / "adapter-classification" / "adapter_config.json").is_file()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_becomes_a_notebook_with_a_title_words_and_code(script: Path, tmp_path: Path) -> None:
    jupytext = pytest.importorskip("jupytext", reason="needs jupytext, which the dev extra installs")
    notebook = jupytext.read(script)
    out = tmp_path / "notebook.ipynb"
    jupytext.write(notebook, out, fmt="ipynb")
    again = jupytext.read(out)
    kinds = [cell.cell_type for cell in again.cells]
    assert kinds[0] == "markdown"
    assert again.cells[0].source.startswith("# ")
    assert kinds.count("code") >= 5
    assert kinds.count("markdown") >= 5
    assert again.metadata.kernelspec.name == "python3"
    for cell in (cell for cell in again.cells if cell.cell_type == "code"):
        compile(cell.source, script.name, "exec")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_uses_what_exists_and_says_how_it_is_made_small(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert misuse(text) == []
    assert "NOTEBOOK_SMALL=1" in text
