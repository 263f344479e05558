"""The demo: build the task, search, export, and use the result in a fresh process, with the commands of a user."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftscout.demo.model import model_path
from peftscout.demo.task import LIBRARIES, build_task
from peftscout.errors import PeftscoutError

NEW_DOCSTRINGS = (
    ("sklearn", "Fit a boosted ensemble of decision trees and predict the class of each sample."),
    ("torch", "Applies dropout to the hidden units of this module during training, in the forward pass."),
    ("scipy", "Integrate a stiff system of ordinary differential equations with an implicit Runge-Kutta method."),
)
"""Written for functions that do not exist, each with the library that one would expect it in."""


def search_command(model: Path, out: Path) -> list[str]:
    """Return the command that finds, trains and compares: what a user would type, sized for two cores."""
    return [
        *("peftscout", "search", str(model), "--budget", "0.35%", "--data", str(out / "data")),
        *("--trials", "6", "--steps", "60", "--final-seeds", "2"),
        *("--set", "training.batch_size=16", "--set", "training.evaluations=1"),
        *("--set", "final.lr_scales=[1]", "--study", str(out / "study")),
    ]


def export_command(out: Path) -> list[str]:
    """Return the command that writes the adapter."""
    return ["peftscout", "export", str(out / "study"), str(out / "adapter")]


def classifying_script(card: str, model: Path, labels: Sequence[str]) -> str:
    """Return Python that loads the adapter as its model card says, and asks it about `NEW_DOCSTRINGS`."""
    loading = card.partition("```python\n")[2].partition("```")[0]
    return f"""{loading}
from transformers import AutoTokenizer

labels = {list(labels)!r}
tokenizer = AutoTokenizer.from_pretrained({str(model)!r})
batch = tokenizer({[text for _, text in NEW_DOCSTRINGS]!r}, padding=True, return_tensors="pt")
for shares in model.eval()(**batch).logits.softmax(-1).tolist():
    print(labels[shares.index(max(shares))], round(max(shares), 2))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the task, search, export, and use the result in a fresh process, as a user would. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m peftscout.demo", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("peftscout-demo"), help="folder of everything it makes")
    out: Path = parser.parse_args(arguments).out
    start = time.monotonic()
    try:
        _run(out)
    except PeftscoutError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:  # it has said itself what is wrong
        return error.returncode
    print(f"\nThat took {time.monotonic() - start:.0f} seconds. Everything is in {out}/.")
    return 0


def _run(out: Path) -> None:
    model = _short(model_path())
    _say(f"Real text: docstrings of {', '.join(LIBRARIES)}, their names masked. Which library is each from?")
    data = build_task(out / "data", train_rows=1200, validation_rows=300)
    for name in ("train", "validation"):
        rows = (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        print(f"{data / name}.jsonl: {len(rows)} rows" + (f", such as\n  {rows[0]}" if name == "train" else ""))

    _say(
        "Search within 0.35 % of the model's parameters, and compare with uniform LoRA on rows that no trial has seen:"
    )
    _peftscout(search_command(model, out))

    _say("Write the adapter, checked by loading it in a fresh process:")
    if (out / "adapter" / "adapter_config.json").is_file():  # of an earlier run of this demo
        shutil.rmtree(out / "adapter")
    _peftscout(export_command(out))

    _say("Use it in a new process, as anybody would:")
    labels = json.loads((out / "study" / "summary.json").read_text(encoding="utf-8"))["labels"]
    script = out / "classify.py"
    card = (out / "adapter" / "README.md").read_text(encoding="utf-8")
    script.write_text(classifying_script(card, model, labels), encoding="utf-8")
    print(f"$ python {script}")
    answers = _python(str(script), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.splitlines()
    print(f"{'predicted':<16}{'expected':<10}docstring")
    for (expected, text), answer in zip(NEW_DOCSTRINGS, answers, strict=True):
        print(f"{answer:<16}{expected:<10}{text}")


def _say(line: str) -> None:
    print(f"\n{line}", flush=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _peftscout(command: Sequence[str]) -> None:
    print(f"$ {shlex.join(command)}", flush=True)
    _python("-m", *command)


def _python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python in a fresh process, without a hub."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run([sys.executable, *arguments], env=environment, check=True, text=True, **options)


if __name__ == "__main__":
    sys.exit(main())
