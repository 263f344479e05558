"""Exports load elsewhere and give the same outputs, or they do not appear."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, BertModel

from adapted import batch_of, everything, labelled, logits, stir, train
from peftscout import export, export_card, export_check, tuner
from peftscout.architecture import ModelMap
from peftscout.cost import OPS
from peftscout.errors import ExportError
from peftscout.export import ExportReport, export_adapter, refuse_existing
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from tiny_models import tiny_model

AUTO = "AutoModelForSequenceClassification"
LORA = Plan.of({("layers.0.attention.q", "lora"): 1, ("layers.1.attention.v", "lora"): 3})


class Case:
    """A trained adapter on a saved backbone."""

    def __init__(self, folder: Path, name: str, plan: Plan | None = None, only: tuple[str, ...] | None = None) -> None:
        model = tiny_model(name, "sequence", num_labels=3)
        model.save_pretrained(folder / "base")
        self.base = BaseReference(str(folder / "base"), AUTO, {"num_labels": 3})
        self.model_map = ModelMap.from_model(model)
        self.plan = plan if plan is not None else everything(self.model_map, only=only)
        self.adapted = tuner.build(model, self.plan, self.model_map, settings=tuner.OpSettings(lora_scale=2.0))
        train(self.adapted, labelled(batch_of()))
        stir(self.adapted, scale=0.05)
        self.out = folder / "out"

    def export(self, **options: Any) -> ExportReport:
        probe = options.pop("probe", batch_of(padding=2))
        return export_adapter(self.adapted, self.plan, self.model_map, self.out, base=self.base, probe=probe, **options)

    def expected(self) -> Tensor:
        return logits(self.adapted, batch_of(padding=2))


@pytest.fixture
def same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer the request here: for what is not about processes, which take seconds to start."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        try:
            export_check.main(command[-1])
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", str(error))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(export_check, "require_absence_of_peftscout", lambda: None)


def run_snippet(report: ExportReport) -> Tensor:
    """Run the lines of the report as they stand."""
    names: dict[str, Any] = {}
    exec(report.snippet, names)
    return logits(names["model"].eval(), batch_of(padding=2))


def loaded(case: Case, out: Path | None = None) -> Tensor:
    base = AutoModelForSequenceClassification.from_pretrained(case.base.name_or_path, num_labels=3)
    return logits(PeftModel.from_pretrained(base, out or case.out).eval(), batch_of(padding=2))


@pytest.mark.slow
def test_a_lora_plan_loads_with_plain_peft_in_a_process_that_never_imports_us(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LORA)
    report = case.export(card="Found on the tiny task.")
    assert (report.rung, report.folder, report.cost) == ("lora", case.out, LORA.cost(case.model_map.sites))
    assert report.difference <= 1e-5
    assert "peftscout" not in report.snippet
    config = PeftConfig.from_pretrained(str(case.out))
    assert isinstance(config, LoraConfig)
    assert config.base_model_name_or_path == case.base.name_or_path
    assert {file.name for file in case.out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "plan.json",
    }
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "out"]
    torch.testing.assert_close(run_snippet(report), case.expected(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_mixed_plan_loads_after_one_import(tmp_path: Path) -> None:
    case = Case(tmp_path, "t5")
    assert case.plan.ops == OPS
    report = case.export()
    assert report.rung == "composite"
    assert report.difference <= 1e-5 * max(1.0, float(case.expected().abs().max()))
    assert report.snippet.startswith("import peftscout")
    torch.testing.assert_close(run_snippet(report), case.expected())


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_plan_that_folds_becomes_a_checkpoint_that_needs_neither_peft_nor_us(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, name, only=("lora", "bias", "scale", "norm"))
    report = case.export(format="merged")
    assert "peft" not in report.snippet
    torch.testing.assert_close(run_snippet(report), case.expected(), rtol=1e-4, atol=1e-4)
    merged = AutoModelForSequenceClassification.from_pretrained(case.out)
    assert merged.config.num_labels == 3
    assert type(merged) is type(tiny_model(name, "sequence"))


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("name", ["roberta", "gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("format", ["auto", "lora", "composite", "merged"])
def test_every_rung_holds_a_lora_plan_of_every_family(name: str, format: str, tmp_path: Path) -> None:
    case = Case(tmp_path, name, only=("lora",))
    report = case.export(format=format)
    assert report.rung == ("lora" if format == "auto" else format)
    assert (case.out / "plan.json").is_file()
    assert Plan.from_json(json.loads((case.out / "plan.json").read_text())) == case.plan
    torch.testing.assert_close(run_snippet(report), case.expected(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("same_process")
def test_a_loaded_adapter_can_be_exported_again_in_another_form(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LORA)
    expected = case.expected()
    case.export(format="composite")
    base = AutoModelForSequenceClassification.from_pretrained(case.base.name_or_path, num_labels=3)
    case.adapted, first = PeftModel.from_pretrained(base, case.out, adapter_name="other"), case.out
    case.out = tmp_path / "again"
    assert case.export().rung == "lora"
    torch.testing.assert_close(loaded(case), expected)
    torch.testing.assert_close(loaded(case, first), expected)


@pytest.mark.usefixtures("same_process")
def test_the_model_is_only_read(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", only=("lora", "norm"))
    case.adapted.train()
    before = tuner.fingerprint(case.adapted), [(m.training, type(m)) for m in case.adapted.modules()]
    for n, format in enumerate(("composite", "merged")):
        case.out = tmp_path / f"out{n}"
        case.export(format=format)
    assert (tuner.fingerprint(case.adapted), [(m.training, type(m)) for m in case.adapted.modules()]) == before
    assert not case.adapted.peft_config["default"].inference_mode


def test_a_plan_that_does_not_fit_the_form_is_refused_by_op_and_site(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama", Plan.of({("layers.0.ffn", "serial"): 1, ("layers.0.attention.q", "bias"): 1}))
    with pytest.raises(ExportError, match=r"layers\.0\.\S+: \w+ cannot be written as LoRA; export as composite"):
        case.export(format="lora")
    with pytest.raises(ExportError, match=r"layers\.0\.\S+: \w+ does not fold into a Linear.*; export as composite"):
        case.export(format="merged")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base"]


def test_a_bias_where_the_module_has_none_does_not_fold(tmp_path: Path) -> None:
    case = Case(tmp_path, "llama", Plan.of({("layers.0.attention.q", "bias"): 1}))
    with pytest.raises(ExportError, match=r"layers\.0\.attention\.q: bias does not fold into a Linear without a bias"):
        case.export(format="merged")


def test_another_plan_than_the_model_holds_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LORA)
    case.plan = Plan.of({("layers.0.attention.q", "lora"): 2})
    with pytest.raises(ExportError, match=r"layers\.0\.attention\.q: lora of size 2 was asked for, 1 was built"):
        case.export()


def test_what_exists_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="full: is not empty; name a folder that does not exist yet"):
        refuse_existing(tmp_path / "full")
    with pytest.raises(ExportError, match="file: is a file"):
        refuse_existing(tmp_path / "file")
    refuse_existing(tmp_path / "empty")
    refuse_existing(tmp_path / "new")
    case = Case(tmp_path, "bert", LORA)
    case.out = tmp_path / "full"
    with pytest.raises(ExportError, match="is not empty"):
        case.export()
    assert (tmp_path / "full" / "precious.txt").read_text() == "x"


@pytest.mark.usefixtures("same_process")
def test_an_empty_folder_is_taken_and_parents_are_made(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LORA)
    case.out.mkdir()
    case.export()
    case.out = tmp_path / "a" / "b" / "c"
    case.export()
    assert (case.out / "adapter_config.json").is_file()


@pytest.mark.usefixtures("same_process")
def test_an_export_that_gives_other_outputs_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, "bert", LORA)
    case.adapted.get_base_model().bert.encoder.layer[0].output.dense.weight.data.mul_(1.5)  # not what was saved
    with pytest.raises(ExportError, match=r"the lora export gives other outputs in a fresh process: they differ by"):
        case.export()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base"]


@pytest.mark.usefixtures("same_process")
def test_a_backbone_whose_checkpoint_lacks_weights_is_named_as_the_cause(tmp_path: Path) -> None:
    """A BERT saved without its pooler gets another one at every loading; no adapter can make up for that."""
    torch.manual_seed(0)
    case = Case(tmp_path, "bert", LORA)
    BertModel(case.adapted.get_base_model().config, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    case.base = BaseReference(str(tmp_path / "bare"), AUTO, {"num_labels": 3})
    with pytest.raises(ExportError, match=r"checkpoint lacks bert\.pooler\.dense\.bias and 1 more.*save the backbone"):
        case.export()


@pytest.mark.usefixtures("same_process")
def test_an_export_that_does_not_load_shows_the_error_of_the_process(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert", LORA)
    case.base = BaseReference(str(tmp_path / "gone"), AUTO, {"num_labels": 3})
    with pytest.raises(ExportError, match=r"(?s)the lora export does not load in a fresh process:.*gone"):
        case.export()
    assert not case.out.exists()


def test_the_check_refuses_to_have_us_imported_where_we_must_not_be() -> None:
    with pytest.raises(RuntimeError, match="must load without peftscout, which was imported"):
        export_check.require_absence_of_peftscout()


def test_the_script_of_the_check_imports_nothing_of_ours() -> None:
    tree = ast.parse(Path(export_check.__file__).read_text())
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(imports) > 5
    assert not any("peftscout" in line for line in imports)


@pytest.mark.usefixtures("same_process")
def test_a_model_without_a_head_is_compared_by_its_first_output(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.save_pretrained(tmp_path / "base")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=("lora",))
    adapted = stir(tuner.build(model, plan, model_map))
    base = BaseReference(str(tmp_path / "base"), "AutoModel")
    export_adapter(adapted, plan, model_map, tmp_path / "out", base=base, probe=batch_of())
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "out").eval()
    torch.testing.assert_close(logits(again, batch_of()), logits(adapted, batch_of()))


@pytest.mark.usefixtures("same_process")
@pytest.mark.parametrize("format", ["composite", "merged"])
def test_a_bfloat16_backbone_is_compared_in_bfloat16(format: str, tmp_path: Path) -> None:
    model = tiny_model("llama", "sequence").bfloat16()
    model.save_pretrained(tmp_path / "base")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=("lora", "norm"))
    adapted = stir(tuner.build(model, plan, model_map))
    base = BaseReference(str(tmp_path / "base"), AUTO)
    report = export_adapter(adapted, plan, model_map, tmp_path / "out", base=base, probe=batch_of(), format=format)
    assert report.difference < (0.5 if format == "merged" else 0.05)


@pytest.mark.usefixtures("same_process")
def test_the_card_says_how_to_load_what_was_found_and_the_plan(tmp_path: Path) -> None:
    case = Case(tmp_path, "bert")
    report = case.export(card="No significant gain over the baseline.")
    text = (case.out / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    assert code[1] == report.snippet
    assert code[1].splitlines()[0].startswith("import peftscout")
    assert "No significant gain over the baseline." in text
    assert text.startswith("---\n# license: name one here")
    assert "\nlibrary_name: peft\ntags:\n- peftscout\n---\n" in text
    for placement in case.plan:
        assert f"\n{placement}\n" in text
    assert str(report).startswith(f"{case.out}: an adapter of mixed ops")
    assert report.snippet in str(report)


def test_the_card_names_a_base_of_the_hub_but_no_folder_of_this_machine(tmp_path: Path) -> None:
    named = export_card.card("lora", "code\n", "org/model", LORA, 12345, None)
    assert "base_model: org/model\n" in named
    assert "12,345 trained parameters" in named
    assert "base_model" not in export_card.card("lora", "code\n", str(tmp_path), LORA, 1, None)


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (3, 8), (16, 16), (17, 32), (300, 320)])
def test_the_card_of_a_decoder_tells_a_server_how_much_room_the_largest_rank_needs(rank: int, room: int) -> None:
    plan = Plan.of({("layers.0.attention.q", "lora"): 1, ("layers.1.attention.q", "lora"): rank})
    told = export_card.serving(plan, "org/model", "AutoModelForCausalLM", "mine")
    assert f"Its largest rank is {rank};" in told
    assert f"vllm serve org/model --enable-lora --max-lora-rank {room} --lora-modules mine=" in told
    assert told in export_card.card("lora", "code\n", "org/model", plan, 1, None, serving=told)


def test_a_rank_that_no_server_takes_is_told_and_classifiers_are_not_served() -> None:
    plan = Plan.of({("layers.0.attention.q", "lora"): 600})
    assert "600, above what vLLM serves (512)" in export_card.serving(plan, "m", "AutoModelForCausalLM", "mine")
    assert export_card.serving(plan, "m", AUTO, "mine") == ""


def test_the_revision_of_the_base_goes_into_config_and_snippet_but_not_into_a_merged_one() -> None:
    base = BaseReference("org/model", AUTO, {"num_labels": 2, "revision": "abc"})
    assert export._keywords(base, "lora") == {"num_labels": 2, "revision": "abc"}
    assert export._keywords(base, "merged") == {"num_labels": 2}
