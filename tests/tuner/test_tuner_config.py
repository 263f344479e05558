"""The config of an adapter of mixed ops, and its registration with peft."""

from __future__ import annotations

import json
import re
from pathlib import Path

import peft
import pytest
from peft import PeftConfig, PeftType

from adapted import everything
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.ops import OpSettings
from peftscout.plan import Plan
from peftscout.tuner import PeftscoutConfig, PeftscoutModel, registration
from peftscout.tuner.registration import peft_type, register
from tiny_models import tiny_model


@pytest.fixture
def model_map() -> ModelMap:
    return ModelMap.from_model(tiny_model("bert", "sequence"))


def config_for(model_map: ModelMap) -> PeftscoutConfig:
    settings = OpSettings(lora_scale=2.0, parallel_scale=4.0)
    return PeftscoutConfig.for_plan(everything(model_map), model_map.sites, settings, 3, model_map.head)


def test_a_config_survives_the_disk_through_pefts_own_loader(model_map: ModelMap, tmp_path: Path) -> None:
    config = config_for(model_map)
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, PeftscoutConfig)
    assert loaded.hosts == config.hosts
    assert loaded.op_settings == OpSettings(lora_scale=2.0, parallel_scale=4.0)
    assert loaded.seed == 3
    assert loaded.modules_to_save == ["classifier"]
    assert Plan.from_json(loaded.plan) == everything(model_map)


def test_the_sites_are_stored_so_that_loading_needs_no_analysis_of_the_model(
    model_map: ModelMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_for(model_map).save_pretrained(str(tmp_path))
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["sites"]
    assert set(stored) == {placement.site for placement in everything(model_map)}
    monkeypatch.setattr(ModelMap, "from_model", lambda *_: pytest.fail("analysed again"))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert {h.site.id: h.site for h in loaded.ops} == {name: model_map.sites[name] for name in stored}


def test_the_targets_are_one_regex_of_exactly_the_hosts(model_map: ModelMap) -> None:
    config = config_for(model_map)
    assert config.target_modules is not None
    paths = [name for name, _ in tiny_model("bert", "sequence").named_modules()]
    assert {p for p in paths if re.fullmatch(config.target_modules, p)} == set(config.hosts)


def test_a_file_of_a_later_version_is_refused(model_map: ModelMap, tmp_path: Path) -> None:
    config_for(model_map).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 99}))
    with pytest.raises(TunerError, match="saved with schema 99, this version of peftscout reads schema 1"):
        PeftConfig.from_pretrained(str(tmp_path))


def test_an_incomplete_file_is_refused_by_the_name_of_what_is_missing(model_map: ModelMap) -> None:
    config = config_for(model_map)
    site = next(iter(config.sites))
    with pytest.raises(TunerError, match=f"{re.escape(site)}: the adapter's plan names this site"):
        PeftscoutConfig(plan=config.plan, sites={k: v for k, v in config.sites.items() if k != site})
    with pytest.raises(TunerError, match=r"settings: unknown key 'lora_scal' \(did you mean 'lora_scale'\?\)"):
        _ = PeftscoutConfig(settings={"lora_scal": 1.0}).op_settings


def test_two_sites_that_ask_one_module_for_the_same_op_are_refused(model_map: ModelMap) -> None:
    record = config_for(model_map).sites["layers.0.attention.q"]
    plan = Plan.of({("layers.0.attention.q", "lora"): 1, ("layers.1.attention.q", "lora"): 1})
    with pytest.raises(TunerError, match=r"query: lora is asked for by two sites"):
        PeftscoutConfig(
            plan=plan.to_json(),
            sites={"layers.0.attention.q": record, "layers.1.attention.q": {**record, "id": "layers.1.attention.q"}},
        )


def test_peft_knows_the_type_by_every_way_that_it_looks_it_up() -> None:
    member = peft_type()
    assert member is peft_type()
    assert PeftType("PEFTSCOUT") is PeftType["PEFTSCOUT"] is member
    assert member == "PEFTSCOUT"
    assert member in list(PeftType)
    assert member.value == member.name == "PEFTSCOUT"
    assert peft.PEFT_TYPE_TO_CONFIG_MAPPING[member] is PeftscoutConfig
    assert peft.PEFT_TYPE_TO_TUNER_MAPPING[member] is PeftscoutModel
    assert peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[member] == "peftscout_"


def test_registering_again_is_harmless() -> None:
    before = len(list(PeftType))
    register(PeftscoutConfig, PeftscoutModel)
    assert len(list(PeftType)) == before


def test_a_peft_that_cannot_be_extended_gives_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed:
        __members__: dict[str, str] = {}  # noqa: RUF012

    monkeypatch.setattr(registration, "PeftType", Changed)
    with pytest.raises(TunerError, match=r"peft [0-9.]+.*: cannot add the type PEFTSCOUT .*install peft >=0\.21"):
        peft_type()
    monkeypatch.undo()

    def refuse(**_: object) -> None:
        raise ValueError("closed for good")

    monkeypatch.setattr(registration, "register_peft_method", refuse)
    monkeypatch.setattr(peft, "PEFT_TYPE_TO_CONFIG_MAPPING", {})
    with pytest.raises(TunerError, match=r"closed for good"):
        register(PeftscoutConfig, PeftscoutModel)
