"""Which frozen parts draw dropout masks."""

from __future__ import annotations

import pytest

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.plan import Plan
from peftscout.training.dropout import lowest_tuned_block, set_training
from tiny_models import tiny_model

UPPER = Plan.of({("layers.1.attention.q", "lora"): 2, ("layers.1.ffn", "serial"): 1})


def built(name: str, plan: Plan):
    model = tiny_model(name, head="sequence")
    model_map = ModelMap.from_model(model)
    return tuner.build(model, plan, model_map), model_map


def test_off_silences_the_backbone_and_leaves_ops_and_head_in_training():
    model, _ = built("bert", UPPER)
    set_training(model, "off")
    base = model.get_base_model()
    assert not any(module.training for module in base.bert.modules())
    assert base.classifier.training


def test_paper_trains_everything():
    model, _ = built("bert", UPPER)
    set_training(model, "off")
    set_training(model, "paper")
    assert all(module.training for module in model.get_base_model().modules())


@pytest.mark.parametrize(("name", "below", "tuned", "above"), [
    ("bert", ["embeddings", "encoder.layer.0"], "encoder.layer.1", ["pooler"]),
    ("llama", ["embed_tokens", "layers.0"], "layers.1", ["norm"]),
])  # fmt: skip
def test_above_trains_from_the_lowest_tuned_block_on(name, below, tuned, above):
    model, model_map = built(name, UPPER)
    lowest = lowest_tuned_block(UPPER, model_map)
    base = model.get_base_model()
    backbone = getattr(base, base.base_model_prefix)
    assert lowest == f"{base.base_model_prefix}.{tuned}"
    set_training(model, "above", lowest)
    for path in below:
        assert not any(module.training for module in backbone.get_submodule(path).modules())
    for path in (tuned, *above):
        assert all(module.training for module in backbone.get_submodule(path).modules())


def test_above_with_nothing_tuned_silences_the_whole_backbone():
    model, model_map = built("bert", Plan())
    assert lowest_tuned_block(Plan(), model_map) is None
    set_training(model, "above", None)
    assert not model.get_base_model().bert.encoder.layer[1].training


def test_the_lowest_block_of_an_encoder_decoder_is_the_first_in_the_order_of_the_model():
    model_map = ModelMap.from_model(tiny_model("t5", head="lm"))
    decoder = Plan.of({("decoder.1.cross_attention.v", "lora"): 1})
    both = Plan.of({("decoder.0.ffn", "serial"): 1, ("encoder.1.attention.q", "lora"): 1})
    assert lowest_tuned_block(decoder, model_map) == "decoder.block.1"
    assert lowest_tuned_block(both, model_map) == "encoder.block.1"


def test_a_final_norm_is_above_every_block():
    model_map = ModelMap.from_model(tiny_model("llama", head="sequence"))
    assert lowest_tuned_block(Plan.of({("layers.final_norm", "norm"): 1}), model_map) is None
