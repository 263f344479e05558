"""The evaluator on tiny models: whatever happens comes back as an outcome, and the backbone stays as it was."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peftscout import tuner
from peftscout.backbone import load_backbone
from peftscout.errors import TunerError
from peftscout.outcome import Evaluate, Fidelity, State
from peftscout.plan import Plan
from peftscout.tasks import encode, load_task
from peftscout.training import shortcuts
from peftscout.training.arithmetic import FP32, Arithmetic
from peftscout.training.evaluator import EncodedTask, Evaluator, save_adapter
from peftscout.training.one_row_check import Reading, find_one_row
from peftscout.training.settings import TrainingSettings
from tiny_task import save_tiny_model, write_task

RATES = dict.fromkeys(
    ("lora", "bias", "scale", "norm", "serial", "parallel", "lowrank_adapter", "prefix", "head"), 1e-2
)
LORA = Plan.of({("layers.0.attention.q", "lora"): 2, ("layers.1.ffn.down", "lora"): 3})
MIXED = Plan.of(
    {
        ("layers.0.attention.q", "lora"): 2,
        ("layers.0.attention", "prefix"): 2,
        ("layers.0.ffn", "serial"): 2,
        ("layers.1.ffn", "parallel"): 2,
        ("layers.1.ffn", "lowrank_adapter"): 1,
        ("layers.1.attention_norm", "norm"): 1,
        ("layers.1.attention.v", "bias"): 1,
        ("layers.1.attention.o", "scale"): 1,
    }
)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    model = save_tiny_model(tmp_path_factory.mktemp("model"))
    task = load_task(write_task(tmp_path_factory.mktemp("data"), train=200, validation=40))

    def make(folder: Path | None = None, note=print, **changes) -> Evaluator:
        backbone = load_backbone(str(model), task)
        train, search = (encode(split, backbone.tokenizer, max_length=32) for split in (task.train, task.search))
        settings = replace(TrainingSettings(RATES, batch_size=16), **changes)
        return Evaluator(backbone, EncodedTask(task, train, search), settings, folder=folder, note=note)

    return make


@pytest.fixture(scope="module")
def evaluator(make) -> Evaluator:
    return make()


def test_training_learns_the_task(evaluator):
    outcome = evaluator(Evaluate(MIXED, Fidelity(60), 0))
    assert outcome.state is State.DONE
    assert outcome.score > 0.8
    assert outcome.metrics["accuracy"] == outcome.score
    assert outcome.steps == 60
    assert [step for step, _, _ in outcome.curve] == [30, 60]
    assert outcome.curve[1][1] < outcome.curve[0][1]
    assert outcome.peak_memory > 0
    assert outcome.cost == MIXED.cost(evaluator.backbone.model_map.sites)


def test_the_same_request_gives_the_same_score_whatever_ran_before(evaluator, make):
    request = Evaluate(LORA, Fidelity(8), 3)
    first = evaluator(request)
    evaluator(Evaluate(MIXED, Fidelity(3), 1))
    torch.rand(7)
    assert evaluator(request).curve == first.curve == make()(request).curve


def test_another_seed_gives_another_run(evaluator):
    curves = [evaluator(Evaluate(LORA, Fidelity(6), seed)).curve for seed in (0, 1)]
    assert curves[0] != curves[1]


def test_the_backbone_comes_out_bit_identical(evaluator):
    before = copy.deepcopy(evaluator.backbone.model.state_dict())
    for plan in (LORA, MIXED):
        evaluator(Evaluate(plan, Fidelity(3), 0))
    after = evaluator.backbone.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in evaluator.backbone.model.parameters())
    assert not hasattr(evaluator.backbone.model, "peft_config")


@pytest.mark.parametrize(("error", "state"), [
    (torch.OutOfMemoryError("CUDA out of memory"), State.OUT_OF_MEMORY),
    (MemoryError(), State.OUT_OF_MEMORY),
    (RuntimeError("shapes"), State.FAILED),
    (OSError("disk full"), State.FAILED),
])  # fmt: skip
def test_whatever_goes_wrong_is_an_outcome_and_the_next_trial_works(evaluator, error, state):
    def explode(model):
        raise error

    outcome = evaluator(Evaluate(LORA, Fidelity(2), 0), after=explode)
    assert outcome.state is state
    assert outcome.score is None
    assert outcome.message
    assert evaluator(Evaluate(LORA, Fidelity(2), 0)).done


def test_a_loss_that_is_not_finite_is_diverged(evaluator):
    outcome = evaluator(Evaluate(LORA, Fidelity(20), 0, lr_scale=1e30))
    assert outcome.state is State.DIVERGED
    assert "NaN" in outcome.message or "nan" in outcome.message or "inf" in outcome.message
    assert evaluator(Evaluate(LORA, Fidelity(2), 0)).done


def test_ctrl_c_is_not_swallowed_and_the_backbone_is_whole(evaluator):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluator(Evaluate(LORA, Fidelity(2), 0), progress=interrupt)
    assert evaluator(Evaluate(LORA, Fidelity(2), 0)).done


def test_a_place_that_no_gradient_reaches_is_infeasible_and_named(evaluator, monkeypatch):
    from peftscout.tuner import attention_functions

    monkeypatch.setattr(attention_functions.PeftscoutLayer, "attend_to_prefix", lambda self, queries, output: output)
    outcome = evaluator(Evaluate(MIXED, Fidelity(2), 0))
    assert outcome.state is State.INFEASIBLE
    assert "layers.0.attention: prefix" in outcome.message


def test_the_saved_adapter_gives_the_predictions_that_were_scored(evaluator, tmp_path):
    kept = {}

    def after(model):
        kept["predictions"] = evaluator.predict(model, evaluator.data.search)
        save_adapter(model, tmp_path / "adapter")

    evaluator(Evaluate(MIXED, Fidelity(10), 0), after=after)
    loaded = PeftModel.from_pretrained(copy.deepcopy(evaluator.backbone.model), tmp_path / "adapter")
    assert (evaluator.predict(loaded, evaluator.data.search) == kept["predictions"]).all()
    assert {p.suffix for p in (tmp_path / "adapter").iterdir()} <= {".json", ".safetensors", ".md"}


def test_an_adapter_folder_appears_whole_or_not_at_all(evaluator, tmp_path, monkeypatch):
    def after(model):
        monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        save_adapter(model, tmp_path / "adapter")

    assert evaluator(Evaluate(LORA, Fidelity(1), 0), after=after).state is State.FAILED
    assert not (tmp_path / "adapter").exists()


def test_a_fraction_of_the_rows_is_the_same_fraction_every_time(evaluator):
    rows = evaluator.rows(0.25)
    assert len(rows) == round(0.25 * len(evaluator.data.train))
    assert [r["input_ids"] for r in rows.features] == [r["input_ids"] for r in evaluator.rows(0.25).features]


def test_the_state_that_scored_best_is_kept_and_not_the_last(make):
    evaluator = make(evaluations=4)
    scores = []

    def after(model):
        predictions = evaluator.predict(model, evaluator.data.search)
        scores.append(float((predictions == evaluator.data.search.references).mean()))

    outcome = evaluator(Evaluate(LORA, Fidelity(12), 1, lr_scale=30.0), after=after)
    assert outcome.score == max(score for _, _, score in outcome.curve) == pytest.approx(scores[0])


def test_bf16_and_fp32_can_follow_one_another_in_one_process(make):
    bf16 = Arithmetic("bf16", "eager")
    evaluators = [make(arithmetic=a) for a in (FP32, bf16, FP32)]
    outcomes = [evaluator(Evaluate(MIXED, Fidelity(5), 0)) for evaluator in evaluators]
    assert all(outcome.done for outcome in outcomes)
    assert outcomes[0].curve == outcomes[2].curve != outcomes[1].curve
    assert outcomes[1].curve[-1][1] == pytest.approx(outcomes[0].curve[-1][1], rel=0.05)
    assert evaluators[1].backbone.model.config._attn_implementation == "sdpa"


def test_predictions_for_the_user_are_computed_in_fp32_whatever_training_used(make):
    request = Evaluate(LORA, Fidelity(3), 0)
    logits = {}
    for arithmetic in (FP32, Arithmetic("bf16", "eager")):
        evaluator = make(arithmetic=arithmetic)
        dtypes = []

        def after(model, evaluator=evaluator, dtypes=dtypes):
            q = model.get_base_model().bert.encoder.layer[0].attention.self.query
            q.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
            evaluator.predict(model, evaluator.data.search)

        evaluator(request, after=after)
        logits[arithmetic] = set(dtypes)
    assert set(map(frozenset, logits.values())) == {frozenset({torch.float32})}


def test_heads_stay_in_fp32_under_bf16(make):
    evaluator = make(arithmetic=Arithmetic("bf16", "eager"))
    with evaluator.adapted(LORA, 0) as model, evaluator.device.autocast():
        batch = evaluator.check_batch()
        assert model(**batch).logits.dtype == torch.float32
        head = model.get_base_model().classifier
        assert "forward" in vars(head)
    assert "forward" not in vars(head)


def test_tokens_are_counted_with_and_without_padding(evaluator):
    outcome = evaluator(Evaluate(LORA, Fidelity(4), 0))
    search = evaluator.data.search
    assert outcome.real_tokens > 2 * search.lengths.sum()
    assert outcome.real_tokens <= outcome.tokens < 3 * outcome.real_tokens


LADDER = (4, 8, 16)


def on_rung(steps: int, seed: int = 0) -> Evaluate:
    return Evaluate(MIXED, Fidelity(steps, rungs=LADDER), seed)


def test_a_run_that_was_paused_at_every_rung_ends_as_the_run_that_was_not(make, tmp_path):
    whole = make()(on_rung(16))
    paused = make(folder=tmp_path)
    rungs = [paused(on_rung(steps)) for steps in LADDER]
    assert [outcome.steps for outcome in rungs] == list(LADDER)
    assert rungs[-1].curve == whole.curve
    assert rungs[-1].metrics == whole.metrics
    assert rungs[0].curve == whole.curve[:1]
    assert (rungs[-1].passes, rungs[-1].tokens) == (whole.passes, whole.tokens)
    assert list((tmp_path / "paused").iterdir()) == []


def test_a_resumed_run_takes_only_the_steps_of_its_increment(make, tmp_path):
    evaluator = make(folder=tmp_path)
    evaluator(on_rung(4))
    done = []
    evaluator(on_rung(8), progress=lambda step, steps: done.append(step))
    assert done == [5, 6, 7, 8]


@pytest.mark.parametrize("harm", ["truncate", "garbage", "one bit", "of another request"])
def test_a_damaged_or_foreign_pause_only_costs_time(make, tmp_path, harm):
    evaluator = make(folder=tmp_path)
    evaluator(on_rung(4))
    (file,) = (tmp_path / "paused").iterdir()
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif harm == "garbage":
        file.write_bytes(b"garbage")
    elif harm == "one bit":
        kept = load_file(file)
        with safe_open(file, framework="pt") as opened:
            facts = opened.metadata()
        for tensor in kept.values():
            if tensor.is_floating_point():
                tensor.view(-1).view(torch.uint8)[-2] ^= 64  # of every tensor, as not all of them are read again
        save_file(kept, file, facts)
    else:
        evaluator(on_rung(4, seed=1))
        (other,) = set(file.parent.iterdir()) - {file}
        other.replace(file)
    assert evaluator(on_rung(8)).curve == make()(on_rung(8)).curve


def test_a_folder_that_cannot_be_written_only_costs_the_pause(make, tmp_path):
    (tmp_path / "file").write_text("in the way")
    evaluator = make(folder=tmp_path / "file")
    assert evaluator(on_rung(4)).done
    assert evaluator(on_rung(8)).steps == 8


def test_the_checksum_tells_any_change_of_the_backbone(evaluator):
    model = evaluator.backbone.model
    before = tuner.checksum(model)
    assert tuner.checksum(copy.deepcopy(model)) == before
    weight = model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        old = weight[1, 2].item()
        weight[1, 2] += 1e-6
        assert tuner.checksum(model) != before
        with pytest.raises(TunerError, match="changed by a trial"):
            evaluator.check_backbone()
        weight[1, 2] = old
    evaluator.check_backbone()


UPPER = Plan.of({("layers.1.attention.q", "lora"): 2, ("layers.1.ffn", "serial"): 2})


@pytest.mark.parametrize("plan", [MIXED, UPPER], ids=["all layers", "upper layer"])
def test_shortcuts_do_not_change_what_is_learnt(make, tmp_path, plan):
    request = Evaluate(plan, Fidelity(12), 0)
    notes = []
    short = make(folder=tmp_path, note=notes.append)(request)
    plain = make(shortcuts=False)(request)
    assert notes == []
    assert [loss for _, loss, _ in short.curve] == pytest.approx([loss for _, loss, _ in plain.curve], rel=1e-5)
    assert short.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    assert short.score == plain.score
    assert (short.tokens, short.real_tokens) == (plain.tokens, plain.real_tokens)


def test_stored_activations_are_shared_by_trials_and_give_the_same_bits(make, tmp_path, monkeypatch):
    evaluator = make(folder=tmp_path)
    first = evaluator(Evaluate(UPPER, Fidelity(6), 0))
    stored = sorted(p.name for p in (tmp_path / "activations").glob("*.safetensors"))
    assert len(stored) == 2
    monkeypatch.setattr(shortcuts, "prefix_activations", None)
    again = make(folder=tmp_path)(Evaluate(UPPER, Fidelity(6), 0))
    assert again.curve == first.curve
    other = Plan.of({("layers.1.ffn.down", "lora"): 1})
    assert evaluator(Evaluate(other, Fidelity(6), 0)).done
    assert sorted(p.name for p in (tmp_path / "activations").glob("*.safetensors")) == stored


@pytest.mark.parametrize("changes", [{"backbone_dropout": "paper"}, {"cache_bytes": 0}, {"shortcuts": False}])
def test_nothing_is_stored_where_that_is_switched_off_or_the_backbone_is_random(make, tmp_path, changes):
    assert make(folder=tmp_path, **changes)(Evaluate(UPPER, Fidelity(2), 0)).done
    assert not (tmp_path / "activations").exists()


def test_a_cache_that_is_too_small_is_said_once_and_costs_nothing_else(make, tmp_path):
    notes = []
    evaluator = make(folder=tmp_path, note=notes.append, cache_bytes=100)
    outcomes = [evaluator(Evaluate(UPPER, Fidelity(2), seed)) for seed in (0, 1)]
    assert all(outcome.done for outcome in outcomes)
    assert all("exceed the cache limit" in note for note in notes)
    assert notes


def test_a_head_that_reads_every_row_is_said_and_trains_all_the_same(make, monkeypatch):
    monkeypatch.setattr(shortcuts, "find_one_row", lambda *args: Reading(None, "the head reads more"))
    notes = []
    evaluator = make(note=notes.append)
    assert evaluator(Evaluate(LORA, Fidelity(2), 0)).done
    assert evaluator(Evaluate(MIXED, Fidelity(2), 0)).done
    assert notes == ["the last block computes every row: the head reads more"]


def test_one_row_is_tested_until_every_kind_of_module_was_in_the_last_block_when_it_held(make, monkeypatch):
    tested = []

    def find(model, model_map, batch):
        tested.append(model)
        return find_one_row(model, model_map, batch)

    monkeypatch.setattr(shortcuts, "find_one_row", find)
    evaluator = make()
    q, down, norm = (f"layers.1.{place}" for place in ("attention.q", "ffn.down", "ffn_norm"))
    plans = [
        {(q, "lora"): 1},
        {(down, "bias"): 1},
        {(q, "lora"): 2, (down, "bias"): 1},
        {(q, "lora"): 1, (norm, "norm"): 1},
    ]
    counts = []
    for plan in plans:
        assert evaluator(Evaluate(Plan.of(plan), Fidelity(2), 0)).done
        counts.append(len(tested))
    assert counts == [1, 2, 2, 3]


def test_one_row_that_held_for_other_modules_says_nothing_of_new_ones(make, monkeypatch):
    held = iter([True, False])

    def find(model, model_map, batch):
        return find_one_row(model, model_map, batch) if next(held) else Reading(None, "this op looks around")

    monkeypatch.setattr(shortcuts, "find_one_row", find)
    notes = []
    evaluator = make(note=notes.append)
    assert evaluator(Evaluate(UPPER, Fidelity(2), 0)).done
    both = Plan.of({("layers.1.attention.q", "lora"): 2, ("layers.1.ffn.down", "bias"): 1})
    for _ in range(2):
        assert evaluator(Evaluate(both, Fidelity(2), 0)).done
    assert notes == ["the last block computes every row: this op looks around"]


def test_modules_for_which_one_row_failed_together_stay_without_it_though_each_alone_holds(make, monkeypatch):
    q, norm = ("layers.1.attention.q", "lora"), ("layers.1.ffn_norm", "norm")
    evaluator = make(note=[].append)
    verdicts = {2: Reading(None, "not together"), 1: Reading("first")}
    monkeypatch.setattr(shortcuts, "find_one_row", lambda model, *_: verdicts[model])
    found = [
        evaluator.shortcuts.position(len(sizes), Plan.of(sizes), {})
        for sizes in ({q: 1, norm: 1}, {q: 1}, {norm: 1}, {q: 1, norm: 1})
    ]
    assert found == [None, "first", "first", None]


def test_a_trial_starts_from_the_initial_state_that_it_names(make, tmp_path):
    evaluator = make(tmp_path)
    states = {}

    def keep(model):
        states["trained"] = tuner.trainable_state(model)

    first = evaluator(Evaluate(LORA, Fidelity(12), 0), after=keep)
    name = evaluator.initial.save(states["trained"])
    fresh, warm = (evaluator(Evaluate(LORA, Fidelity(2), 1, initial=initial)) for initial in ("", name))
    assert {first.state, fresh.state, warm.state} == {State.DONE}
    assert warm.curve[0][1] < fresh.curve[0][1]


def test_a_trial_without_its_initial_state_fails_and_says_so(make, tmp_path):
    outcome = make(tmp_path)(Evaluate(LORA, Fidelity(2), 0, initial="0123456789abcdef"))
    assert outcome.state is State.FAILED
    assert "initial state 0123456789abcdef: missing or damaged" in outcome.message


def test_an_initial_state_of_another_plan_is_refused(make, tmp_path):
    evaluator = make(tmp_path)
    other = Plan.of({("layers.0.attention.q", "lora"): 1})
    with evaluator.adapted(other, seed=0) as model:
        name = evaluator.initial.save(tuner.trainable_state(model))
    outcome = evaluator(Evaluate(LORA, Fidelity(2), 0, initial=name))
    assert outcome.state is State.INFEASIBLE
    assert "of different plans" in outcome.message


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_a_step_in_micro_batches_is_the_step_of_the_whole_batch(make, parts):
    """Half the rows in a pass, twice the passes in a step: the same training, up to rounding."""
    evaluator, request = make(), Evaluate(MIXED, Fidelity(6), 0)
    states = []

    def keep(model) -> None:
        states.append({name: tensor.clone() for name, tensor in tuner.trainable_state(model).items()})

    whole = evaluator(request, after=keep)
    with evaluator.in_micro_batches(parts):
        assert evaluator.settings.eval_batch_size == 128 // parts
        divided = evaluator(request, after=keep)
    assert evaluator.settings.micro_batches == 1
    assert (divided.state, divided.steps, divided.passes) == (whole.state, whole.steps, whole.passes)
    assert divided.curve[-1][1] == pytest.approx(whole.curve[-1][1], rel=1e-4)
    for name, tensor in states[0].items():
        assert torch.allclose(states[1][name], tensor, atol=2e-4), name
