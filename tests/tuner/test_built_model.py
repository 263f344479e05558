"""The contract of a built model, over the architectures: a no-op at first, of the right cost, trained everywhere."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from adapted import DECODERS, FAMILIES, batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import PlanError, TunerError
from peftscout.ops import OPS
from peftscout.plan import Plan
from peftscout.tuner.building import wrappers
from tiny_models import tiny_model


def head_of(model: nn.Module) -> ModulesToSaveWrapper:
    return next(m for m in model.modules() if isinstance(m, ModulesToSaveWrapper))


@pytest.mark.parametrize("name", [*FAMILIES, "t5_gated"])
def test_a_fresh_plan_of_everything_changes_no_output_and_has_its_price(name: str) -> None:
    model = tiny_model(name)  # a base model: no head that would be initialised anew
    model_map = ModelMap.from_model(model)
    plan, batch = everything(model_map), batch_of(padding=2)
    if name.startswith("t5"):
        batch["decoder_input_ids"] = batch["input_ids"][:, :4]
    before = logits(model, batch)
    adapted = tuner.build(model, plan, model_map)
    tuner.check_built(adapted, plan)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == plan.cost(model_map.sites)
    assert torch.equal(logits(adapted, batch), before)
    stir(adapted)
    assert not torch.allclose(logits(adapted, batch), before, atol=1e-3)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, batch), before)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama"])
def test_every_op_alone_does_nothing_at_first_and_something_when_moved(name: str, op: str) -> None:
    model = tiny_model(name)
    model_map = ModelMap.from_model(model)
    plan, batch = everything(model_map, only=(op,)), batch_of()
    if name == "t5":
        batch["decoder_input_ids"] = batch["input_ids"][:, :4]
    before = logits(model, batch)
    adapted = tuner.build(model, plan, model_map)
    tuner.check_built(adapted, plan)
    assert list(tuner.parameters_by_op(adapted)) == [op]
    assert torch.equal(logits(adapted, batch), before)
    assert not torch.allclose(logits(stir(adapted), batch), before, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_tensor_and_training_lowers_the_loss(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    plan, batch = everything(model_map), labelled(batch_of())
    smooth = tuner.OpSettings(adapter_activation="gelu")  # a ReLU may be off for all of so few tokens
    adapted = tuner.build(model, plan, model_map, settings=smooth)
    tuner.check_gradients(adapted, plan, batch)
    before = tuner.trainable_state(adapted)
    losses = train(adapted, batch, steps=6)
    assert losses[-1] < losses[0]
    after = tuner.trainable_state(adapted)
    assert all(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(name, "sequence")
        if checkpointing:
            model.gradient_checkpointing_enable()
        model_map = ModelMap.from_model(model)
        adapted = stir(tuner.build(model, everything(model_map), model_map)).train()
        adapted(**labelled(batch_of())).loss.backward()
        gradients.append({key: p.grad for key, p in adapted.named_parameters() if p.requires_grad})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for key in plain:
        torch.testing.assert_close(checkpointed[key], plain[key])


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_deep_copy_works_and_is_independent(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map), model_map))
    batch = batch_of()
    before = logits(adapted, batch)
    twin = copy.deepcopy(adapted)
    assert torch.equal(logits(twin, batch), before)
    train(twin, labelled(batch))
    assert not torch.allclose(logits(twin, batch), before, atol=1e-3)
    assert torch.equal(logits(adapted, batch), before)
    other = batch_of(seed=7)  # the parallel ops of the twin must read the twin's inputs
    expected = logits(twin, other)
    logits(adapted, batch)
    assert torch.equal(logits(twin, other), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_at_the_right_changes_nothing(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map), model_map))
    torch.testing.assert_close(logits(adapted, batch_of(padding=5)), logits(adapted, batch_of()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_later_tokens_change_no_earlier_output(name: str) -> None:
    model = tiny_model(name, "lm")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map), model_map))
    ids = batch_of()["input_ids"]
    changed = ids.clone()
    changed[:, 6:] = 3 + (ids[:, 6:] + 11) % 90
    whole, other = logits(adapted, {"input_ids": ids}), logits(adapted, {"input_ids": changed})
    torch.testing.assert_close(whole[:, :6], other[:, :6], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole[:, 6:], other[:, 6:], atol=1e-2)


@pytest.mark.parametrize("name", [*DECODERS, "t5", "t5_gated"])
def test_generation_is_the_same_with_and_without_a_cache(name: str) -> None:
    model = tiny_model(name, "lm")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map), model_map))
    prompt = {key: value[:, :-1] for key, value in batch_of(length=6).items()}

    def scores(use_cache: bool) -> torch.Tensor:
        out = adapted.generate(
            **prompt,
            use_cache=use_cache,
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        return torch.stack(out.scores)

    cached = scores(use_cache=True)
    assert len(cached) == 8
    torch.testing.assert_close(cached, scores(use_cache=False), rtol=1e-4, atol=1e-4)
    with adapted.disable_adapter():
        assert not torch.allclose(cached, scores(use_cache=True), atol=1e-2)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_multiple_choice_models_are_adapted_like_any_other(name: str) -> None:
    model = tiny_model(name, "multiple_choice")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map)
    batch = {key: value.view(2, 3, -1) for key, value in batch_of(rows=6).items()}
    adapted = tuner.build(model, plan, model_map)
    tuner.check_gradients(adapted, plan, {**batch, "labels": torch.tensor([0, 2])})
    assert logits(adapted, batch).shape == (2, 3)


def test_ops_stay_in_float32_on_a_bfloat16_backbone_and_still_do_nothing_at_first() -> None:
    model = tiny_model("llama", "lm").bfloat16()
    model_map = ModelMap.from_model(model)
    before = logits(model, batch_of())
    adapted = tuner.build(model, everything(model_map), model_map)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(logits(adapted, batch_of()), before)
    after = logits(stir(adapted), batch_of())
    assert after.dtype == torch.bfloat16
    assert after.isfinite().all()


def test_training_runs_under_bfloat16_autocast() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map)
    adapted = tuner.build(model, plan, model_map)
    with torch.autocast("cpu", torch.bfloat16):
        tuner.check_gradients(adapted, plan, labelled(batch_of()))
        assert all(torch.isfinite(torch.tensor(train(adapted, labelled(batch_of())))))


def test_the_start_is_decided_by_the_seed_alone() -> None:
    def built(seed: int, noise: int, op: str | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(noise)
        model = tiny_model("bert", "sequence")
        model_map = ModelMap.from_model(model)
        plan = everything(model_map, only=op and (op,))
        return tuner.trainable_state(tuner.build(model, plan, model_map, seed=seed))

    first, again, other = built(0, 1), built(0, 2), built(1, 1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for kind in ("lora_A", "prefix_keys", "serial_D", "classifier"):
        assert any(not torch.equal(first[key], other[key]) for key in first if kind in key), kind
    alone = built(0, 1, "lora")  # what else is in the plan makes no difference
    assert all(torch.equal(first[key], alone[key]) for key in alone)


def test_building_leaves_the_global_random_state_alone() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    before = torch.get_rng_state()
    adapted = tuner.build(model, everything(model_map), model_map)
    tuner.check_gradients(adapted, everything(model_map), labelled(batch_of()))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_trained_as_a_fresh_copy_and_the_original_stays(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    original = {key: p.clone() for key, p in model.named_parameters() if key.startswith(model_map.head)}
    adapted = tuner.build(model, everything(model_map, only=("bias",)), model_map, seed=1)
    head = head_of(adapted)
    trained = dict(head.modules_to_save["default"].named_parameters())
    assert all(p.requires_grad for p in trained.values())
    assert len(tuner.parameters_by_op(adapted)["head"]) == len(trained)
    weights = [key for key in trained if key.endswith("weight")]
    assert weights
    for key in weights:
        assert not torch.equal(trained[key], head.original_module.get_parameter(key))
    train(adapted, labelled(batch_of()))
    for key, p in head.original_module.named_parameters():
        assert torch.equal(p, original[f"{model_map.head[0]}.{key}"])


def test_without_a_head_nothing_but_the_plan_is_trained() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=("bias",))
    adapted = tuner.build(model, plan, model_map, head=())
    assert "head" not in tuner.parameters_by_op(adapted)
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == plan.cost(model_map.sites)


def test_an_empty_plan_trains_the_head_alone() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, Plan(), model_map)
    tuner.check_built(adapted, Plan())
    assert list(tuner.parameters_by_op(adapted)) == ["head"]
    losses = train(adapted, labelled(batch_of()))
    assert losses[-1] < losses[0]


def test_a_plan_that_does_not_fit_is_refused_before_the_model_is_touched() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    before = tuner.fingerprint(model)
    with pytest.raises(PlanError, match=r"layers\.0\.attention\.q: lora 33 > 32"):
        tuner.build(model, Plan.of({("layers.0.attention.q", "lora"): 33}), model_map)
    with pytest.raises(PlanError, match="no such site"):
        tuner.build(model, Plan.of({("layers.9.attention.q", "lora"): 1}), model_map)
    assert not hasattr(model, "peft_config")
    assert tuner.fingerprint(model) == before


def test_a_model_that_carries_adapters_is_refused() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=("bias",))
    tuner.build(model, plan, model_map)
    with pytest.raises(TunerError, match="already carries adapters; reset it"):
        tuner.build(model, plan, model_map)


def test_a_head_that_peft_would_match_too_widely_or_not_at_all_is_refused() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=("bias",))
    with pytest.raises(TunerError, match=r"no module 'clasifier' \(did you mean 'classifier'\?\)"):
        tuner.build(model, plan, model_map, head=("clasifier",))
    model.pre_classifier = nn.Linear(32, 32)  # as in DistilBERT
    with pytest.raises(TunerError, match="head: 'pre_classifier' ends like one of classifier, so peft would train it"):
        tuner.build(model, plan, model_map)
    assert not hasattr(model, "peft_config")
    adapted = tuner.build(model, plan, model_map, head=("pre_classifier", "classifier"))
    assert len(tuner.parameters_by_op(adapted)["head"]) == 4


def test_a_build_that_fails_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    before = tuner.fingerprint(model), [type(m) for m in model.modules()], model.config._attn_implementation

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("peftscout.tuner.building._initialise", fail)
    with pytest.raises(MemoryError):
        tuner.build(model, everything(model_map), model_map)
    after = tuner.fingerprint(model), [type(m) for m in model.modules()], model.config._attn_implementation
    assert after == before
    assert not hasattr(model, "peft_config")
    assert all(p.requires_grad for p in model.parameters())


def test_another_model_than_the_map_is_of_is_refused_by_the_name_of_the_site() -> None:
    model_map = ModelMap.from_model(tiny_model("bert", "sequence"))
    plan = Plan.of({("layers.0.attention.q", "lora"): 2})
    base = tiny_model("bert")
    with pytest.raises(TunerError, match=r"layers\.0\.attention\.q: lora: a BertModel has no module bert\.encoder"):
        tuner.build(base, plan, model_map, head=())
    wider = tiny_model("bert", "sequence", hidden_size=64)
    with pytest.raises(TunerError, match=r"maps 64 to 64 features, the adapter was made for 32 to 32"):
        tuner.build(wider, plan, model_map)
    assert not hasattr(wider, "peft_config")


def test_all_ops_of_one_leaf_share_one_wrapper_in_canonical_order() -> None:
    model = tiny_model("gpt2", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, everything(model_map), model_map)
    hosted = {path: [h.op for h in layer.hosted["default"]] for path, layer in wrappers(adapted)}
    assert hosted["transformer.h.0.attn.c_proj"] == ["lora", "bias", "scale", "serial", "parallel", "lowrank_adapter"]
    assert hosted["transformer.h.0.attn.c_attn"] == ["lora", "bias", "scale", "prefix"]
    assert hosted["transformer.h.0.ln_1"] == ["bias", "norm"]


def test_parameters_are_named_flat_with_the_adapter_last() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, everything(model_map), model_map, adapter_name="mine")
    names = [key for key, p in adapted.named_parameters() if p.requires_grad and "classifier" not in key]
    assert names
    for key in names:
        *_, container, adapter = key.split(".")
        assert container.startswith("peftscout_")
        assert adapter == "mine"
