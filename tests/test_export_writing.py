"""Exports of models that write: each rung of the ladder gives the same logits in a fresh process."""

from __future__ import annotations

import pytest

from adapted import stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.backbone import load_model
from peftscout.export import export_adapter
from peftscout.handover import probe_batch
from peftscout.plan import Plan
from peftscout.reference import BaseReference
from tiny_task import save_tiny_writer

pytestmark = pytest.mark.slow

CASES = [
    ("t5", "lora"),
    ("t5", "composite"),
    ("t5", "merged"),
    ("bart", "merged"),
    ("llama", "lora"),
    ("llama", "merged"),
]


@pytest.mark.parametrize(("name", "format"), CASES)
def test_an_export_of_a_model_that_writes_gives_equal_logits_elsewhere(name, format, tmp_path):
    path = save_tiny_writer(tmp_path / "model", name)
    writes = name != "llama"
    reference = BaseReference(str(path), "AutoModelForSeq2SeqLM" if writes else "AutoModelForCausalLM")
    model = load_model(reference, seed=0)
    model_map = ModelMap.from_model(model)
    assert model_map.head == ()
    sites = [site for site in model_map.sites if site.endswith(("attention.q", "ffn.down"))]
    sizes = {(site, "lora"): 2 for site in sites}
    if format != "lora":
        sizes[sites[-1], "scale"] = 1
    plan = Plan.of(sizes)
    adapted = stir(tuner.build(model, plan, model_map)).eval()
    probe = probe_batch(model, writes=writes)
    assert ("decoder_input_ids" in probe) == writes
    report = export_adapter(adapted, plan, model_map, tmp_path / "out", base=reference, probe=probe, format=format)
    assert report.rung == format
    assert report.difference < 1e-4
