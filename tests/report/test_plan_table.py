"""A plan as a table and in words."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fake_sites import Kind, fake_sites
from peftscout.cost import SIZELESS
from peftscout.plan import Budget, Plan, Sites
from peftscout.report.plan_table import describe, plan_lines, plan_table
from peftscout.space import load_space

BERT = fake_sites("encoder", layers=12, width=768, ffn=3072, heads=12)
T5 = fake_sites("encoder_decoder", layers=6, width=64, ffn=128)
LLAMA = fake_sites("decoder", layers=4)


Sizes = dict[tuple[str, str], int]


def _of(op: str, size: int, layers: range | list[int], *columns: str, stack: str = "layers") -> Sizes:
    return {(f"{stack}.{layer}.{column}", op): size for layer in layers for column in columns}


MIXED = Plan.of(
    _of("lora", 2, range(3, 6), "attention.q", "attention.v")
    | _of("bias", 1, range(6), "attention_norm")
    | _of("bias", 1, [4], "attention.q")
)


@st.composite
def drawn_plans(draw: st.DrawFn) -> tuple[Plan, Sites]:
    """A random plan of everything, on a model of any kind."""
    kind: Kind = draw(st.sampled_from(["encoder", "encoder_decoder", "decoder"]))
    sites = fake_sites(kind, layers=draw(st.integers(1, 12)))
    space = load_space("all", sites)
    parameters = int(draw(st.floats(0.01, 1)) * space.dearest().cost(sites))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return space.sample_within(Budget(max(parameters, 100), "x"), rng), sites


def _shown(plan: Plan, sites: Sites | None = None, width: int = 100) -> list[str]:
    """The rich form, printed."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(plan_table(plan, sites, width))
    return [line.rstrip() for line in out.getvalue().splitlines()]


# -- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_equal_layers_and_a_column_for_each_site_in_use() -> None:
    assert plan_lines(MIXED, BERT) == [
        "layers  q              v       attention_norm",
        "0-2     -              -       bias",
        "3       lora 2         lora 2  bias",
        "4       lora 2 + bias  lora 2  bias",
        "5       lora 2         lora 2  bias",
        "6-11    -              -       -",
    ]


def test_without_sites_only_layers_in_use_have_a_row() -> None:
    assert [line.split()[0] for line in plan_lines(MIXED)] == ["layers", "0-2", "3", "4", "5"]


def test_layers_that_do_not_follow_each_other_are_not_collapsed() -> None:
    lines = plan_lines(Plan.of(_of("lora", 2, [0, 1, 3, 9, 10, 11], "attention.q")))
    assert [line.split()[0] for line in lines] == ["layers", "0-1", "3", "9-11"]


def test_stacks_are_named_and_the_final_norms_come_after_their_layers() -> None:
    plan = Plan.of(
        _of("lora", 1, range(6), "attention.q", stack="encoder")
        | _of("lora", 1, range(6), "attention.q", "cross_attention.q", stack="decoder")
        | {("decoder.final_norm", "norm"): 1, ("decoder.final_norm", "bias"): 1}
    )
    assert plan_lines(plan, T5) == [
        "layers       attention.q  cross_attention.q  final_norm",
        "encoder 0-5  lora 1       -                  -",
        "decoder 0-5  lora 1       lora 1             -",
        "decoder end  -            -                  bias + norm",
    ]


def test_columns_follow_the_block_from_attention_to_the_ffn() -> None:
    plan = load_space("all", LLAMA).dearest()
    header = " ".join(line for line in plan_lines(plan, LLAMA, width=10_000) if line.startswith("layers"))
    attention, ffn = "q k v o attention attention_norm", "gate up down ffn ffn_norm"
    assert header.split() == f"layers {attention} {ffn} final_norm".split()


def test_columns_that_do_not_fit_begin_another_table() -> None:
    plan = load_space("all", T5).dearest()
    lines = plan_lines(plan, T5, width=100)
    assert lines.count("") == sum(line.startswith("layers") for line in lines) - 1 >= 2
    assert max(map(len, lines)) <= 100


def test_layers_collapse_in_each_table_for_itself() -> None:
    plan = Plan.of(_of("lora", 1, [0, 2], "attention.q") | _of("lora", 1, range(4), "ffn.up"))
    assert plan_lines(plan, LLAMA, width=20) == [
        "layers  q", "0       lora 1", "1       -", "2       lora 1", "3       -", "", "layers  up", "0-3     lora 1",
    ]  # fmt: skip


@settings(max_examples=30)
@given(drawn_plans(), st.sampled_from([80, 100, 200]))
def test_tables_keep_to_the_width_and_show_every_placement(drawn: tuple[Plan, Sites], width: int) -> None:
    plan, sites = drawn
    lines = plan_lines(plan, sites, width)
    assert all(len(line) <= width for line in lines)
    shown = " ".join(lines)
    for p in plan:
        assert (p.op if p.op in SIZELESS else f"{p.op} {p.size}") in shown
    assert _modules_in(lines) == len(plan)


def _modules_in(lines: list[str]) -> int:
    """Number of modules that a table stands for: in each row, those of its cells times its layers."""
    modules = 0
    for line in lines:
        label, *cells = re.split(r"  +", line) if line else ["layers"]
        if label != "layers":
            layers = re.search(r"(\d+)-(\d+)$", label)
            times = int(layers[2]) - int(layers[1]) + 1 if layers else 1
            modules += times * sum(len(cell.split(" + ")) for cell in cells if cell != "-")
    return modules


@settings(max_examples=30)
@given(drawn_plans())
def test_the_rich_table_says_the_same_as_the_plain_lines(drawn: tuple[Plan, Sites]) -> None:
    plan, sites = drawn
    assert [line for line in _shown(plan, sites) if line] == [line for line in plan_lines(plan, sites) if line]


def test_site_ids_are_not_read_as_markup() -> None:
    plan = Plan.of({("[red]", "lora"): 1, ("layers.0.[bold]x[/bold]", "lora"): 1})
    assert "[red]" in "\n".join(_shown(plan))
    assert "[bold]x[/bold]" in "\n".join(_shown(plan))


def test_the_empty_plan_says_so() -> None:
    assert plan_lines(Plan(), BERT) == ["nothing is trained"]
    assert _shown(Plan(), BERT) == ["nothing is trained"]


# -- words ------------------------------------------------------------------------------------------------------------

LINEARS = {(site.id, "lora"): 4 for site in BERT.values() if site.kind == "linear"}
NORMS = {(site.id, "bias"): 1 for site in BERT.values() if site.kind == "norm"}


@pytest.mark.parametrize(
    ("placements", "sites", "words"),
    [
        ({}, BERT, "nothing"),
        (LINEARS, BERT, "LoRA r=4 on every linear layer"),
        (NORMS, BERT, "biases on every norm"),
        (LINEARS | NORMS, BERT, "LoRA r=4 on every linear layer + biases on every norm"),
        (_of("lora", 8, range(12), "attention.q", "attention.v"), BERT, "LoRA r=8 on attention q,v of all layers"),
        (
            _of("lora", 2, range(3, 6), "attention.q", "attention.v") | _of("bias", 1, range(6), "attention_norm"),
            BERT,
            "LoRA r=2 on attention q,v of layers 3-5 + biases on attention norm of layers 0-5",
        ),
        (_of("lora", 1, [7], "ffn.down"), BERT, "LoRA r=1 on ffn down of layer 7"),
        (
            _of("lora", 1, [0, 2, 3], "attention.q", "ffn.up", "ffn.down"),
            BERT,
            "LoRA r=1 on attention q and ffn up,down of layers 0, 2-3",
        ),
        (_of("lora", 1, [0, 2, 4, 6, 8], "attention.q"), BERT, "LoRA r=1 on attention q of 5 of 12 layers"),
        (_of("serial", 16, range(12), "ffn"), BERT, "serial adapters of 16 on ffn of all layers"),
        (_of("prefix", 5, range(12), "attention"), BERT, "prefixes of 5 on every attention"),
        (_of("scale", 1, range(12), "attention.k"), BERT, "scales on attention k of all layers"),
        (
            _of("lora", 2, range(6), "cross_attention.q", stack="decoder"),
            T5,
            "LoRA r=2 on cross-attention q of all decoder layers",
        ),
        (
            _of("lora", 2, range(6), "attention.q", stack="encoder")
            | _of("lora", 2, [5], "attention.q", stack="decoder"),
            T5,
            "LoRA r=2 on attention q of all encoder layers and decoder layer 5",
        ),
        (
            _of("lora", 2, range(6), "attention.q", stack="encoder")
            | _of("lora", 2, range(6), "attention.q", stack="decoder"),
            T5,
            "LoRA r=2 on attention q of all layers",
        ),
        ({("encoder.final_norm", "norm"): 1}, T5, "norm weights on final norm"),
        (
            _of("lora", 1, [0], "attention.q") | _of("lora", 2, [1], "attention.k"),
            BERT,
            "LoRA r=1 on attention q of layer 0 + LoRA r=2 on attention k of layer 1",
        ),
        (
            {(f"layers.{n}.attention.{'qkvo'[n % 4]}", "lora"): n + 1 for n in range(8)} | NORMS,
            BERT,
            "LoRA r=1-8 on 8 linear modules of layers 0-7 + biases on every norm",
        ),
    ],
)
def test_plans_in_words(placements: dict[tuple[str, str], int], sites: Sites, words: str) -> None:
    assert describe(Plan.of(placements), sites) == words


@settings(max_examples=30)
@given(drawn_plans())
def test_words_name_every_op_on_one_line_of_bearable_length(drawn: tuple[Plan, Sites]) -> None:
    plan, sites = drawn
    words = describe(plan, sites)
    assert "\n" not in words
    assert len(words) < 400
    names = {
        "lora": "LoRA", "bias": "biases", "scale": "scales", "norm": "norm weights", "serial": "serial adapters",
        "parallel": "parallel adapters", "lowrank_adapter": "low-rank adapters", "prefix": "prefixes",
    }  # fmt: skip
    assert [op for op, name in names.items() if name in words] == [op for op in names if op in plan.ops]
