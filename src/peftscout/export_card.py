"""The texts of an export: what each form is, the lines that load it, and the model card around them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftscout.plan import Plan, Sites
from peftscout.report.plan_table import plan_lines
from peftscout.report.rendering import environment

WHAT = {
    "lora": "a stock LoRA adapter, loads with peft alone",
    "ln_tuning": "a stock LN tuning adapter, loads with peft alone",
    "ia3": "a stock IA3 adapter, loads with peft alone",
    "composite": "an adapter of mixed ops, loads with peft once peftscout is imported",
    "merged": "a merged checkpoint, loads with transformers alone",
}

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as its largest rank (``MaxLoRARanks`` in ``vllm/config/lora.py``)."""


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


def serving(plan: Plan, base: str, auto_class: str, name: str) -> str:
    """Return how vLLM serves a LoRA adapter with this largest rank; nothing for models that do not write texts.

    vLLM keeps room for one rank for all adapters, 16 unless told, and refuses an adapter with a larger one anywhere.
    """
    if auto_class != "AutoModelForCausalLM":
        return ""
    largest = max(placement.size for placement in plan)
    rank = next((rank for rank in VLLM_RANKS if rank >= largest), None)
    if rank is None:
        return f"Its largest rank is {largest}, above what vLLM serves ({VLLM_RANKS[-1]})."
    command = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}=THIS_FOLDER"
    return f"Its largest rank is {largest}; vLLM serves it (not tried here) with\n\n```console\n$ {command}\n```"


def card(
    rung: str,
    code: str,
    base: str,
    plan: Plan,
    cost: int,
    text: str | None,
    sites: Sites | None = None,
    serving: str = "",
) -> str:
    """Return the model card: how to load the export, ``text`` (Markdown), and the plan. The licence is the user's.

    Args:
        rung: which form the export has.
        code: lines that load it.
        base: name or folder of the backbone; only names of the hub are written.
        plan: that was trained.
        cost: its trainable parameters.
        text: what is known of the study; see `report.model_card`.
        sites: of the backbone; layers that hold nothing are then shown, too.
        serving: how a server loads it (Markdown).
    """
    what = WHAT[rung]
    return (
        environment()
        .get_template("model_card.md.j2")
        .render(
            library="transformers" if rung == "merged" else "peft",
            base="" if Path(base).exists() else _yaml(base),  # the hub takes names, not folders
            what=f"{what[0].upper()}{what[1:]}",
            code=code,
            text=(text or "").strip(),
            serving=serving,
            plan=list(plan),
            cost=cost,
            lines=plan_lines(plan, sites),
        )
        + "\n"
    )


def _yaml(name: str) -> str:
    """Return a name as YAML reads it back."""
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) else json.dumps(name)
