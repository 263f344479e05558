"""R9-R11: over random spaces, plans and models: built as priced, within the budget, trained everywhere, and exported.

Encoders, decoders and encoder-decoders; tied weights (t5, gpt2 with a language-modelling head), grouped queries (llama,
qwen3), Conv1D (gpt2), layers that share one block (albert).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from adapted import batch_of, logits, stir
from figures import record
from peftscout import export_check, tuner
from peftscout.architecture import ModelMap
from peftscout.cost import OPS, SIZELESS
from peftscout.errors import PlanError, SpaceError
from peftscout.export import export_adapter
from peftscout.plan import Budget, Plan
from peftscout.reference import BaseReference
from peftscout.space.presets import parse_space
from thinning import FACTOR
from tiny_models import tiny_model

FAMILIES = ("bert", "roberta", "albert", "t5", "t5_gated", "gpt2", "llama", "qwen3")
HEADS = {"sequence": "AutoModelForSequenceClassification", "lm": ""}
LM_CLASSES = {"t5": "AutoModelForSeq2SeqLM", "t5_gated": "AutoModelForSeq2SeqLM"}
LM_CLASSES |= dict.fromkeys(("gpt2", "llama", "qwen3"), "AutoModelForCausalLM")
PATTERNS = ("*", "*.0.*", "*.1.*", "*.{q,v}", "*.{up,down}", "*.attention*", "*.ffn*", "encoder.*")


@st.composite
def rules(draw: st.DrawFn) -> str:
    """A space as its user writes it: some ops, anywhere, of any sizes, tied and switched in any way."""
    lines = ["rules:"]
    for op in sorted(draw(st.sets(st.sampled_from(OPS), min_size=1, max_size=4))):
        lines.append(f"  - op: {op}")
        lines.append(f'    sites: ["{draw(st.sampled_from(PATTERNS))}"]')
        if op not in SIZELESS:
            sizes = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=3)))
            lines.append(f"    sizes: {sizes}")
            lines.append(f"    size_tie: {draw(st.sampled_from(('site', 'layer', 'all')))}")
        lines.append(f"    switch: {draw(st.sampled_from(('none', 'layer', 'all')))}")
        lines.append("    optional: true")
    return "\n".join(lines)


EVERYTHING = "rules:\n" + "\n".join(
    f'  - op: {op}\n    sites: ["*"]\n    optional: true' + ("" if op in SIZELESS else "\n    sizes: [1, 2]")
    for op in OPS
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a tiny model, saved once."""
    folders: dict[tuple[str, str], Path] = {}

    def folder(name: str, head: str) -> Path:
        if (name, head) not in folders:
            folders[name, head] = tmp_path_factory.mktemp(name)
            tiny_model(name, head=head).save_pretrained(folders[name, head])
        return folders[name, head]

    return folder


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Exports are loaded again from disk, but here: that other processes do it is tested in test_export.py."""

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        try:
            export_check.main(command[-1])
        except Exception as error:
            return subprocess.CompletedProcess(command, 1, "", repr(error))
        return subprocess.CompletedProcess(command, 0, "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", run)
        patch.setattr(export_check, "require_absence_of_peftscout", lambda: None)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=4 * FACTOR)
@given(text=rules(), share=st.floats(0.002, 0.5), seed=st.integers(0, 2**20), writes=st.booleans())
@example(text=EVERYTHING, share=0.5, seed=0, writes=True)
def test_what_is_drawn_is_built_as_priced_trained_everywhere_and_exported(
    saved, tmp_path_factory, name, text, share, seed, writes
):
    head = "lm" if writes and name in LM_CLASSES else "sequence"
    auto_class = LM_CLASSES[name] if head == "lm" else HEADS[head]
    model = tiny_model(name, head=head)
    model_map, rng = ModelMap.from_model(model), np.random.default_rng(seed)
    budget = Budget.parse(max(1, int(share * model_map.total)), model_map.total)
    try:
        space = parse_space(text, model_map.sites)
    except SpaceError:  # the rules apply nowhere, or their ties cannot be kept
        assume(False)
    if space.cheapest().cost(model_map.sites) > budget.parameters:
        with pytest.raises(SpaceError, match=f"costs {space.cheapest().cost(model_map.sites):,} parameters"):
            space.sample_within(budget, rng)
        return
    plan = space.repair(space.sample_within(Budget.parse("100%", model_map.total), rng), budget, rng)

    cost = plan.cost(model_map.sites)
    adapted = tuner.build(model, plan, model_map, seed=seed)
    by_op = tuner.parameters_by_op(adapted)
    built = sum(p.numel() for op, group in by_op.items() if op != "head" for p in group)
    heads = sum(p.numel() for p in by_op.get("head", []))
    assert built == cost <= budget.parameters
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == built + heads

    tuner.check_built(adapted, plan)
    tuner.check_gradients(adapted, plan, labelled(name, head))
    assert without_gradient(adapted, plan, labelled(name, head)) == []

    if head == "sequence" and auto_class:
        kwargs: dict[str, Any] = {"num_labels": 2}
    else:
        kwargs = {}
    out = tmp_path_factory.mktemp("out") / "adapter"
    probe = batch_of(padding=2) | (
        {"decoder_input_ids": batch_of()["input_ids"]} if head == "lm" and "t5" in name else {}
    )
    base = BaseReference(str(saved(name, head)), auto_class, kwargs)
    report = export_adapter(adapted, plan, model_map, out, base=base, probe=probe)
    assert report.cost == cost
    assert report.difference <= 1e-5 * max(1.0, float(logits(adapted, probe).abs().max()))
    record("random plans built, trained and exported", 1)


def labelled(name: str, head: str) -> dict[str, torch.Tensor]:
    batch = batch_of(rows=16)
    labels = batch["input_ids"] if head == "lm" else torch.arange(len(batch["input_ids"])) % 2
    return {**batch, "labels": labels}


def without_gradient(model: Any, plan: Plan, batch: dict[str, torch.Tensor]) -> list[str]:
    """Return the placements, as parameters are named, that a step would not move. Away from the start, where some
    tensors have none because they are multiplied by zero.
    """
    stir(model, scale=0.3).train()
    model(**batch).loss.backward()
    reached: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (found := re.match(r"(.*peftscout_(?:[a-z]+_adapter|[a-z]+))_", name)):
            moves = parameter.grad is not None and bool(parameter.grad.any())
            reached[found[1]] = reached.get(found[1], False) or moves
    model.eval().zero_grad()
    assert len(reached) == len(plan)
    return [place for place, moves in reached.items() if not moves]


def test_a_misspelt_place_is_refused_with_the_nearest_one():
    sites = ModelMap.from_model(tiny_model("bert")).sites
    with pytest.raises(PlanError, match=r"did you mean 'layers\.1\.attention\.q'"):
        Plan.of({("layers.1.atention.q", "lora"): 1}).check(sites)


def test_the_keys_of_an_export_are_anchored_so_that_layer_1_is_not_layer_11(tmp_path):
    model = tiny_model("bert", head="sequence", num_hidden_layers=12)
    model.save_pretrained(tmp_path / "base")
    model_map = ModelMap.from_model(model)
    plan = Plan.of({("layers.1.attention.q", "lora"): 1, ("layers.11.attention.q", "lora"): 3})
    adapted = tuner.build(model, plan, model_map)
    base = BaseReference(str(tmp_path / "base"), HEADS["sequence"], {"num_labels": 2})
    report = export_adapter(adapted, plan, model_map, tmp_path / "out", base=base, probe=batch_of())
    assert report.rung == "lora"
    assert report.cost == plan.cost(model_map.sites)
