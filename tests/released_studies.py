"""What the maker of tests/assets/studies and its test share: the outputs of the adapter that a study hands over."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from peftscout import handover

PROBE = "outputs.safetensors"


def outputs_of(study: Path) -> Tensor:
    """Return what the adapter that would be exported says to a made-up batch: all of an export but the writing."""
    found: dict[str, Tensor] = {}

    def take(peft_model: Any, plan: Any, model_map: Any, out: Path, *, probe: dict[str, Tensor], **rest: Any) -> None:
        with torch.no_grad():
            found["outputs"] = peft_model(**probe).logits

    with patch.object(handover, "export_adapter", take):
        handover.export_study(study, study.parent / "out")
    return found["outputs"]
