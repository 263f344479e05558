"""Load an export as its reader will and write down its outputs: run as a script, in a process of its own.

It must not import peftscout for what is meant to load without it, so it takes nothing from the package.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(path: str) -> None:
    """Answer the request in the JSON file at ``path``; see `peftscout.export`, which writes it."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    model, missing = _load(request)
    model.eval()
    if any(str(p.device) != request["device"] for p in model.parameters()):  # quantised ones cannot be moved
        model.to(request["device"])
    probe = {name: tensor.to(request["device"]) for name, tensor in load_file(request["probe"]).items()}
    with torch.no_grad():
        outputs = first_output(model(**probe))
    if request["rung"] != "composite":
        require_absence_of_peftscout()
    save_file({"outputs": outputs.float().cpu().contiguous()}, request["outputs"])
    Path(request["report"]).write_text(json.dumps({"fresh": missing}), encoding="utf-8")


def _load(request: dict[str, Any]) -> tuple[Any, list[str]]:
    """Return the model and the names of weights that its checkpoint lacked and the adapter did not bring."""
    if request["rung"] == "composite":
        importlib.import_module("peftscout")
    name = request["folder"] if request["rung"] == "merged" else request["name_or_path"]
    arguments = {**request["kwargs"], "dtype": request["dtype"], "trust_remote_code": request["trust_remote_code"]}
    auto_class = getattr(transformers, request["auto_class"])
    model, info = auto_class.from_pretrained(name, **arguments, use_safetensors=True, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if request["rung"] != "merged":
        peft = importlib.import_module("peft")
        model = peft.PeftModel.from_pretrained(model, request["folder"])
        heads = tuple(model.peft_config["default"].modules_to_save or ())
        missing = [key for key in missing if not key.startswith(tuple(f"{head}." for head in heads))]
    return model, missing


def require_absence_of_peftscout() -> None:
    """Raise a RuntimeError when anything has imported peftscout."""
    if "peftscout" in sys.modules:
        raise RuntimeError("this export must load without peftscout, which was imported")


def first_output(outputs: Any) -> torch.Tensor:
    """Return the logits, or the first tensor of a model without a head."""
    logits = getattr(outputs, "logits", None)
    tensor: torch.Tensor = outputs[0] if logits is None else logits
    return tensor


if __name__ == "__main__":
    main(sys.argv[1])
