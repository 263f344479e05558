"""The contract of a stack: K plans in one pass are K single runs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapted import batch_of, logits
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import PlanError, TunerError
from peftscout.ops import OPS, OpSettings
from peftscout.plan import Plan
from peftscout.stacked import Stack, stacked
from peftscout.tuner.stacked_op import StackedOp
from stacks import (
    FAMILIES,
    Run,
    assert_near,
    assert_same,
    assert_states_near,
    batches_of,
    built,
    gradients,
    inputs,
    losses,
    mixture,
    mixtures,
    prepared,
    stir,
    together,
    train_step,
    trained_alone,
)
from tiny_models import tiny_model

EXACT = 1e-5


@pytest.fixture(params=[True, False, None], ids=["padded", "one_by_one", "as_it_decides"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool | None:
    """Every op in one product, every op slot by slot, or what is cheaper."""
    if request.param is not None:
        monkeypatch.setattr(StackedOp, "is_worth_padding", lambda *_: request.param)
    return request.param


# -- K single runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_single_runs(family: str, way: bool | None) -> None:
    _require_equal(family, seed=0, slots=3, same=False)


@settings(max_examples=8)
@given(family=st.sampled_from(FAMILIES), seed=st.integers(1, 10**6), slots=st.integers(1, 5), same=st.booleans())
def test_whatever_the_plans_are(family: str, seed: int, slots: int, same: bool) -> None:
    _require_equal(family, seed, slots, same)


def _require_equal(family: str, seed: int, slots: int, same: bool) -> None:
    model, model_map = prepared(family)
    plans, batches = mixtures(model_map, slots, seed), [own[0] for own in batches_of(slots, same=same)]
    expected = []
    for k, (plan, batch) in enumerate(zip(plans, batches, strict=True)):
        with built(model, plan, model_map, seed=k) as adapted:
            stir(tuner.parameters_by_op(adapted), seed=k)
            out = adapted(**inputs(batch)).logits
            losses([out], [batch])[0].backward()
            expected.append((out.detach(), gradients(tuner.parameters_by_op(adapted))))
    with stacked(model, plans, model_map, seeds=range(slots)) as stack:
        for k in stack.live:
            stir(stack.parameters_by_op(k), seed=k)
        stack.train()
        found = stack.split(stack.model(**inputs(together(batches))).logits)
        torch.stack(losses(found, batches)).sum().backward()
        for k, (out, grads) in enumerate(expected):
            assert_near([found[k]], [out], EXACT)
            assert_near(gradients(stack.parameters_by_op(k)), grads, EXACT)


@pytest.mark.parametrize("op", OPS)
def test_every_op_alone_at_sizes_of_its_own(op: str, way: bool | None) -> None:
    model, model_map = prepared("bert")
    plans = [Plan.of({k: v for k, v in mixture(model_map, n, 0.7).sizes.items() if k[1] == op}) for n in range(3)]
    assert all(map(len, plans))
    batch = batch_of()
    with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
        for k in stack.live:
            stir(stack.parameters_by_op(k), seed=k)
        found = stack.split(logits(stack.model, together([batch] * 3)))
        for k in stack.live:
            with stack.alone(k) as model_alone:
                assert_near([found[k]], [logits(model_alone, batch)], EXACT)


@pytest.mark.parametrize("same", [True, False], ids=["same_data", "own_data"])
@pytest.mark.parametrize("family", FAMILIES)
def test_five_steps_with_rates_and_clippings_of_their_own_are_those_of_single_runs(family: str, same: bool) -> None:
    model, model_map = prepared(family)
    model.double()  # where a gradient vanishes, AdamW makes steps of the noise; in double there is none to speak of
    plans, batches = mixtures(model_map, 3), batches_of(3, steps=5, same=same)
    seeds = (5, 6, 7)
    alone = [trained_alone(model, plans[k], model_map, seeds[k], k, batches[k]) for k in range(3)]
    with stacked(model, plans, model_map, seeds=seeds) as stack:
        runs = {k: Run.of(stack.parameters_by_op(k), k) for k in stack.live}
        for n in range(5):
            train_step(stack, runs, {k: batches[k][n] for k in stack.live})
        for k, (state, own_losses) in enumerate(alone):
            assert_states_near(stack.trainable_state(k), state, EXACT)
            assert runs[k].losses == pytest.approx(own_losses, rel=EXACT)
            assert own_losses[-1] != own_losses[0]


def test_equal_plans_and_seeds_on_equal_data_stay_equal() -> None:
    model, model_map = prepared("bert")
    model.double()
    plan, batches = mixture(model_map, 3), batches_of(1, steps=3)[0]
    with stacked(model, [plan] * 3, model_map, seeds=(4, 4, 4)) as stack:
        runs = {k: Run([p for group in stack.parameters_by_op(k).values() for p in group], 1e-2, 1.0) for k in range(3)}
        for batch in batches:
            train_step(stack, runs, dict.fromkeys(range(3), batch))
        assert_states_near(stack.trainable_state(1), stack.trainable_state(0), EXACT)
        assert_states_near(stack.trainable_state(2), stack.trainable_state(0), EXACT)


def test_multiple_choice_keeps_the_choices_of_a_row_together() -> None:
    model = tiny_model("bert", head="multiple_choice")
    model_map = ModelMap.from_model(model)
    plans = mixtures(model_map, 2)
    batch = {name: tensor.view(3, 2, -1) for name, tensor in batch_of(rows=6).items()}
    with stacked(model, plans, model_map, seeds=(0, 1)) as stack:
        stack.check(batch)
        found = stack.split(logits(stack.model, together([batch, batch])))
        assert found[0].shape == (3, 2)


def test_a_head_alone_is_a_plan_too() -> None:
    model, model_map = prepared("bert")
    with stacked(model, [Plan(), Plan()], model_map, seeds=(0, 1)) as stack:
        stack.check(batch_of())
        stack.refill(0, Plan(), seed=2)
        stack.check(batch_of())
        assert list(stack.parameters_by_op(0)) == ["head"]
    assert not hasattr(model, "peft_config")


def test_settings_of_the_ops_hold_in_every_slot() -> None:
    model, model_map = prepared("bert")
    plans, ours = mixtures(model_map, 2), OpSettings(lora_scale=3.0, parallel_scale=4.0)
    with stacked(model, plans, model_map, seeds=(0, 1), settings=ours) as stack:
        stir(stack.parameters_by_op(1))
        found = stack.split(logits(stack.model, together([batch_of()] * 2)))[1]
        state = stack.trainable_state(1)
    adapted = tuner.build(model, plans[1], model_map, settings=ours)
    tuner.load_trainable_state(adapted, state)
    assert_near([found], [logits(adapted, batch_of())], EXACT)


# -- a stack of one ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stack_of_one_is_the_built_model_bit_for_bit(family: str, bf16: bool) -> None:
    model, model_map = prepared(family)
    plan, batch = mixture(model_map, 0, 0.6), batches_of(1)[0][0]

    def passed(adapted: nn.Module, by_op: dict[str, list[nn.Parameter]]) -> list[torch.Tensor]:
        stir(by_op)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = adapted(**inputs(batch)).logits
        losses([out.float()], [batch])[0].backward()
        return [out.detach(), *gradients(by_op)]

    with built(model, plan, model_map, seed=1) as adapted:
        expected = passed(adapted, tuner.parameters_by_op(adapted))
    with stacked(model, [plan], model_map, seeds=(1,)) as stack:
        found = passed(stack.model, stack.parameters_by_op(0))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_under_autocast_slots_differ_from_single_runs_by_rounding_only(family: str, way: bool | None) -> None:
    model, model_map = prepared(family)
    plans, batches = mixtures(model_map, 3), [own[0] for own in batches_of(3)]
    with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
        for k in stack.live:
            stir(stack.parameters_by_op(k), seed=k)
        stack.train()
        with torch.autocast("cpu", torch.bfloat16):
            found = stack.split(stack.model(**inputs(together(batches))).logits)
        torch.stack(losses([out.float() for out in found], batches)).sum().backward()
        for k in stack.live:
            grads = gradients(stack.parameters_by_op(k))
            assert {grad.dtype for grad in grads} == {torch.float32}
            for group in stack.parameters_by_op(k).values():
                for parameter in group:
                    parameter.grad = None
            with stack.alone(k) as alone, torch.autocast("cpu", torch.bfloat16):
                out = alone(**inputs(batches[k])).logits
                losses([out.float()], [batches[k]])[0].backward()
            assert_near([found[k].detach()], [out.detach()], 0.05)
            assert_near(grads, gradients(stack.parameters_by_op(k)), 0.1)


# -- slots do not touch each other ------------------------------------------------------------------------------------


def test_a_slot_that_diverges_does_not_touch_the_others(way: bool | None) -> None:
    model, model_map = prepared("bert")
    plans, batches = mixtures(model_map, 3), dict(enumerate(own[0] for own in batches_of(3)))

    def states(ill: bool) -> list[dict[str, torch.Tensor]]:
        with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
            runs = {k: Run.of(stack.parameters_by_op(k), k) for k in stack.live}
            if ill:
                with torch.no_grad():
                    for parameter in runs[1].parameters:
                        parameter.fill_(torch.nan)
            for _ in range(2):
                train_step(stack, runs, batches)
            return [stack.trainable_state(k) for k in stack.live]

    healthy, ill = states(False), states(True)
    assert_same(ill[0], healthy[0])
    assert_same(ill[2], healthy[2])
    assert all(tensor.isnan().any() for tensor in ill[1].values())


def test_a_refilled_slot_is_a_fresh_run_and_the_others_go_on_as_they_would() -> None:
    model, model_map = prepared("bert")
    model.double()
    plans, fresh = mixtures(model_map, 3), mixture(model_map, 77, 0.5)
    batches = batches_of(3, steps=5)
    alone = {k: trained_alone(model, plans[k], model_map, k, k, batches[k])[0] for k in (0, 2)}
    alone[1] = trained_alone(model, fresh, model_map, 9, 1, batches[1][2:])[0]
    with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
        runs = {k: Run.of(stack.parameters_by_op(k), k) for k in stack.live}
        for n in range(2):
            train_step(stack, runs, {k: batches[k][n] for k in stack.live})
        before = {k: (stack.trainable_state(k), stack.parameters_by_op(k)) for k in (0, 2)}
        stack.refill(1, fresh, seed=9)
        for k, (state, parameters) in before.items():
            assert_same(stack.trainable_state(k), state)
            for op, group in stack.parameters_by_op(k).items():
                assert [id(p) for p in group] == [id(p) for p in parameters[op]]
                assert all(p.requires_grad for p in group)
        runs[1] = Run.of(stack.parameters_by_op(1), 1)
        for n in range(2, 5):
            train_step(stack, runs, {k: batches[k][n] for k in stack.live})
        assert stack.plans == [plans[0], fresh, plans[2]]
        for k, state in alone.items():
            assert_states_near(stack.trainable_state(k), state, EXACT)


def test_a_retired_slot_takes_no_rows_and_can_be_filled_again() -> None:
    model, model_map = prepared("bert")
    plans, batch = mixtures(model_map, 3), batch_of()
    with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
        for k in range(3):
            stir(stack.parameters_by_op(k), seed=k)
        whole = stack.split(logits(stack.model, together([batch] * 3)))
        kept = stack.trainable_state(1)
        stack.retire(1)
        assert (stack.live, len(stack)) == ((0, 2), 2)
        left = stack.split(logits(stack.model, together([batch] * 2)))
        assert_near(left, [whole[0], whole[2]], EXACT)
        assert_same(stack.trainable_state(1), kept)
        stack.refill(1, plans[0], seed=3)
        assert stack.live == (0, 1, 2)
        stack.check(batch)


def test_when_all_slots_are_retired_a_pass_is_refused_and_a_refill_is_not() -> None:
    model, model_map = prepared("bert")
    with stacked(model, mixtures(model_map, 1), model_map, seeds=(0,)) as stack:
        stack.retire(0)
        with pytest.raises(TunerError, match="no slot of this stack is at work"):
            logits(stack.model, batch_of())
        stack.refill(0, mixture(model_map, 8), seed=1)
        stack.check(batch_of())


# -- random streams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_the_dropout_masks_of_a_head_are_those_of_the_single_run(family: str) -> None:
    model, model_map = prepared(family, classifier_dropout=0.4)
    model.double()
    plans, batches, seeds = mixtures(model_map, 3), batches_of(3, steps=4), (3, 3, 8)
    alone = [trained_alone(model, plans[k], model_map, seeds[k], k, batches[k]) for k in range(3)]
    unlike = trained_alone(model, plans[2], model_map, 9, 2, batches[2])[1]
    with stacked(model, plans, model_map, seeds=seeds) as stack:
        outer = torch.get_rng_state()
        runs = {k: Run.of(stack.parameters_by_op(k), k) for k in stack.live}
        for n in range(4):
            with torch.no_grad():  # evaluations draw nothing
                stack.model.eval()
                stack.model(**inputs(together([batches[k][n] for k in stack.live])))
            train_step(stack, runs, {k: batches[k][n] for k in stack.live})
        assert torch.equal(torch.get_rng_state(), outer)
        for k, (_, own_losses) in enumerate(alone):
            assert runs[k].losses == pytest.approx(own_losses, rel=EXACT)
    assert unlike != pytest.approx(alone[2][1], rel=1e-3)


def test_a_refilled_slot_has_a_fresh_stream_and_the_others_keep_theirs() -> None:
    model, model_map = prepared("bert")
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(5, 6)) as stack:
        for k in (0, 1):
            with stack.rng(k):
                torch.rand(3)
        stack.refill(1, mixture(model_map, 4), seed=7)
        with stack.rng(0):
            first = torch.rand(2)
        with stack.rng(1):
            second = torch.rand(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        assert torch.equal(torch.rand(5)[3:], first)
        torch.manual_seed(7)
        assert torch.equal(torch.rand(2), second)


def test_the_state_of_a_stream_can_be_read_and_set() -> None:
    model, model_map = prepared("bert")
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(5, 6)) as stack:
        with stack.rng(0):
            kept = torch.get_rng_state()
            first = torch.rand(4)
        with stack.rng(1):
            torch.set_rng_state(kept)
        with stack.rng(1):
            assert torch.equal(torch.rand(4), first)


def test_a_backbone_in_training_mode_is_refused() -> None:
    model, model_map = prepared("bert", hidden_dropout_prob=0.1)
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        stack.model.train()
        with pytest.raises(TunerError, match=r"one mask for all slots; call Stack.train\(\)"):
            stack.model(**together([batch_of()] * 2))
        stack.train()
        stack.model(**together([batch_of()] * 2))


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_slot_starts_from_what_the_builder_gives_its_plan_alone(family: str) -> None:
    model, model_map = prepared(family)
    plans, seeds = mixtures(model_map, 3), (4, 4, 9)
    expected = []
    for plan, seed in zip(plans, seeds, strict=True):
        with built(model, plan, model_map, seed) as adapted:
            expected.append(tuner.trainable_state(adapted))
    with stacked(model, plans, model_map, seeds=seeds) as stack:
        for k in stack.live:
            assert_same(stack.trainable_state(k), expected[k])
        stack.refill(1, plans[0], seed=4)
        assert_same(stack.trainable_state(1), expected[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_of_a_slot_goes_into_a_model_built_for_its_plan_and_back(family: str) -> None:
    model, model_map = prepared(family)
    plans, batch = mixtures(model_map, 2), batch_of()
    with stacked(model, plans, model_map, seeds=(0, 1)) as stack:
        stir(stack.parameters_by_op(1))
        state = stack.trainable_state(1)
        found = stack.split(logits(stack.model, together([batch, batch])))[1]
    with built(model, plans[1], model_map, seed=5) as adapted:
        tuner.load_trainable_state(adapted, state)
        assert_near([logits(adapted, batch)], [found], EXACT)
        stir(tuner.parameters_by_op(adapted), seed=2)
        other, expected = tuner.trainable_state(adapted), logits(adapted, batch)
    with stacked(model, plans, model_map, seeds=(0, 1)) as stack:
        untouched = stack.trainable_state(0)
        stack.load_trainable_state(1, other)
        assert_same(stack.trainable_state(1), other)
        assert_same(stack.trainable_state(0), untouched)
        assert_near([stack.split(logits(stack.model, together([batch, batch])))[1]], [expected], EXACT)


def test_a_state_of_another_plan_is_refused_and_nothing_is_written() -> None:
    model, model_map = prepared("bert")
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        before = stack.trainable_state(1)
        with pytest.raises(TunerError, match="different plans"):
            stack.load_trainable_state(1, stack.trainable_state(0))
        assert_same(stack.trainable_state(1), before)


# -- alone ------------------------------------------------------------------------------------------------------------


def test_alone_a_slot_is_the_model_that_is_built_for_its_plan() -> None:
    model, model_map = prepared("bert")
    plans, batch = mixtures(model_map, 3), batch_of()
    with built(model, plans[1], model_map, seed=1) as adapted:
        stir(tuner.parameters_by_op(adapted))
        expected = logits(adapted, batch)
    with stacked(model, plans, model_map, seeds=(0, 1, 2)) as stack:
        stir(stack.parameters_by_op(1))
        with stack.alone(1) as alone:
            tuner.check_built(alone, plans[1])
            tuner.check_gradients(alone, plans[1], batch)
            assert torch.equal(logits(alone, batch), expected)
            assert not any(p.requires_grad for k in (0, 2) for g in stack.parameters_by_op(k).values() for p in g)
        assert all(p.requires_grad for k in stack.live for g in stack.parameters_by_op(k).values() for p in g)
        stack.check(batch)


def test_the_gradients_of_others_wait_while_a_slot_is_alone() -> None:
    model, model_map = prepared("bert")
    batches = [own[0] for own in batches_of(2)]
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        stack.train()
        out = stack.split(stack.model(**inputs(together(batches))).logits)
        torch.stack(losses(out, batches)).sum().backward()
        before = gradients(stack.parameters_by_op(0))
        with stack.alone(1) as alone:
            losses([alone(**inputs(batches[1])).logits], batches[1:])[0].backward()
        assert all(torch.equal(*pair) for pair in zip(gradients(stack.parameters_by_op(0)), before, strict=True))


# -- the check --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_leaves_everything_as_it_was(family: str) -> None:
    model, model_map = prepared(family, **({"classifier_dropout": 0.5} if family == "bert" else {}))
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        stack.train()
        states, modes = (
            [stack.trainable_state(k) for k in (0, 1)],
            {n: m.training for n, m in stack.model.named_modules()},
        )
        outer = torch.get_rng_state()
        stack.check(batches_of(1)[0][0])
        stack.check(batch_of(), slots=(1,))
        assert torch.equal(torch.get_rng_state(), outer)
        for k in (0, 1):
            assert_same(stack.trainable_state(k), states[k])
            assert not gradients(stack.parameters_by_op(k))
            with stack.rng(k):
                assert torch.get_rng_state().equal(_seeded(k))
        assert {n: m.training for n, m in stack.model.named_modules()} == modes


def _seeded(seed: int) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.get_rng_state()


def test_a_model_that_mixes_the_rows_of_a_batch_is_found_out() -> None:
    model, model_map = prepared("bert")
    block = model.get_submodule(model_map.blocks["layers"][0])
    hook = block.register_forward_hook(lambda _, args, out: out.roll(1, 0))
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        with pytest.raises(TunerError, match=r"slot 0: its outputs in the stack differ .* mixes the rows"):
            stack.check(batch_of())
        hook.remove()
        stack.check(batch_of())


# -- the backbone, and what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*FAMILIES, "roberta"])
def test_afterwards_the_backbone_is_what_it_was_bit_for_bit(family: str) -> None:
    model, model_map = prepared(family, **({"classifier_dropout": 0.5} if family != "gpt2" else {}))
    before, outputs, modules = tuner.fingerprint(model), logits(model, batch_of()), dict(model.named_modules())
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    with stacked(model, mixtures(model_map, 3), model_map, seeds=(0, 1, 2)) as stack:
        runs = {k: Run.of(stack.parameters_by_op(k), k) for k in stack.live}
        train_step(stack, runs, dict(enumerate(own[0] for own in batches_of(3))))
        stack.refill(2, mixture(model_map, 5), seed=5)
        stack.retire(0)
    assert tuner.fingerprint(model) == before
    assert torch.equal(logits(model, batch_of()), outputs)
    assert dict(model.named_modules()) == modules
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("failing", [0, 1])
def test_the_backbone_is_given_back_when_a_plan_cannot_be_built(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, model_map = prepared("bert")
    before, plans, check = tuner.fingerprint(model), mixtures(model_map, 2), tuner.check_built

    def fails(adapted: nn.Module, plan: Plan) -> None:
        if plan == plans[failing]:
            raise TunerError("not as asked")
        check(adapted, plan)

    monkeypatch.setattr(tuner, "check_built", fails)
    with pytest.raises(TunerError, match="not as asked"), stacked(model, plans, model_map, seeds=(0, 1)):
        pass
    assert tuner.fingerprint(model) == before
    assert not hasattr(model, "peft_config")
    assert "forward" not in vars(model.dropout)


def test_the_backbone_is_given_back_when_the_work_fails() -> None:
    model, model_map = prepared("bert")
    before = tuner.fingerprint(model)
    with pytest.raises(KeyboardInterrupt), stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)):
        raise KeyboardInterrupt
    assert tuner.fingerprint(model) == before
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("cannot", ["does_not_fit", "is_not_built"])
def test_a_refill_that_cannot_be_leaves_the_stack_as_it_was(cannot: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, model_map = prepared("bert")
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        before, adapters = _snapshot(stack), set(stack.model.peft_config)
        if cannot == "is_not_built":
            monkeypatch.setattr(tuner, "check_built", _refuse)
            with pytest.raises(TunerError, match="refused"):
                stack.refill(1, mixture(model_map, 9), seed=3)
        else:
            with pytest.raises(PlanError, match="largest"):
                stack.refill(1, Plan.of({("layers.0.attention.q", "lora"): 1000}), seed=3)
        assert set(stack.model.peft_config) == adapters
        assert stack.live == (0, 1)
        for now, then in zip(_snapshot(stack), before, strict=True):
            assert_same(now, then)
        stack.check(batch_of())


def _snapshot(stack: Stack) -> list[dict[str, torch.Tensor]]:
    return [stack.trainable_state(k) for k in (0, 1)]


def _refuse(adapted: nn.Module, plan: Plan) -> None:
    raise TunerError("refused")


def test_what_makes_no_stack_is_refused_before_the_model_is_touched() -> None:
    model, model_map = prepared("bert")
    for plans, seeds in (([], ()), ([Plan()], (0, 1))):
        with pytest.raises(TunerError, match="each with a seed"), stacked(model, plans, model_map, seeds=seeds):
            pass
    too_large = Plan.of({("layers.0.attention.q", "lora"): 1000})
    with pytest.raises(PlanError, match="largest"), stacked(model, [Plan(), too_large], model_map, seeds=(0, 1)):
        pass
    assert not hasattr(model, "peft_config")


def test_slots_and_rows_that_do_not_exist_are_refused() -> None:
    model, model_map = prepared("bert")
    with stacked(model, mixtures(model_map, 2), model_map, seeds=(0, 1)) as stack:
        for ask in (stack.retire, stack.rng, stack.parameters_by_op, stack.trainable_state):
            with pytest.raises(TunerError, match=r"slot 2: this stack has the slots 0 to 1"):
                ask(2)
        with pytest.raises(TunerError, match="slot -1"), stack.alone(-1):
            pass
        with pytest.raises(TunerError, match="a batch of 3 rows cannot be shared by 2 slots alike"):
            logits(stack.model, batch_of(rows=3))
