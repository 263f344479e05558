"""Plans that are evaluated together get the outcomes that they get alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peftscout import tuner
from peftscout.backbone import load_backbone
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.tasks import encode, load_task
from peftscout.training import stack_evaluator
from peftscout.training.arithmetic import Arithmetic
from peftscout.training.evaluator import EncodedTask, Evaluator, save_adapter
from peftscout.training.settings import TrainingSettings
from peftscout.training.stack_evaluator import capacity, evaluate_together
from tiny_task import save_tiny_model, write_task

RATES = dict.fromkeys(
    ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix", "head"), 1e-2
)
PLANS = [
    Plan.of({("layers.0.attention.q", "lora"): 2, ("layers.1.ffn.down", "lora"): 3}),
    Plan.of({("layers.1.attention", "prefix"): 2, ("layers.1.ffn", "serial"): 2, ("layers.1.attention.v", "bias"): 1}),
    Plan.of({("layers.1.ffn", "parallel"): 3, ("layers.1.attention.q", "lora"): 1, ("layers.0.ffn_norm", "norm"): 1}),
]
UPPER = [PLANS[1], Plan.of({("layers.1.attention.q", "lora"): 4}), Plan.of({("layers.1.ffn", "lowrank_adapter"): 1})]


@pytest.fixture(scope="module", params=["classification", "regression", "multiple_choice"])
def make(request, tmp_path_factory):
    kind = request.param
    model = save_tiny_model(tmp_path_factory.mktemp("model"))
    task = load_task(write_task(tmp_path_factory.mktemp("data"), kind=kind, train=60, validation=24), kind=kind)

    def make(folder: Path | None = None, note=print, **changes) -> Evaluator:
        backbone = load_backbone(str(model), task)
        train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
        settings = replace(TrainingSettings(RATES, batch_size=16), **changes)
        return Evaluator(backbone, EncodedTask(task, train, search), settings, folder=folder, note=note)

    return make


def assert_alike(ours: Outcome, theirs: Outcome) -> None:
    assert (ours.state, ours.cost, ours.steps) == (theirs.state, theirs.cost, theirs.steps)
    assert (ours.passes, ours.tokens, ours.real_tokens) == (theirs.passes, theirs.tokens, theirs.real_tokens)
    assert [loss for _, loss, _ in ours.curve] == pytest.approx([loss for _, loss, _ in theirs.curve], rel=1e-4)
    assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=1e-4)


def requests(plans, seeds=(0, 0, 0), steps=6, **fidelity) -> list[Evaluate]:
    scales = (1.0, 0.5, 2.0)
    return [Evaluate(p, Fidelity(steps, **fidelity), s, r) for p, s, r in zip(plans, seeds, scales, strict=True)]


@pytest.mark.parametrize("seeds", [(0, 0, 0), (0, 1, 2)], ids=["one seed", "three seeds"])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_stack_gives_what_single_evaluations_give(make, tmp_path, seeds, stored):
    for plans in (PLANS, UPPER):
        asked = requests(plans, seeds)
        notes: list[str] = []
        together = evaluate_together(make(tmp_path if stored else None, notes.append), asked)
        assert notes == []
        single = make()
        for outcome, request in zip(together, asked, strict=True):
            assert_alike(outcome, single(request))


def test_what_is_handed_on_is_the_model_as_it_would_be_alone(make, tmp_path):
    asked, predicted = requests(PLANS), {}
    evaluator = make()

    def after(n, model):
        save_adapter(model, tmp_path / f"together{n}")
        predicted[n] = evaluator.predict(model, evaluator.data.search)

    evaluate_together(evaluator, asked, after=after)
    for n, request in enumerate(asked):

        def alone(model, n=n):
            save_adapter(model, tmp_path / f"alone{n}")
            assert np.allclose(predicted[n], evaluator.predict(model, evaluator.data.search), atol=1e-3)

        evaluator(request, after=alone)
        ours, theirs = (load_file(tmp_path / f"{w}{n}" / "adapter_model.safetensors") for w in ("together", "alone"))
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert torch.allclose(ours[name], tensor, atol=1e-4), name


def test_a_plan_that_diverges_leaves_the_others_untouched(make):
    asked = requests(PLANS)
    asked[1] = replace(asked[1], lr_scale=1e30)
    evaluator = make()
    together = evaluate_together(evaluator, asked)
    assert [outcome.state for outcome in together] == [State.DONE, State.DIVERGED, State.DONE]
    for n in (0, 2):
        assert_alike(together[n], evaluator(asked[n]))


def test_all_may_diverge(make):
    asked = [replace(request, lr_scale=1e30) for request in requests(PLANS)]
    assert {outcome.state for outcome in evaluate_together(make(), asked)} == {State.DIVERGED}


def test_runs_on_rungs_are_paused_together_and_go_on_alone(make, tmp_path):
    ladder = (4, 8)
    low, high = (requests(PLANS, steps=steps, rungs=ladder) for steps in ladder)
    evaluator = make(tmp_path)
    evaluate_together(evaluator, low)
    done = []
    together = evaluate_together(evaluator, high, progress=lambda step, steps: done.append(step))
    assert done == [5, 6, 7, 8] * 3
    single = make()
    for outcome, request in zip(together, high, strict=True):
        assert_alike(outcome, single(request))


def test_different_fidelities_are_not_mixed(make):
    asked = [*requests(PLANS)[:2], Evaluate(PLANS[2], Fidelity(3), 0)]
    evaluator = make()
    for outcome, request in zip(evaluate_together(evaluator, asked), asked, strict=True):
        assert_alike(outcome, evaluator(request))


def test_bf16_works_together(make):
    outcomes = evaluate_together(make(arithmetic=Arithmetic("bf16", "eager")), requests(PLANS))
    assert all(outcome.done for outcome in outcomes)


def test_a_stack_that_fails_is_evaluated_one_by_one_and_said(make, monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("too large")

    notes: list[str] = []
    evaluator = make(note=notes.append)
    monkeypatch.setattr(stack_evaluator, "train_together", fail)
    outcomes = evaluate_together(evaluator, requests(PLANS))
    assert all(outcome.done for outcome in outcomes)
    assert notes == ["3 plans are evaluated one by one: OutOfMemoryError: too large"]
    monkeypatch.setitem(stack_evaluator.SWEET_SPOT, "cpu", 10_000)
    assert capacity(evaluator) == 1
    evaluate_together(evaluator, requests(PLANS, steps=2))
    assert len(notes) == 1


def test_ctrl_c_is_not_swallowed_and_the_backbone_is_whole(make):
    def interrupt(step, steps):
        raise KeyboardInterrupt

    evaluator = make()
    with pytest.raises(KeyboardInterrupt):
        evaluate_together(evaluator, requests(PLANS), progress=interrupt)
    evaluator.check_backbone()
    assert evaluator(requests(PLANS)[0]).done


@pytest.mark.parametrize(("limit", "changes", "plans"), [
    (10_000, {}, 16),
    (0, {}, 1),
    (10_000, {"backbone_dropout": "paper"}, 1),
    (10_000, {"backbone_dropout": "above"}, 1),
    (10_000, {"shortcuts": False}, 1),
])  # fmt: skip
def test_as_many_plans_are_stacked_as_the_device_likes(make, monkeypatch, limit, changes, plans):
    monkeypatch.setitem(stack_evaluator.SWEET_SPOT, "cpu", limit)
    assert capacity(make(**changes)) == plans


def test_the_tokens_of_a_step_bound_a_stack(make, monkeypatch):
    evaluator = make()
    tokens = 16 * evaluator.data.train.lengths.mean()
    monkeypatch.setitem(stack_evaluator.SWEET_SPOT, "cpu", int(3.5 * tokens))
    assert capacity(evaluator) == 3


def test_plans_of_a_stack_start_from_the_initial_states_that_they_name(make):
    evaluator = make()
    states: dict[int, dict[str, torch.Tensor]] = {}
    trained = requests(PLANS, steps=4)
    evaluate_together(evaluator, trained, after=lambda n, model: states.update({n: tuner.trainable_state(model)}))
    named = [replace(r, initial=evaluator.initial.save(states[n])) for n, r in enumerate(trained[:2])]
    asked = [*named, trained[2]]
    for ours, theirs in zip(evaluate_together(evaluator, asked), map(evaluator, asked), strict=True):
        assert_alike(ours, theirs)
