"""The texts of an export: what each form is, the lines that load it, and the model card around them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftscout.plan import Plan

WHAT = {
    "lora": "a stock LoRA adapter, loads with peft alone",
    "composite": "an adapter of mixed ops, loads with peft once peftscout is imported",
    "merged": "a merged checkpoint, loads with transformers alone",
}

_LIBRARY = {"lora": "peft", "composite": "peft", "merged": "transformers"}


def snippet(rung: str, folder: str, base: str, auto_class: str, kwargs: Mapping[str, Any]) -> str:
    """Return the Python lines that load an export at ``folder``."""
    arguments = "".join(f", {name}={value!r}" for name, value in kwargs.items())
    if rung == "merged":
        return f"from transformers import {auto_class}\n\nmodel = {auto_class}.from_pretrained({folder!r}{arguments})\n"
    needed = "import peftscout  # makes its adapter type known to peft\n" if rung == "composite" else ""
    return (
        f"{needed}from peft import PeftModel\nfrom transformers import {auto_class}\n\n"
        f"base = {auto_class}.from_pretrained({base!r}{arguments})\n"
        f"model = PeftModel.from_pretrained(base, {folder!r})\n"
    )


def card(rung: str, code: str, base: str, plan: Plan, cost: int, text: str | None) -> str:
    """Return the model card: how to load the export, ``text``, and the plan."""
    known = "" if Path(base).exists() else f"base_model: {base}\n"  # the hub takes names, not folders
    placements = "\n".join(f"- {placement}" for placement in plan)
    return (
        f"---\nlibrary_name: {_LIBRARY[rung]}\n{known}tags:\n- peftscout\n---\n\n"
        f"# {WHAT[rung][0].upper()}{WHAT[rung][1:]}\n\n```python\n{code}```\n\n"
        + (f"{text.strip()}\n\n" if text else "")
        + f"## The plan\n\n{cost:,} trained parameters besides the head; found by peftscout.\n\n{placements}\n"
    )
