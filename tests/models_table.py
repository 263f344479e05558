"""Finds out which families carry what, on tiny random models, and writes it as ``docs/models.md``.

    python tests/models_table.py

``tests/test_models_table.py`` holds the committed file against the code.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import transformers
from torch import Tensor

import peftscout
from adapted import batch_of, everything, stir
from peftscout import export_check, tuner
from peftscout.architecture import ModelMap
from peftscout.backbone import load_model, quiet_loading
from peftscout.cost import OPS
from peftscout.errors import ExportError, PeftscoutError
from peftscout.export import Rung, export_adapter
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from peftscout.stock import stock_form
from peftscout.strategies import STRATEGIES
from tiny_models import tiny_model
from tiny_task import tiny_tokenizer, write_task, write_texts

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "models.md"

ENCODER, SEQ2SEQ, DECODER, VISION = "classification", "labels_as_text", "causal_lm", "image classification"
AUTO = {
    ENCODER: "AutoModelForSequenceClassification",
    SEQ2SEQ: "AutoModelForSeq2SeqLM",
    DECODER: "AutoModelForCausalLM",
    VISION: "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class Family:
    """A tiny model: its name in `tiny_models`, what people call it, and what it is trained for here."""

    name: str
    title: str
    kind: str

    @property
    def head(self) -> str:
        """Which head `tiny_model` gives it."""
        return "sequence" if self.kind in (ENCODER, VISION) else "lm"


FAMILIES = (
    Family("bert", "BERT", ENCODER),
    Family("roberta", "RoBERTa", ENCODER),
    Family("albert", "ALBERT", ENCODER),
    Family("modernbert", "ModernBERT", ENCODER),
    Family("t5", "T5", SEQ2SEQ),
    Family("t5_gated", "T5 1.1 (gated)", SEQ2SEQ),
    Family("bart", "BART", SEQ2SEQ),
    Family("gpt2", "GPT-2", DECODER),
    Family("gpt_neox", "GPT-NeoX", DECODER),
    Family("phi", "Phi", DECODER),
    Family("llama", "Llama", DECODER),
    Family("mistral", "Mistral", DECODER),
    Family("qwen3", "Qwen3", DECODER),
    Family("gemma", "Gemma", DECODER),
    Family("mixtral", "Mixtral", DECODER),
    Family("qwen2_moe", "Qwen2-MoE", DECODER),
    Family("vit", "ViT", VISION),
)

WORKS = "yes"
LETTERS = {"stock": "S", "composite": "C", "merged": "M"}


@dataclass(frozen=True)
class Refusal:
    """Something that does not work: what was asked for, of which op or strategy and family, and the error's words."""

    asked: str
    what: str
    family: str
    message: str

    @property
    def reason(self) -> str:
        """The message without place, op and class: what is the same wherever it comes up."""
        return re.sub(rf"^\S+: ({'|'.join(OPS)}) ", "", self.message).replace("Conv1D", "Linear")


# --- family x op x export --------------------------------------------------------------------------------------------


@contextmanager
def same_process() -> Iterator[None]:
    """Let exports be loaded again here; that they load in a process of its own is for ``test_export_ladder.py``."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        try:
            export_check.main(command[-1])
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", f"{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, "", "")

    with (
        mock.patch.object(subprocess, "run", run),
        mock.patch.object(export_check, "require_absence_of_peftscout"),
        quiet_loading(),
    ):
        yield


def batch_for(family: Family, model: torch.nn.Module) -> dict[str, Tensor]:
    if family.kind == VISION:
        return {"pixel_values": torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    batch = batch_of(padding=1)
    return {**batch, "decoder_input_ids": batch["input_ids"][:, :5]} if family.kind == SEQ2SEQ else batch


def exports(family: Family, folder: Path) -> tuple[dict[str, str], list[Refusal], tuple[str, ...]]:
    """Try every op of ``family`` alone, at all its places, in every form of export.

    Returns:
        op -> letters of what holds it; what was refused; what is no place in the model.
    """
    base = BaseReference(str(folder / "base"), AUTO[family.kind])
    tiny_model(family.name, family.head).save_pretrained(folder / "base")
    model = load_model(base, seed=0)
    model_map = ModelMap.from_model(model)
    cells: dict[str, str] = {}
    refusals: list[Refusal] = []
    for op in OPS:
        plan = everything(model_map, only=(op,))
        if not len(plan):
            cells[op] = "no place"
            continue
        letters = []
        for asked, form in (
            ("stock", stock_form(plan, model_map.sites) or "lora"),
            ("composite",) * 2,
            ("merged",) * 2,
        ):
            error = refused(model, model_map, plan, base, batch_for(family, model), folder / f"{op}-{asked}", form)
            if error is None:
                letters.append(LETTERS[asked])
            else:
                refusals.append(Refusal(asked, op, family.title, error))
        cells[op] = " ".join(letters)
    return cells, refusals, model_map.skipped


def refused(
    model: torch.nn.Module,
    model_map: ModelMap,
    plan: Plan,
    base: BaseReference,
    batch: dict[str, Tensor],
    out: Path,
    form: Rung,
) -> str | None:
    """Build, check and export ``plan``, and load it again; return the words of the error, or ``None``."""
    adapted = tuner.build(model, plan, model_map)
    try:
        tuner.check_built(adapted, plan)
        tuner.check_gradients(adapted, plan, batch)
        stir(adapted.eval())
        export_adapter(adapted, plan, model_map, out, base=base, probe=batch, format=form)
    except ExportError as error:
        return str(error).removeprefix(f"{out}: ")
    finally:
        tuner.reset(adapted)
    return None


# --- family x strategy -----------------------------------------------------------------------------------------------


class Searches:
    """Runs searches of a few steps, each family with data and a model folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {DECODER: write_texts(folder / "texts", "prompts", train=24, validation=8)}
        classes = write_task(folder / "classes", train=24, validation=8)
        self.data |= dict.fromkeys((ENCODER, SEQ2SEQ, VISION), classes)

    def __call__(self, family: Family, strategy: str) -> str:
        """Return ``yes`` when a search ends with a plan and every trial with a score, else the words of the error."""
        model = self.folder / family.name
        if not model.exists():
            tiny_model(family.name, "base" if family.kind in (ENCODER, VISION) else "lm").save_pretrained(model)
            if family.kind != VISION:
                tiny_tokenizer(writes=family.kind != ENCODER).save_pretrained(model)
        kind = ENCODER if family.kind == VISION else family.kind
        try:
            result = peftscout.search(
                model,
                {"source": str(self.data[family.kind]), "kind": kind},
                budget="10%",
                study=self.folder / f"{family.name}-{strategy}",
                strategy=strategy,
                trials=3,
                steps=2,
                final={"seeds": 0},
                training={"precision": "fp32", "batch_size": 8, "evaluations": 1},
                progress=False,
            )
        except PeftscoutError as error:
            return str(error).replace(str(model), "FOLDER")
        bad = [trial for trial in result.summary["trials"] if trial["state"] != "done"]
        return f"{bad[0]['state']}: {bad[0]['message']}" if bad else WORKS


# --- the document ----------------------------------------------------------------------------------------------------

HEAD = """# Which models carry what

Written by `python tests/models_table.py`, which tries all of it on tiny random models of two blocks;
`tests/test_models_table.py` holds this page against the code. Other families are known, too: `peftscout inspect MODEL`
tells what is found in a model, and `tests/test_architecture_models.py` has more than 55 types.

## Ops and exports

Each op alone, at every place where it can sit: built, its count and its gradients checked, given trained values,
exported, loaded again, the outputs compared.

- **S**: a stock adapter of peft, which loads without peftscout: LoRA, LN tuning for `norm`, IA3 for `scale`.
- **C**: our composite type, which loads once peftscout is imported. It holds any mixture of all ops.
- **M**: merged into a checkpoint that loads with transformers alone.

That each of these also loads in a process of its own, and S and C through transformers' own `load_adapter`, is
tested on all of them but ViT (`tests/test_export_ladder.py`). There is no lossy export, such as LoRA that comes close
to a mixture.
"""

STRATEGIES_HEAD = """## Strategies

A search of three trials of two steps on the space `all`, to the chosen plan, every trial trained to a score: encoders
on `classification`, encoder-decoders on `labels_as_text`, decoders on `causal_lm`. The tests repeat one in {thinned} of
these searches, and all of them with `MODELS_TABLE=all`.
"""

THINNED = 4
"""One in so many searches is repeated by the tests."""


def ops_section(cells: dict[str, dict[str, str]]) -> str:
    rows = [[family.title, *(cells[family.name][op] for op in OPS)] for family in FAMILIES]
    return f"{HEAD}\n{table(['', *(f'`{op}`' for op in OPS)], rows)}"


def refusals_section(refusals: Iterable[Refusal]) -> str:
    grouped: dict[tuple[str, str], list[Refusal]] = defaultdict(list)
    for refusal in refusals:
        grouped[refusal.asked, refusal.reason].append(refusal)
    rows = []
    for (asked, _), group in grouped.items():
        ops = dict.fromkeys(f"`{r.what}`" for r in group)
        titles = dict.fromkeys(r.family for r in group)
        everywhere = "all" if len(titles) == len(FAMILIES) else ", ".join(titles)
        rows.append([asked, ", ".join(ops), everywhere, f"`{group[0].message}`"])
    text = "What does not work is refused before anything is written, in these words:\n\n"
    return f"{text}{table(['export', 'ops', 'models', 'the error, at the first place'], rows)}"


def skipped_section(skipped: dict[str, tuple[str, ...]]) -> str:
    rows = [[f.title, "; ".join(skipped[f.name])] for f in FAMILIES if skipped[f.name]]
    text = (
        "What is no place for an op, as `peftscout inspect` reports it; blocks that are shared (ALBERT) count once:\n\n"
    )
    return text + table(["", "left out"], rows)


def strategies_section(verdicts: dict[tuple[str, str], str]) -> str:
    errors: dict[str, list[str]] = defaultdict(list)
    rows = []
    for family in FAMILIES:
        row = [family.title]
        for strategy in STRATEGIES:
            verdict = verdicts[family.name, strategy]
            row.append(verdict if verdict == WORKS else "no")
            if verdict != WORKS and family.title not in errors[verdict]:
                errors[verdict].append(family.title)
        rows.append(row)
    told = "".join(f"- {', '.join(titles)}: `{error}`\n" for error, titles in errors.items() if titles)
    head = STRATEGIES_HEAD.format(thinned=THINNED)
    return f"{head}\n{table(['', *(f'`{s}`' for s in STRATEGIES)], rows)}\n{told}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def first_sections(folder: Path) -> list[str]:
    """Try all ops and exports and return the sections about them."""
    cells, refusals, skipped = {}, [], {}
    with same_process():
        for family in FAMILIES:
            cells[family.name], found, skipped[family.name] = exports(family, folder / f"exports-{family.name}")
            refusals += found
    return [ops_section(cells), refusals_section(refusals), skipped_section(skipped)]


def main() -> None:
    """Write ``docs/models.md``."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        sections = first_sections(Path(temporary))
        run = Searches(Path(temporary))
        verdicts = {(family.name, strategy): run(family, strategy) for family in FAMILIES for strategy in STRATEGIES}
    DOCUMENT.write_text("\n".join([*sections, strategies_section(verdicts)]), encoding="utf-8")


if __name__ == "__main__":
    main()
