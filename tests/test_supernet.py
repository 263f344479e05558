"""The contract of the supernet: with the hard gates of a plan it is the model that is built for the plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapted import batch_of, labelled, logits, stir
from fake_sites import fake_sites
from op_cases import SETTINGS, SIZED, generic, site_for, tensors_for
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.cost import SIZELESS, largest_size, ops_at
from peftscout.errors import SpaceError
from peftscout.gates import Gates, Modules
from peftscout.ops import OPS, Gate, apply
from peftscout.plan import Plan
from peftscout.space import Choice, Space, load_space, presets
from peftscout.supernet import Supernet, supernet
from tiny_models import tiny_model

FAMILIES = ("bert", "t5", "llama", "gpt2", "qwen3")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def everything(model_map: ModelMap, ops: tuple[str, ...] = tuple(OPS)) -> Space:
    """Every op at every place, three sizes each where it has any."""
    choices = []
    for site in model_map.sites.values():
        for op in ops_at(site):
            if op in ops:
                limit = largest_size(site, op)
                sizes = [1] if op in SIZELESS else sorted({min(s, limit) for s in (1, 2, 4)})
                choices.append(Choice.untied(site.id, op, sizes))
    return Space("everything", tuple(choices), model_map.sites)


def a_plan(space: Space, seed: int = 0) -> Plan:
    """About half of the choices, at random sizes."""
    rng = np.random.default_rng(seed)
    return Plan.of({(c.site, c.op): int(rng.choice((0, *c.sizes))) for c in space.choices if rng.random() < 0.7})


def prepared(family: str):
    model = tiny_model(family, head="sequence")
    return model, ModelMap.from_model(model)


# -- weighted units -------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(op=st.sampled_from(SIZED), large=st.integers(1, 8), data=st.data())
def test_weight_one_on_the_first_units_is_the_small_op(op: str, large: int, data: st.DataObject) -> None:
    site, small = site_for(op, 40, 64), data.draw(st.integers(1, large))
    x, y = tensors_for(op, site)
    params = generic(op, site, large)
    gate = Gate(torch.tensor(1.0), (torch.arange(large) < small).float())
    expected = apply(OPS[op], OPS[op].shrink(params, small), x, y, SETTINGS)
    torch.testing.assert_close(apply(OPS[op], params, x, y, SETTINGS, gate), expected, **CLOSE)


@pytest.mark.parametrize("op", OPS)
def test_a_gate_of_zero_changes_nothing_and_still_has_a_gradient(op: str) -> None:
    site = site_for(op)
    x, y = tensors_for(op, site)
    on = torch.tensor(0.0, requires_grad=True)
    result = apply(OPS[op], generic(op, site), x, y, SETTINGS, Gate(on))
    assert torch.equal(result, y)
    result.square().sum().backward()
    assert on.grad is not None
    assert on.grad != 0


@pytest.mark.parametrize("op", ["lora", "serial", "parallel"])
def test_mixed_sizes_in_one_product_are_the_weighted_sum_of_separate_ops(op: str) -> None:
    site, sizes, shares = site_for(op, 40, 64), (1, 3, 5), (0.2, 0.5, 0.3)
    x, y = tensors_for(op, site)
    params = generic(op, site, 5)
    weights = sum(share * (torch.arange(5) < size) for size, share in zip(sizes, shares, strict=True))
    expected = y + 0.7 * sum(
        share * OPS[op].delta(OPS[op].shrink(params, size), x, y, SETTINGS)
        for size, share in zip(sizes, shares, strict=True)
    )
    torch.testing.assert_close(
        apply(OPS[op], params, x, y, SETTINGS, Gate(torch.tensor(0.7), weights)), expected, **CLOSE
    )


@pytest.mark.parametrize("op", SIZED)
def test_the_gradient_of_the_weights_is_that_of_finite_differences(op: str) -> None:
    site = site_for(op, 12, 64)
    x, y = (t.double() for t in tensors_for(op, site))
    params = {name: t.double() for name, t in generic(op, site, 3).items()}
    weights = torch.tensor([1.0, 1.0, 0.0], dtype=torch.double, requires_grad=True)
    on = torch.tensor(0.6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda o, w: apply(OPS[op], params, x, y, SETTINGS, Gate(o, w)), (on, weights))


# -- the contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("op", OPS)
def test_a_slice_computes_what_the_gated_supernet_computes(family: str, op: str) -> None:
    model, model_map = prepared(family)
    space = everything(model_map, (op,))
    _require_equal(model, model_map, space, a_plan(space))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slice_of_all_ops_together_too(family: str) -> None:
    model, model_map = prepared(family)
    space = everything(model_map)
    _require_equal(model, model_map, space, a_plan(space, seed=1))


def _require_equal(model, model_map, space: Space, plan: Plan) -> None:
    assert len(plan)
    batch, before = batch_of(padding=2), logits(model, batch_of(padding=2))
    with supernet(model, space, model_map) as net:
        stir(net.model)
        net.set_gates(Gates.of_plan(plan, net.modules))
        hard = logits(net.model, batch)
        net.trace_gates(Gates.of_plan(plan, net.modules))
        traced = logits(net.model, batch)
        state = net.slice(plan)
    built = tuner.build(model, plan, model_map, seed=5)
    tuner.load_trainable_state(built, state)
    sliced = logits(built, batch)
    tuner.reset(built)
    torch.testing.assert_close(hard, sliced, **CLOSE)
    torch.testing.assert_close(traced, sliced, **CLOSE)
    assert not torch.allclose(sliced, before, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_gates_closed_it_is_the_backbone_with_its_head(family: str) -> None:
    model, model_map = prepared(family)
    space, batch = everything(model_map), batch_of()
    closed = Gates(np.zeros(len(space.choices)), Gates.of_plan(space.dearest(), Modules(space)).size)
    with supernet(model, space, model_map) as net:
        stir(net.model)
        net.set_gates(closed)
        found, head = logits(net.model, batch), net.slice(Plan())
        net.trace_gates(closed)
        traced = logits(net.model, batch)
    bare = tuner.build(model, Plan(), model_map)
    tuner.load_trainable_state(bare, head)
    expected = logits(bare, batch)
    tuner.reset(bare)
    assert torch.equal(found, expected)
    torch.testing.assert_close(traced, expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_afterwards_the_backbone_is_what_it_was_bit_for_bit(family: str) -> None:
    model, model_map = prepared(family)
    before, outputs, modules = tuner.fingerprint(model), logits(model, batch_of()), dict(model.named_modules())
    with supernet(model, everything(model_map), model_map) as net:
        leaves = net.trace_gates(Gates.of_plan(net.modules.space.dearest(), net.modules))
        net.model(**labelled(batch_of())).loss.backward()
        assert leaves.on.grad is not None
    assert tuner.fingerprint(model) == before
    assert torch.equal(logits(model, batch_of()), outputs)
    assert dict(model.named_modules()) == modules
    assert not any(p.grad is not None for p in model.parameters())


def test_the_backbone_is_given_back_when_the_search_fails() -> None:
    model, model_map = prepared("bert")
    before = tuner.fingerprint(model)
    with pytest.raises(KeyboardInterrupt), supernet(model, everything(model_map), model_map):
        raise KeyboardInterrupt
    assert tuner.fingerprint(model) == before
    assert not hasattr(model, "peft_config")


# -- gradients ------------------------------------------------------------------------------------------------------


def test_closed_modules_are_skipped_and_get_no_gradient() -> None:
    model, model_map = prepared("bert")
    space = everything(model_map, ("lora", "bias"))
    plan = a_plan(space)
    with supernet(model, space, model_map) as net:
        stir(net.model)
        net.set_gates(Gates.of_plan(plan, net.modules))
        net.model(**labelled(batch_of())).loss.backward()
        placed = net.modules.levels_of(plan)
        for m in range(len(net.modules)):
            reached = [p.grad is not None for p in net.parameters_of(m)]
            assert reached == [m in placed] * len(reached)


def test_units_beyond_the_size_of_the_gate_get_no_gradient() -> None:
    model, model_map = prepared("bert")
    space = everything(model_map, ("lora",))
    plan = Plan.of({(c.site, c.op): c.sizes[1] for c in space.choices})
    with supernet(model, space, model_map) as net:
        stir(net.model)
        net.set_gates(Gates.of_plan(plan, net.modules))
        net.model(**labelled(batch_of())).loss.backward()
        for m, module in enumerate(net.modules):
            a, b = (p.grad for p in net.parameters_of(m))
            assert a[: module.sizes[1]].any()
            assert not a[module.sizes[1] :].any()
            assert b[:, : module.sizes[1]].any()
            assert not b[:, module.sizes[1] :].any()


def test_the_gradient_of_a_gate_is_the_slope_of_the_loss() -> None:
    model, model_map = prepared("bert")
    space = everything(model_map, ("lora", "serial", "norm", "prefix"))
    batch = labelled(batch_of())
    rng = np.random.default_rng(0)
    with supernet(model.double(), space, model_map) as net:
        stir(net.model.double())
        modules = net.modules
        size = modules.one_hot(rng.integers(0, modules.levels))
        gates = Gates(rng.uniform(0.2, 1.0, len(modules)), size)
        leaves = net.trace_gates(gates)
        net.model(**batch).loss.backward()
        on, _ = leaves.gradients()

        def loss(values: np.ndarray) -> float:
            net.set_gates(Gates(values, size))
            with torch.no_grad():
                return net.model(**batch).loss.item()

        direction = rng.standard_normal(len(modules))
        step = 1e-3
        slope = (loss(gates.on + step * direction) - loss(gates.on - step * direction)) / (2 * step)
        assert slope == pytest.approx(float(on @ direction), rel=1e-3)


@pytest.mark.parametrize("family", [*FAMILIES, "bart", "gpt_neox", "qwen2_moe"])
@pytest.mark.parametrize("op", OPS)
def test_rows_of_one_batch_can_have_gates_of_their_own_and_gradients_that_arrive_apart(family: str, op: str) -> None:
    model, model_map = prepared(family)
    space = everything(model_map, (op,))
    batch = labelled(batch_of(rows=5, padding=2))
    train, validation = ({k: t[rows] for k, t in batch.items()} for rows in (slice(None, 3), slice(3, None)))
    with supernet(model, space, model_map) as net:
        stir(net.model)
        modules, rng = net.modules, np.random.default_rng(0)
        mine, theirs = (
            Gates(rng.uniform(0.3, 1.0, len(modules)), modules.one_hot(rng.integers(0, modules.levels)))
            for _ in range(2)
        )

        def gradients() -> list[torch.Tensor]:
            found = [p.grad.clone() for m in range(len(modules)) for p in net.parameters_of(m)]
            net.model.zero_grad()
            return found

        net.set_gates(mine)
        net.model(**train).loss.backward()
        of_mine = gradients()
        leaves = net.trace_gates(theirs)
        net.model(**validation).loss.backward()
        of_theirs = gradients()
        others = net.trace_rows(mine, theirs, 3, 5, weights=True)
        found = net.model(**{k: t for k, t in batch.items() if k != "labels"}).logits
        losses = [torch.nn.functional.cross_entropy(found[r], batch["labels"][r]) for r in (slice(3), slice(3, 5))]
        sum(losses).backward()
        for wanted, got in zip(leaves, others.gates, strict=True):
            torch.testing.assert_close(got.grad, wanted.grad, **CLOSE)
        copies = [copy.grad for of_module in others.parameters for copy in of_module]
        for wanted, got in zip(of_theirs + of_mine, copies + gradients(), strict=True):
            torch.testing.assert_close(got, wanted, **CLOSE)


# -- modules --------------------------------------------------------------------------------------------------------


def test_the_published_spaces_have_the_published_supernets() -> None:
    sites = fake_sites("encoder_decoder", layers=24, width=1024, ffn=4096, heads=16)
    sites = {
        k: v for k, v in sites.items() if v.role != "cross_attention"
    }  # T5-large has these too; no space uses them
    for name, modules, parameters in (
        ("s3delta-m", 916, 1_881_088),
        ("s3delta-l", 288, 884_736),
        ("bipeft-s1", 916, 9_493_504),
    ):
        space = load_space(name, sites)
        found = Modules(space)
        assert (len(found), found.costs.max(1).sum()) == (modules, parameters), name


def test_tied_choices_are_one_module_with_one_gate() -> None:
    sites = fake_sites()
    tied = tuple(Choice(f"layers.{i}.attention.q", "lora", (1, 2), "shared") for i in range(2))
    modules = Modules(Space("tied", (*tied, Choice.untied("layers.0.attention.v", "lora", (4,))), sites))
    assert [len(m.choices) for m in modules] == [2, 1]
    assert modules.costs.tolist() == [[2 * 64, 2 * 128], [4 * 64, 0]]
    plan = modules.plan({0: 1})
    assert plan == Plan.of({(c.site, c.op): 2 for c in tied})
    assert modules.levels_of(plan) == {0: 1}


def test_a_space_with_switches_is_refused_before_anything_is_built() -> None:
    with pytest.raises(SpaceError, match=r"switch.*bipeft-s1"):
        Modules(load_space("autopeft", fake_sites()))
    model, model_map = prepared("bert")
    with pytest.raises(SpaceError):
        Supernet.build(model, load_space("autopeft", model_map.sites), model_map, settings=None, seed=0)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("name", sorted(set(presets()) - {"autopeft"}))
def test_plans_and_levels_are_inverse_to_each_other_in_every_preset(name: str) -> None:
    sites = fake_sites("decoder")
    space = load_space(name, sites)
    modules = Modules(space)
    rng = np.random.default_rng(0)
    for _ in range(5):
        plan = space.sample(rng)
        levels = modules.levels_of(plan)
        assert modules.plan(levels) == plan
        assert sum(int(modules.costs[m, k]) for m, k in levels.items()) == plan.cost(sites)
