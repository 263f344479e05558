"""The supernet in training: what strategies are told is right, and a search that was cut off goes on bit for bit."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from peftscout import tuner
from peftscout.backbone import load_backbone
from peftscout.errors import StudyError, SupernetError, SupernetMemoryError
from peftscout.gates import Gates, Modules, WeightTraining
from peftscout.plan import Budget
from peftscout.space import Choice, Space, load_space
from peftscout.strategies.bipeft import BipeftSearch
from peftscout.strategies.bipeft_options import BipeftOptions
from peftscout.strategies.one_shot import run
from peftscout.strategies.s3delta import S3DeltaOptions, S3DeltaSearch
from peftscout.supernet import Supernet
from peftscout.tasks import encode, load_task
from peftscout.training.arithmetic import Arithmetic
from peftscout.training.evaluator import EncodedTask, Evaluator
from peftscout.training.kept_search import KeptSearch
from peftscout.training.one_shot import SupernetInTraining, one_shot_factory
from peftscout.training.settings import TrainingSettings
from peftscout.training.split_rows import RowsInHalves, paired_order
from tiny_task import save_tiny_model, write_task

RATES = dict.fromkeys(
    ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix", "head"), 1e-2
)
TRAINING = WeightTraining(steps=40, learning_rate=None, weight_decay=0.0, clip=2.0, seed=3, saliency=True)


def evaluator_of(folder: Path, name: str = "bert", kind: str = "classification") -> Evaluator:
    model = save_tiny_model(folder / "model", name)
    task = load_task(write_task(folder / ("copa" if kind == "multiple_choice" else "data"), kind=kind, train=150))
    backbone = load_backbone(str(model), task)
    train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
    return Evaluator(backbone, EncodedTask(task, train, search), TrainingSettings(RATES, batch_size=8))


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory) -> Evaluator:
    return evaluator_of(tmp_path_factory.mktemp("task"))


def lora_space(evaluator: Evaluator, sizes=(1, 2)) -> Space:
    sites = evaluator.backbone.model_map.sites
    choices = [Choice.untied(s.id, "lora", sizes) for s in sites.values() if s.role in ("q", "v")]
    return Space("lora on q, v", tuple(choices), sites)


def open_gates(modules: Modules, on: float = 1.0) -> Gates:
    return Gates(np.full(len(modules), on), modules.one_hot(modules.levels - 1))


@pytest.fixture
def one_shot(evaluator, tmp_path):
    with one_shot_factory(evaluator, lora_space(evaluator), tmp_path)(TRAINING) as opened:
        yield opened


def warm(one_shot: SupernetInTraining, steps: int = 4) -> Gates:
    """Move the weights off their start, where half of all gradients vanish."""
    gates = open_gates(one_shot.modules, 0.7)
    for _ in range(steps):
        one_shot.step(gates, "train", gate_gradients=False, update_weights=True)
    return gates


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_supernet_that_does_not_fit_into_memory_says_what_to_do_and_leaves_the_backbone_as_it_was(
    evaluator, tmp_path, error
):
    def search():
        with one_shot_factory(evaluator, lora_space(evaluator), tmp_path)(TRAINING) as opened:
            warm(opened, 1)
            raise error

    with pytest.raises(SupernetMemoryError, match="'lora on q, v' does not fit into memory: take a smaller space"):
        search()
    evaluator.check_backbone()


# -- data -----------------------------------------------------------------------------------------------------------


def rows_of(evaluator: Evaluator, seed: int = 0) -> RowsInHalves:
    return RowsInHalves(evaluator.data.train, 8, seed, evaluator.make_batch, evaluator.device)


def test_the_halves_are_disjoint_and_cover_the_training_rows_and_nothing_else(evaluator):
    rows = rows_of(evaluator)
    ids = [tuple(f["input_ids"]) for half in rows.halves.values() for f in half.features]
    assert sorted(ids) == sorted(tuple(f["input_ids"]) for f in evaluator.data.train.features)
    assert abs(len(rows.halves["train"]) - len(rows.halves["validation"])) <= 1


def test_skipping_is_drawing_that_often(evaluator):
    drawn, skipped = rows_of(evaluator), rows_of(evaluator)
    for _ in range(13):
        drawn.draw("train")
    drawn.draw("validation")
    skipped.skip(drawn.drawn)
    for split in ("train", "validation"):
        assert torch.equal(drawn.draw(split)["input_ids"], skipped.draw(split)["input_ids"])


def test_peeking_does_not_draw(evaluator):
    rows = rows_of(evaluator)
    seen = rows.peek("train")["input_ids"]
    assert rows.drawn["train"] == 0
    assert torch.equal(rows.draw("train")["input_ids"], seen)
    assert not torch.equal(rows.draw("train")["input_ids"], seen)


# -- what strategies are told ---------------------------------------------------------------------------------------


def test_training_the_weights_brings_the_loss_down(one_shot):
    losses = [
        one_shot.step(open_gates(one_shot.modules), "train", gate_gradients=False, update_weights=True).loss
        for _ in range(40)
    ]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_a_step_on_the_gates_leaves_the_weights_alone(one_shot):
    gates = warm(one_shot)
    before = one_shot._weights.state()
    step = one_shot.step(gates, "validation", gate_gradients=True, update_weights=False)
    after = one_shot._weights.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert step.on.any()
    assert step.size.any()
    assert step.saliency.all()


def test_saliency_is_the_sum_of_weight_times_gradient_and_agreement_its_mean_cosine(one_shot):
    gates = warm(one_shot)
    weights = one_shot._weights

    def products() -> list[list[torch.Tensor]]:
        return [[p.detach() * p.grad for p in weights.net.parameters_of(m)] for m in range(len(one_shot.modules))]

    one_shot.step(gates, "validation", gate_gradients=True, update_weights=False)
    validation = products()
    step = one_shot.step(gates, "train", gate_gradients=False, update_weights=False)
    for m, (mine, other) in enumerate(zip(products(), validation, strict=True)):
        assert step.saliency[m] == pytest.approx(sum(float(t.abs().sum()) for t in mine), rel=1e-5)
        cosines = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in zip(mine, other, strict=True)]
        assert step.agreement[m] == pytest.approx(np.mean(cosines), rel=1e-4)


def test_validation_gradients_are_clean_of_those_of_the_training_step(one_shot):
    """The release lets them add up, which makes train and validation agree more than they do."""
    gates = warm(one_shot)
    drawn = dict(one_shot._rows.drawn)
    one_shot.step(gates, "train", gate_gradients=False, update_weights=False)
    after_train = one_shot.step(gates, "validation", gate_gradients=True, update_weights=False)
    one_shot._rows.skip(drawn)
    alone = one_shot.step(gates, "validation", gate_gradients=True, update_weights=False)
    assert np.array_equal(after_train.saliency, alone.saliency)


def test_closed_modules_have_no_saliency_and_no_gate_gradient_unless_it_is_asked_for(one_shot):
    gates = warm(one_shot)
    closed = Gates(gates.on * (np.arange(len(gates.on)) > 0), gates.size)
    skipped = one_shot.step(closed, "train", gate_gradients=False, update_weights=False)
    assert skipped.saliency[0] == 0
    assert skipped.saliency[1:].all()
    assert not skipped.on.any()
    traced = one_shot.step(closed, "validation", gate_gradients=True, update_weights=False)
    assert traced.saliency[0] == 0
    assert traced.on[0] != 0


def test_one_pass_trains_the_weights_and_says_what_the_gates_are_worth(one_shot):
    """The gate gradients are those of a pass that leaves the weights alone, and so are the weights after it."""
    gates = warm(one_shot)
    drawn, before = dict(one_shot._rows.drawn), one_shot._weights.snapshot()
    both = one_shot.step(gates, "train", gate_gradients=True, update_weights=True)
    trained = one_shot._weights.state()
    one_shot._weights.restore(before)
    one_shot._rows.skip(drawn)
    seen = one_shot.step(gates, "train", gate_gradients=True, update_weights=False)
    assert np.array_equal(both.on, seen.on)
    assert np.array_equal(both.size, seen.size)
    one_shot._rows.skip(drawn)
    one_shot.step(gates, "train", gate_gradients=False, update_weights=True)
    alone = one_shot._weights.state()
    assert all(np.allclose(trained[name], alone[name], atol=1e-6) for name in trained)


def test_a_step_leaves_the_weights_of_closed_modules_alone_also_when_their_gate_gradients_are_wanted(one_shot):
    gates = warm(one_shot)
    closed = Gates(gates.on * (np.arange(len(gates.on)) > 0), gates.size)
    parameters = one_shot._weights.net.parameters_of
    before = [[p.detach().clone() for p in parameters(m)] for m in (0, 1)]
    step = one_shot.step(closed, "train", gate_gradients=True, update_weights=True)
    assert step.on[0] != 0
    assert all(torch.equal(p, old) for p, old in zip(parameters(0), before[0], strict=True))
    assert not any(torch.equal(p, old) for p, old in zip(parameters(1), before[1], strict=True))


def test_closed_modules_that_are_not_probed_are_not_computed(one_shot):
    gates = warm(one_shot)
    closed = gates.on * (np.arange(len(gates.on)) > 1)
    drawn = dict(one_shot._rows.drawn)

    def seen(probed):
        one_shot._rows.skip(drawn)
        one_shot._products = {"train": {}, "validation": {}}
        gated = Gates(closed, gates.size, probed)
        return one_shot.step(gated, "validation", gate_gradients=True, update_weights=False)

    everything, one = seen(None), seen(np.arange(len(closed)) == 1)
    assert everything.on[0] != 0
    assert one.on[0] == 0
    assert one.loss == everything.loss
    assert one.on[1:] == pytest.approx(everything.on[1:], rel=1e-4)


def test_the_held_out_loss_is_that_of_the_gates_on_validation_rows_and_always_the_same(one_shot):
    gates = warm(one_shot)
    before, drawn, passes = one_shot._weights.state(), dict(one_shot._rows.drawn), one_shot.passes
    loss = one_shot.held_out_loss(gates, 10**6)
    rows = one_shot._rows.halves["validation"]
    one_shot._weights.net.set_gates(gates)
    model = one_shot._weights.net.model.eval()
    with torch.no_grad():
        batch = one_shot._evaluator.make_batch(rows.features, rows.references)
        expected = model(**batch).loss.item()
    assert loss == pytest.approx(expected, rel=1e-4)
    assert one_shot.held_out_loss(gates, 10**6) == loss
    assert one_shot.held_out_loss(gates, 5) != loss
    assert one_shot._rows.drawn == drawn
    batches = math.ceil(len(rows) / one_shot._evaluator.settings.batch_size)
    assert one_shot.passes == pytest.approx(passes + (2 * batches + 1) / 3)  # the last look is at one batch
    after = one_shot._weights.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert one_shot.step(gates, "train", gate_gradients=False, update_weights=True).loss > 0


def test_a_held_out_loss_that_is_not_finite_is_the_worst_there_is(one_shot):
    gates = warm(one_shot, 1)
    with torch.no_grad():
        one_shot._weights.head[0].fill_(float("nan"))
    assert one_shot.held_out_loss(gates, 8) == np.inf


@pytest.mark.parametrize(("share", "rows"), [(0.5, 60), (0.2, 24), (0.0001, 1), (0.9999, 119)])
def test_so_many_of_the_rows_are_held_out_and_never_none_or_all(evaluator, share, rows):
    drawn = RowsInHalves(evaluator.data.train, 8, 0, evaluator.make_batch, evaluator.device, held_out=share)
    assert len(drawn.halves["validation"]) == rows
    assert len(drawn.halves["train"]) == len(evaluator.data.train) - rows


def test_the_learning_rate_falls_from_its_factor_to_its_end(evaluator, tmp_path):
    training = replace(TRAINING, steps=4, lr_scale=3.0, last_rate=0.5)
    with one_shot_factory(evaluator, lora_space(evaluator), tmp_path)(training) as one_shot:
        rates = []
        for _ in range(6):
            rates.append({group["lr"] for group in one_shot._weights._optimiser.param_groups})
            one_shot.step(open_gates(one_shot.modules), "train", gate_gradients=False, update_weights=True)
    assert [rate for (rate,) in rates] == pytest.approx([3e-2 * f for f in (1, 0.875, 0.75, 0.625, 0.5, 0.5)])


def test_the_second_order_gradient_is_the_slope_of_the_loss_after_a_step(evaluator, tmp_path):
    """By finite differences in double precision through a plain gradient step, which AdamW's is replaced by."""
    evaluator = copy.deepcopy(evaluator)
    one_shot = SupernetInTraining(evaluator, lora_space(evaluator), TRAINING, KeptSearch(tmp_path))
    gates = warm(one_shot)
    weights = one_shot._weights
    rate = 0.5
    weights._optimiser = torch.optim.SGD(weights.parameters, lr=rate)
    weights._base_rates, weights._clip = [rate], 1e9
    weights._steps = 10**9
    train, validation = one_shot._rows.peek("train"), one_shot._rows.peek("validation")

    def loss_after_a_step(on: np.ndarray) -> float:
        weights.net.set_gates(Gates(on, gates.size))
        one_shot._backward(train, stream=True)
        with torch.no_grad():
            for p in weights.parameters:
                p -= rate * p.grad
            loss = weights.net.model(**validation).loss.item()
        weights.restore(before)
        return loss

    weights.net.model.double()  # after which snapshots are doubles too
    before = weights.snapshot()
    first = one_shot.unrolled(gates)
    direction = first.on / np.linalg.norm(first.on)
    slope = (loss_after_a_step(gates.on + 1e-4 * direction) - loss_after_a_step(gates.on - 1e-4 * direction)) / 2e-4
    assert float(first.on @ direction) == pytest.approx(slope, rel=2e-2)


def test_an_unrolled_step_leaves_weights_optimiser_and_training_data_where_they_were(one_shot):
    gates = warm(one_shot)
    before, drawn, passes = one_shot._weights.state(), dict(one_shot._rows.drawn), one_shot.passes
    step = one_shot.unrolled(gates)
    after = one_shot._weights.state()
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert one_shot._rows.drawn == {**drawn, "validation": drawn["validation"] + 1}
    assert one_shot.passes == passes + 4
    assert step.on.any()


# -- both halves in one pass ----------------------------------------------------------------------------------------


def halves_of(one_shot: SupernetInTraining, monkeypatch) -> tuple[dict, dict]:
    """Make one batch of both halves, let the next passes see it, and return its two parts."""
    batch, first = one_shot._rows.draw_both()
    monkeypatch.setattr(one_shot._rows, "draw_both", lambda: (batch, first))
    parts = tuple({k: t[part] for k, t in batch.items()} for part in (slice(None, first), slice(first, None)))
    monkeypatch.setattr(one_shot._rows, "draw", lambda split: parts[("train", "validation").index(split)])
    return parts


def gradients_of(one_shot: SupernetInTraining) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in one_shot._weights.parameters]


@pytest.mark.parametrize("space", ["bipeft-s1", "bipeft-s2", "lora"])
def test_one_pass_over_both_halves_says_what_two_separate_passes_say(evaluator, tmp_path, space, monkeypatch):
    space = load_space(space, evaluator.backbone.model_map.sites)
    with one_shot_factory(evaluator, space, tmp_path)(replace(TRAINING, saliency=True)) as one_shot:
        modules, rng = one_shot.modules, np.random.default_rng(0)
        warm(one_shot)
        halves_of(one_shot, monkeypatch)

        def gates() -> Gates:
            on = rng.uniform(0.2, 1.0, len(modules)) * (rng.random(len(modules)) < 0.6)
            return Gates(on, modules.one_hot(rng.integers(0, modules.levels)))

        for_weights, for_gates = gates(), gates()
        seen = one_shot.step(for_gates, "validation", gate_gradients=True, update_weights=False)
        trained = one_shot.step(for_weights, "train", gate_gradients=False, update_weights=False)
        expected, agreement = gradients_of(one_shot), trained.agreement
        monkeypatch.setattr(one_shot, "_update", lambda: None)
        one_shot._products["validation"] = {}
        together = one_shot.split(for_weights, for_gates)
        for found, wanted in zip(together, (trained, seen), strict=True):
            for name in ("loss", "on", "size", "saliency"):
                scale = max(1.0, float(np.abs(getattr(wanted, name)).max()))
                assert np.abs(getattr(found, name) - getattr(wanted, name)).max() <= 1e-5 * scale, name
        assert together[0].agreement == pytest.approx(agreement, abs=1e-3)
        assert seen.on.any()
        for found, wanted in zip(gradients_of(one_shot), expected, strict=True):
            assert (found is None) == (wanted is None)
            if found is not None:
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "regression"), ("bert", "multiple_choice"), ("llama", "classification"), ("gpt2", "regression")],
)
def test_so_it_is_for_other_kinds_of_tasks_and_of_models(tmp_path, name, kind, monkeypatch):
    evaluator = evaluator_of(tmp_path, name, kind)
    space = load_space("bipeft-s1", evaluator.backbone.model_map.sites)
    with one_shot_factory(evaluator, space, tmp_path / "search")(TRAINING) as one_shot:
        modules, rng = one_shot.modules, np.random.default_rng(0)
        warm(one_shot)
        halves_of(one_shot, monkeypatch)
        mine, theirs = (
            Gates(rng.uniform(0.2, 1.0, len(modules)), modules.one_hot(rng.integers(0, modules.levels)))
            for _ in range(2)
        )
        seen = one_shot.step(theirs, "validation", gate_gradients=True, update_weights=False)
        trained = one_shot.step(mine, "train", gate_gradients=False, update_weights=False)
        expected = gradients_of(one_shot)
        monkeypatch.setattr(one_shot, "_update", lambda: None)
        found = one_shot.split(mine, theirs)
        assert [step.loss for step in found] == pytest.approx([trained.loss, seen.loss], rel=1e-5)
        assert found[1].on == pytest.approx(seen.on, rel=1e-3, abs=1e-5 * np.abs(seen.on).max())
        rounding = 1e-5 * max(float(wanted.abs().max()) for wanted in expected)
        for gradient, wanted in zip(gradients_of(one_shot), expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=rounding)


def test_a_model_that_mixes_the_rows_of_a_batch_is_found_out_before_the_first_step(one_shot):
    gates = warm(one_shot)
    model, model_map = one_shot._weights.net.model, one_shot._evaluator.backbone.model_map
    block = model.get_submodule(model_map.blocks["layers"][0])
    hook = block.register_forward_hook(lambda _, args, out: out.roll(1, 0))
    steps = one_shot.steps
    with pytest.raises(SupernetError, match=r"mixes the rows of a batch .*set strategy_options.estimator=bilevel"):
        one_shot.split(gates, gates)
    assert one_shot.steps == steps
    hook.remove()
    one_shot.split(gates, gates)
    assert one_shot.steps == steps + 1


def test_validation_rows_never_reach_the_weights_nor_training_rows_the_gates(one_shot, monkeypatch):
    gates = warm(one_shot)
    halves_of(one_shot, monkeypatch)
    batch, first = one_shot._rows.draw_both()
    monkeypatch.setattr(one_shot, "_update", lambda: None)
    before = one_shot.split(gates, gates), gradients_of(one_shot)
    batch["labels"][first:] = 1 - batch["labels"][first:]
    other_validation = one_shot.split(gates, gates), gradients_of(one_shot)
    assert all(torch.equal(a, b) for a, b in zip(before[1], other_validation[1], strict=True))
    assert not np.array_equal(before[0][1].on, other_validation[0][1].on)
    batch["labels"][:first] = 1 - batch["labels"][:first]
    other_train = one_shot.split(gates, gates), gradients_of(one_shot)
    assert np.array_equal(other_train[0][1].on, other_validation[0][1].on)
    assert not all(torch.equal(a, b) for a, b in zip(other_validation[1], other_train[1], strict=True))


def test_a_pass_over_both_halves_is_one_pass_and_one_step(one_shot):
    gates = warm(one_shot, steps=2)
    before = [p.detach().clone() for p in one_shot._weights.parameters]
    train, validation = one_shot.split(gates, gates)
    assert (one_shot.passes, one_shot.steps) == (3, 3)
    assert any(not torch.equal(a, b) for a, b in zip(before, one_shot._weights.parameters, strict=True))
    assert not train.on.any()
    assert validation.saliency.all()


def test_a_batch_of_both_halves_has_training_rows_first_and_pads_little(evaluator):
    rows, drawn = rows_of(evaluator), []
    of_half = {split: {tuple(f["input_ids"]) for f in half.features} for split, half in rows.halves.items()}
    widths, longest = 0, 0
    for _ in range(20):
        batch, first = rows.draw_both()
        assert (first, len(batch["labels"])) == (6, 8)
        ids = [tuple(i[m.bool()].tolist()) for i, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
        assert set(ids[:first]) <= of_half["train"]
        assert set(ids[first:]) <= of_half["validation"]
        widths, longest = widths + batch["input_ids"].numel(), longest + 8 * max(map(len, of_half["train"]))
        drawn.append(ids)
    assert widths <= longest + 20 * 8 * 8  # padded to a multiple of 8
    again = rows_of(evaluator)
    again.skip({"train": 0, "validation": 0, "both": 13})
    assert torch.equal(again.draw_both()[0]["input_ids"], _replayed(evaluator, 13))


def _replayed(evaluator, skipped: int) -> torch.Tensor:
    rows = rows_of(evaluator)
    for _ in range(skipped):
        rows.draw_both()
    return rows.draw_both()[0]["input_ids"]


def test_every_row_of_both_halves_comes_up_about_equally_often():
    lengths = [np.arange(30) % 7, np.arange(9) % 3]
    seen = [np.zeros(30), np.zeros(9)]
    for pair in islice(paired_order(lengths, (4, 2), seed=0), 60):
        for count, chosen in zip(seen, pair, strict=True):
            np.add.at(count, chosen, 1)
    assert [int(count.sum()) for count in seen] == [240, 120]
    assert all(count.max() - count.min() <= 2 for count in seen)


def test_a_loss_that_is_not_finite_is_an_error_with_a_remedy(one_shot):
    warm(one_shot)
    with torch.no_grad():
        one_shot._weights.parameters[0].fill_(float("nan"))
    with pytest.raises(StudyError, match="learning_rate"):
        one_shot.step(open_gates(one_shot.modules), "train", gate_gradients=False, update_weights=True)


def test_in_bfloat16_it_trains_and_the_gates_get_their_gradients(evaluator, tmp_path):
    half = copy.deepcopy(evaluator)
    half.device.arithmetic = Arithmetic("bf16", "eager")
    attention = half.backbone.model.config._attn_implementation
    with one_shot_factory(half, lora_space(half), tmp_path)(TRAINING) as one_shot:
        gates = warm(one_shot, steps=10)
        step = one_shot.step(gates, "validation", gate_gradients=True, update_weights=False)
        assert np.isfinite(step.loss)
        assert step.on.all()
        assert one_shot._weights.parameters[0].dtype == torch.float32
        assert half.backbone.model.config._attn_implementation == "eager"
        assert one_shot._pass(one_shot._rows.peek("train"))[0].dtype == torch.float32  # the head is exact
    assert half.backbone.model.config._attn_implementation == attention


def test_two_halves_of_one_batch_size_cost_one_pass_each(one_shot):
    warm(one_shot, steps=3)
    assert (one_shot.passes, one_shot.steps) == (3, 3)
    one_shot.step(open_gates(one_shot.modules), "validation", gate_gradients=True, update_weights=False)
    assert (one_shot.passes, one_shot.steps) == (4, 3)


def test_the_learning_rate_falls_linearly_to_zero(one_shot):
    rates = []
    for _ in range(3):
        one_shot.step(open_gates(one_shot.modules), "train", gate_gradients=False, update_weights=True)
        rates.append(one_shot._weights._optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 * (1 - n / TRAINING.steps) for n in (1, 2, 3)])


# -- keeping and resuming -------------------------------------------------------------------------------------------


def searches(evaluator: Evaluator, space: Space):
    modules, budget = Modules(space), Budget(300, "300").parameters
    options = BipeftOptions(steps=24, keep_every=5, warmup=0.1, threshold=0.1, triggers=8, estimator="bilevel")
    yield lambda: BipeftSearch(modules, budget, 24, 1, options)
    yield lambda: S3DeltaSearch(modules, budget, 9, 1, S3DeltaOptions(log_every=2))
    yield lambda: BipeftSearch(modules, budget, 24, 1, replace(options, estimator="split"))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("strategy", [0, 1, 2], ids=["bipeft", "s3delta", "bipeft-split"])
@pytest.mark.parametrize("kill_at", [3, 7, 16])
def test_a_search_that_was_cut_off_goes_on_bit_for_bit(evaluator, tmp_path, strategy, kill_at, monkeypatch):
    space = lora_space(evaluator)
    fresh = list(searches(evaluator, space))[strategy]

    def searched(folder: Path) -> None:
        with one_shot_factory(evaluator, space, folder)(TRAINING) as one_shot:
            run(fresh(), one_shot, keep_every=5)

    searched(tmp_path / "whole")
    prepare, calls = SupernetInTraining._prepare, []

    def dying(self, stream):
        calls.append(stream)
        if len(calls) == kill_at:
            raise KilledError
        prepare(self, stream)

    monkeypatch.setattr(SupernetInTraining, "_prepare", dying)
    with pytest.raises(KilledError):
        searched(tmp_path / "cut")
    searched(tmp_path / "cut")
    whole, cut = KeptSearch(tmp_path / "whole").load(), KeptSearch(tmp_path / "cut").load()
    assert whole is not None
    assert cut is not None
    for _, facts, _ in (whole, cut):
        assert facts.pop("seconds") > 0
    assert whole[1:] == cut[1:]
    assert set(whole[0]) == set(cut[0])
    assert all(np.array_equal(whole[0][name], cut[0][name]) for name in whole[0])


def test_a_finished_search_is_read_without_building_anything(evaluator, tmp_path, monkeypatch):
    space = lora_space(evaluator)
    fresh = next(searches(evaluator, space))
    with one_shot_factory(evaluator, space, tmp_path)(TRAINING) as one_shot:
        first = fresh()
        run(first, one_shot, keep_every=5)
    monkeypatch.setattr(Supernet, "build", None)
    with one_shot_factory(evaluator, space, tmp_path)(TRAINING) as one_shot:
        again = fresh()
        run(again, one_shot, keep_every=5)
    assert again.select() == first.select()


@pytest.mark.parametrize("name", ["bipeft-s1", "bipeft-s2", "s3delta-m"])
def test_the_published_spaces_train_and_leave_the_backbone_as_it_was(evaluator, tmp_path, name):
    space = load_space(name, evaluator.backbone.model_map.sites)
    space = space.restrict(lambda c: "layers.0" in c.site)
    before = tuner.fingerprint(evaluator.backbone.model)
    modules = Modules(space)
    with one_shot_factory(evaluator, space, tmp_path)(TRAINING) as one_shot:
        search = BipeftSearch(modules, 400, 4, 0, BipeftOptions())
        run(search, one_shot, keep_every=2)
    assert tuner.fingerprint(evaluator.backbone.model) == before
    assert 0 < modules.plan(search.select()).cost(space.sites) <= 400


def test_replacing_settings_of_the_evaluator_does_not_change_the_one_given(evaluator):
    rates = dict(evaluator.settings.learning_rates)
    training = replace(TRAINING, learning_rate=3e-4)
    with one_shot_factory(evaluator, lora_space(evaluator), Path("unused"))(training) as one_shot:
        assert one_shot._weights._base_rates == [3e-4, *[1e-2] * (len(one_shot._weights._base_rates) - 1)]
    assert evaluator.settings.learning_rates == rates


def test_a_slice_that_is_kept_is_what_an_evaluation_starts_from(evaluator, one_shot):
    """It predicts, before its first step, what the supernet predicts with the gates of the plan."""
    warm(one_shot)
    modules = one_shot.modules
    plan = modules.plan({0: 1, 3: 0})
    name = one_shot.keep_slice(plan)
    one_shot._weights.net.set_gates(Gates.of_plan(plan, modules))
    batch = evaluator.check_batch()
    with torch.no_grad():
        expected = one_shot._weights.net.model.eval()(**batch).logits
    one_shot.close()
    with evaluator.adapted(plan, seed=0) as model:
        tuner.load_trainable_state(model, evaluator.initial.load(name))
        with torch.no_grad():
            assert torch.allclose(model.eval()(**batch).logits, expected, atol=1e-6)


def test_seconds_of_a_search_are_those_until_it_was_kept_last(evaluator, tmp_path):
    for _ in range(2):
        with one_shot_factory(evaluator, lora_space(evaluator), tmp_path)(TRAINING) as one_shot:
            one_shot.resume()
            before = one_shot.seconds
            warm(one_shot, 1)
            assert one_shot.seconds == before
            one_shot.keep({}, {})
            assert one_shot.seconds > before
    _, facts, _ = KeptSearch(tmp_path).load()
    assert facts["seconds"] == one_shot.seconds
