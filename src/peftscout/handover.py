"""From a study folder to what others load: pick the trained adapter of the chosen plan and export it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from peftscout.architecture import ModelMap
from peftscout.backbone import AUTO_CLASSES, KEYWORDS, load_model, quiet_loading
from peftscout.errors import ArchitectureError, StudyError
from peftscout.export import ExportReport, Format, export_adapter
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from peftscout.report.model_card import study_card
from peftscout.study import check_files, read_config, read_header, read_json, read_records, read_summary, trial_folder
from peftscout.tuner.registration import PEFT_TYPE

PROBE_ROWS, PROBE_LENGTH = 3, 12
"""Size of the made-up batch on which an export must give the same outputs."""


def export_study(folder: Path, out: Path, format: Format = "auto", *, trust_remote_code: bool = False) -> ExportReport:
    """Write the trained adapter of the chosen plan of a finished study to ``out``.

    Of the final trainings the one with the best score on the search split is taken; without a final comparison, the
    chosen trial itself. The export is verified by loading it in a fresh process before it appears.

    Nothing in the folder is believed: its files are compared with the hashes in the ledger, only the classes that
    peftscout loads models with are called, and a model whose own code the study ran is refused without
    ``trust_remote_code``: whoever has the folder need not be who trusted that code.

    Raises:
        StudyError: when the study has not finished, or its adapter is missing, damaged or not one of ours.
        ArchitectureError: when the model needs code that came with it and ``trust_remote_code`` is off.
        ExportError: when ``format`` cannot hold the plan, ``out`` is not empty, or the outputs differ.
    """
    summary, header, config = read_summary(folder), read_header(folder), read_config(folder)
    plan = Plan.from_json(summary["best"]["plan"])
    adapter = _checked_adapter(folder, _trained_trial(summary), config.storage)
    if config.trust_remote_code and not trust_remote_code:
        raise ArchitectureError(
            f"model {config.model}: the study in {folder} ran code that came with the model; read that code, then add "
            "--trust-remote-code"
        )
    return export_trained(
        adapter,
        plan,
        _reference(header.model["reference"], folder / "study.json"),
        out,
        format=format,
        card=study_card(summary, header),
        seed=config.seed,
        roles=config.roles,
        trust_remote_code=trust_remote_code,
        device_map=config.device_map,
    )


def _checked_adapter(folder: Path, number: int, storage: str | None) -> Path:
    """Return the adapter's folder of a trial.

    Raises:
        StudyError: when it is not there, not what the trial wrote, or of a type that peft has other code for.
    """
    adapter = trial_folder(folder, number) / "adapter"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise StudyError(
                f"{adapter / name}: the trained adapter is missing; train the plan again: "
                f"peftscout apply {folder / 'summary.json'}"
            )
    for record in read_records(folder, storage):
        if record.number == number:
            check_files(folder, record)
    config = read_json(adapter / "adapter_config.json", f"{adapter}: is missing")
    found = config.get("peft_type") if isinstance(config, dict) else None
    if found != PEFT_TYPE:
        raise StudyError(f"{adapter / 'adapter_config.json'}: peft_type {found!r}, trials write {PEFT_TYPE!r}")
    return adapter


def _reference(data: Mapping[str, Any], place: Path) -> BaseReference:
    """Read how the base is loaded.

    Raises:
        StudyError: when that is by anything else than the classes and arguments that peftscout writes.
    """
    try:
        reference = BaseReference(**data)
        known = reference.auto_class in AUTO_CLASSES.values() and set(reference.kwargs) <= set(KEYWORDS)
    except TypeError:
        known = False
    if not known:
        raise StudyError(f"{place}: model.reference is nothing that peftscout writes: {data!r:.200}")
    return reference


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
