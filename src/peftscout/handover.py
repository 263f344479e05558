"""From a study folder to what others load: pick the trained adapter of the chosen plan and export it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from peftscout.architecture import ModelMap
from peftscout.backbone import load_model, quiet_loading
from peftscout.errors import StudyError
from peftscout.export import ExportReport, Format, export_adapter
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from peftscout.report.model_card import study_card
from peftscout.study import read_config, read_header, read_summary, trial_folder

PROBE_ROWS, PROBE_LENGTH = 3, 12
"""Size of the made-up batch on which an export must give the same outputs."""


def export_study(folder: Path, out: Path, format: Format = "auto") -> ExportReport:
    """Write the trained adapter of the chosen plan of a finished study to ``out``.

    Of the final trainings the one with the best score on the search split is taken; without a final comparison, the
    chosen trial itself. The export is verified by loading it in a fresh process before it appears.

    Raises:
        StudyError: when the study has not finished or its adapter is missing.
        ExportError: when ``format`` cannot hold the plan, ``out`` is not empty, or the outputs differ.
    """
    summary, header, config = read_summary(folder), read_header(folder), read_config(folder)
    plan = Plan.from_json(summary["best"]["plan"])
    adapter = trial_folder(folder, _trained_trial(summary)) / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise StudyError(f"{adapter}: the trained adapter is missing; run the search again in a new folder")
    return export_trained(
        adapter,
        plan,
        BaseReference(**header.model["reference"]),
        out,
        format=format,
        card=study_card(summary, header),
        seed=config.seed,
        roles=config.roles,
        trust_remote_code=config.trust_remote_code,
        device_map=config.device_map,
    )


def export_trained(
    adapter: Path,
    plan: Plan,
    reference: BaseReference,
    out: Path,
    *,
    format: Format,
    card: str,
    seed: int,
    roles: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    device_map: str | Mapping[str, str | int] | None = None,
) -> ExportReport:
    """Load a trained adapter folder onto a fresh base and write it to ``out`` in the asked form, verified."""
    model = load_model(reference, seed=seed, trust_remote_code=trust_remote_code, device_map=device_map)
    model_map = ModelMap.from_model(model, roles)
    with quiet_loading():
        adapted = PeftModel.from_pretrained(model, adapter).eval()
    writes = reference.auto_class == "AutoModelForSeq2SeqLM"
    probe = probe_batch(model, choices=_choices(reference), writes=writes)
    return export_adapter(
        adapted,
        plan,
        model_map,
        out,
        format=format,
        base=reference,
        probe=probe,
        card=card,
        trust_remote_code=trust_remote_code,
    )


def _trained_trial(summary: dict[str, Any]) -> int:
    best = summary["best"]
    finals = [
        t for t in summary["trials"] if t["stage"] == "final" and t["plan"] == best["plan"] and t["state"] == "done"
    ]
    return int(max(finals, key=lambda t: t["score"])["number"] if finals else best["trial"])


def probe_batch(model: Any, choices: int = 0, *, writes: bool = False) -> dict[str, Tensor]:
    """Return made-up token ids with some padding, for comparing outputs: [rows, length] or [rows, choices, length].

    With ``writes`` also those of a decoder that writes after an encoder.
    """
    shape = (PROBE_ROWS, choices, PROBE_LENGTH) if choices else (PROBE_ROWS, PROBE_LENGTH)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.randint(min(10, vocabulary - 1), vocabulary, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[-1, ..., PROBE_LENGTH // 2 :] = 0
    if writes:
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, : PROBE_LENGTH // 2].contiguous()}
    pad = model.config.get_text_config().pad_token_id
    ids[mask == 0] = 0 if pad is None else pad
    return {"input_ids": ids, "attention_mask": mask}


def _choices(reference: BaseReference) -> int:
    return 2 if reference.auto_class == "AutoModelForMultipleChoice" else 0
