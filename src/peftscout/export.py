"""Export: from a plan and its trained weights to a folder that others load, proven in a fresh process.

The ladder, by what the reader needs: ``lora``, ``ln_tuning``, ``ia3`` (stock adapters: peft alone), ``composite``
(peft, and peftscout imported once), ``merged`` (transformers alone, a whole checkpoint). Nothing appears at ``out``
before it has been loaded by another process and has given the same outputs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from peftscout import export_card, export_check
from peftscout.errors import ExportError, TunerError
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from peftscout.stock import STOCK_FORMS, StockForm, stock_form
from peftscout.tuner.checks import check_built, evaluation
from peftscout.tuner.lowering import STOCK, Weights, to_composite, to_merged

if TYPE_CHECKING:
    from peftscout.architecture import ModelMap

Rung = StockForm | Literal["composite", "merged"]
Format = Literal["auto"] | Rung

FORMATS: tuple[Format, ...] = ("auto", *STOCK_FORMS, "composite", "merged")
"""What a user may ask for; ``auto`` is the first stock form that holds the plan, else ``composite``."""

TOLERANCE = 1e-5
"""Largest difference of outputs in float32, for outputs up to 1; relative beyond."""

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_MODEL_KEYWORDS = ("revision",)


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how well it was proven.

    Attributes:
        folder: where it lies.
        rung: which form it has.
        cost: trained parameters of the plan, head excluded.
        difference: largest difference between the outputs here and in the fresh process.
        snippet: Python lines that load it.
    """

    folder: Path
    rung: Rung
    cost: int
    difference: float
    snippet: str

    def __str__(self) -> str:
        return (
            f"{self.folder}: {export_card.WHAT[self.rung]}, {self.cost:,} trained parameters besides the head.\n"
            f"Loaded in a fresh process: outputs differ by {self.difference:.1e} at most.\n\n{self.snippet}"
        )


def export_adapter(
    peft_model: PeftModel,
    plan: Plan,
    model_map: ModelMap,
    out: Path,
    *,
    base: BaseReference,
    probe: Mapping[str, Tensor],
    format: Format = "auto",
    card: str | None = None,
    trust_remote_code: bool = False,
) -> ExportReport:
    """Write the active adapter of ``peft_model`` to ``out`` and prove it: loaded elsewhere, it gives the same outputs.

    Args:
        peft_model: as `tuner.build` or ``PeftModel.from_pretrained`` made it; it is only read.
        plan: that it realises.
        model_map: of its backbone.
        out: a folder that does not exist yet or is empty.
        base: how the reader loads the backbone.
        probe: a batch on which outputs are compared.
        format: one of `FORMATS`.
        card: text for the model card, below how to load it.
        trust_remote_code: let the fresh process run code that came with the backbone.

    Raises:
        ExportError: when ``out`` is taken, the plan does not fit the form, or the outputs differ.
    """
    refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    rung: Rung = (stock_form(plan, model_map.sites) or "composite") if format == "auto" else format
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        folder = Path(temporary) / "export"
        folder.mkdir()
        try:
            check_built(peft_model, plan)
            _write(rung, peft_model, base, folder)
        except TunerError as error:
            raise ExportError(f"{out}: {error}{_remedy(rung)}") from error
        (folder / "plan.json").write_text(json.dumps(plan.to_json(), indent=1) + "\n", encoding="utf-8")
        told = _keywords(base, rung) | ({"trust_remote_code": trust_remote_code} if trust_remote_code else {})
        snippet = export_card.snippet(rung, str(out), base.name_or_path, base.auto_class, told)
        cost = plan.cost(model_map.sites)
        served = export_card.serving(plan, base.name_or_path, base.auto_class, out.name) if rung == "lora" else ""
        text = export_card.card(rung, snippet, base.name_or_path, plan, cost, card, model_map.sites, served)
        (folder / "README.md").write_text(text, encoding="utf-8")
        difference = _verify(peft_model, rung, folder, base, probe, Path(temporary), trust_remote_code)
        folder.replace(out)
    return ExportReport(out, rung, cost, difference, snippet)


def refuse_existing(out: Path) -> None:
    """Raise an ExportError unless ``out`` is free: nothing that exists is ever overwritten."""
    if out.is_dir():
        if any(out.iterdir()):
            raise ExportError(f"{out}: is not empty; name a folder that does not exist yet")
    elif out.exists():
        raise ExportError(f"{out}: is a file; name a folder that does not exist yet")


def _write(rung: Rung, peft_model: PeftModel, base: BaseReference, folder: Path) -> None:
    match rung:
        case "merged":
            to_merged(peft_model).save_pretrained(folder)
        case "composite":
            _write_adapter(peft_model, base, folder, *to_composite(peft_model))
        case _:
            _write_adapter(peft_model, base, folder, *STOCK[rung](peft_model))


def _write_adapter(
    peft_model: PeftModel, base: BaseReference, folder: Path, config: PeftConfig, weights: Weights
) -> None:
    config.base_model_name_or_path = base.name_or_path
    config.revision = base.kwargs.get("revision")
    model_class = type(peft_model.get_base_model())
    mapping = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
    config.save_pretrained(str(folder), auto_mapping_dict=mapping)
    save_file(weights, folder / _ADAPTER_WEIGHTS, metadata={"format": "pt"})


def _remedy(rung: Rung) -> str:
    match rung:
        case "composite":
            return ""
        case "merged":
            return "; export as composite"
        case _:
            return f"; export as composite, or search with --export {rung}"


def _keywords(base: BaseReference, rung: Rung) -> dict[str, Any]:
    """Keyword arguments for loading; a merged checkpoint is its own base, without a revision."""
    return {name: value for name, value in base.kwargs.items() if rung != "merged" or name not in _MODEL_KEYWORDS}


def _verify(
    peft_model: PeftModel,
    rung: Rung,
    folder: Path,
    base: BaseReference,
    probe: Mapping[str, Tensor],
    scratch: Path,
    trust_remote_code: bool,
) -> float:
    """Return the largest difference of outputs between this process and a fresh one that loads ``folder``."""
    weight = next(p for p in peft_model.get_base_model().parameters() if p.is_floating_point())
    with evaluation(peft_model), torch.no_grad():
        batch = {name: tensor.to(weight.device) for name, tensor in probe.items()}
        here = export_check.first_output(peft_model(**batch))
    save_file({name: tensor.cpu().contiguous() for name, tensor in probe.items()}, scratch / "probe.safetensors")
    request = {
        **asdict(base),
        "rung": rung,
        "folder": str(folder),
        "kwargs": _keywords(base, rung),
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "trust_remote_code": trust_remote_code,
        "probe": str(scratch / "probe.safetensors"),
        "outputs": str(scratch / "outputs.safetensors"),
        "report": str(scratch / "report.json"),
    }
    (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
    # As a script and not as a module of peftscout, which all rungs but one must do without; -P keeps this folder
    # off the import path.
    command = [sys.executable, "-P", export_check.__file__, str(scratch / "request.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExportError(f"the {rung} export does not load in a fresh process:\n{done.stderr.strip()[-2000:]}")
    there = load_file(scratch / "outputs.safetensors")["outputs"]
    fresh = json.loads((scratch / "report.json").read_text(encoding="utf-8"))["fresh"]
    return _compare(here.float().cpu(), there, weight.dtype, rung, fresh)


def _compare(here: Tensor, there: Tensor, dtype: torch.dtype, rung: Rung, fresh: list[str]) -> float:
    scale = max(1.0, float(here.abs().max()))
    tolerance = scale * max(TOLERANCE, 0.0 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps)
    difference = float((here - there).abs().max()) if here.shape == there.shape else float("inf")
    if not difference <= tolerance:
        reason = (
            f"; the backbone's checkpoint lacks {fresh[0]} and {len(fresh) - 1} more, which are initialised anew at "
            "every loading: save the backbone with its head once and start from that"
            if fresh
            else ""
        )
        raise ExportError(
            f"the {rung} export gives other outputs in a fresh process: they differ by {difference:.1e}, "
            f"allowed are {tolerance:.1e}{reason}"
        )
    return difference
