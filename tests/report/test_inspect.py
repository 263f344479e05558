"""What ``peftscout inspect`` shows: right numbers, one row a role, legible without a terminal."""

from __future__ import annotations

import io
import json
import re

import pytest
import torch
from rich.console import Console
from transformers import CONFIG_MAPPING, AutoModel

from peftscout.architecture import ModelMap
from peftscout.cost import OPS, ops_at, price
from peftscout.plan import Plan
from peftscout.report.inspect import inspect_json, inspect_text, inspect_tree
from peftscout.space import Space, load_space, parse_space
from tiny_models import tiny_model

ISSUE = ["bert", "roberta", "t5", "gpt2", "llama", "qwen3", "mistral", "gemma", "modernbert"]


def of_config(name: str) -> ModelMap:
    with torch.device("meta"):
        return ModelMap.from_model(AutoModel.from_config(CONFIG_MAPPING[name]()))


def text(model_map: ModelMap, space: Space | None = None, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(inspect_text(model_map, space))
    return out.getvalue()


def rows(printed: str) -> list[str]:
    """Rows of a table of one stack, with single spaces; what was wrapped comes after the cells of the first line."""
    body = printed.splitlines()
    body = body[next(n for n, line in enumerate(body) if line.startswith("site ")) + 2 :]
    body = body[: next(n for n, line in enumerate(body) if not line.strip())]
    joined: list[str] = []
    for line in body:
        if line.startswith(" "):
            joined[-1] += f" {' '.join(line.split())}"
        else:
            joined.append(" ".join(line.split()))
    return joined


@pytest.mark.parametrize("name", ISSUE)
def test_the_table_reads_well_at_100_columns(name: str) -> None:
    printed = text(of_config(name))
    assert max(map(len, printed.splitlines())) <= 100
    assert "…" not in printed
    assert "\x1b" not in printed, "no colours where there is no terminal"
    assert name in printed.splitlines()[0]


@pytest.mark.parametrize("width", [80, 100, 160])
def test_nothing_is_cut_off_at_other_widths(width: int) -> None:
    model_map = of_config("deepseek_v3")
    assert "…" not in text(model_map, width=width)
    assert "…" not in text(model_map, load_space("all", model_map.sites), width=width)


def test_the_table_of_bert_in_full() -> None:
    square = "0-11 768 -> 768"
    projection = "lora=1,536n bias=768 scale=768 18,432"
    adapters = "serial=768+1,537n parallel=768+1,537n lowrank_adapter=792+1,584n"
    assert rows(text(of_config("bert"))) == [
        *(f"attention.{role} {square} yes {projection}" for role in "qkvo"),
        "ffn.up 0-11 768 -> 3072 yes lora=3,840n bias=3,072 scale=3,072 46,080",
        "ffn.down 0-11 3072 -> 768 yes lora=3,840n bias=768 scale=768 46,080",
        "attention_norm 0-11 768 yes bias=768 norm=1,536",
        "ffn_norm 0-11 768 yes bias=768 norm=1,536",
        f"attention {square} {adapters} prefix=1,536n",
        f"ffn {square} {adapters}",
    ]


def test_the_header_of_bert() -> None:
    lines = [" ".join(line.split()) for line in text(of_config("bert")).splitlines()[:4]]
    assert lines == [
        "model type bert",
        "stacks layers: 12 blocks",
        "backbone 109,482,240 parameters",
        "LoRA, rank 1 165,888 parameters on every projection (0.15%)",
    ]


@pytest.mark.parametrize("name", ISSUE)
def test_every_site_has_a_row_in_its_stack(name: str) -> None:
    model_map = of_config(name)
    printed = text(model_map, width=200)
    for stack in model_map.stacks:
        own = printed if len(model_map.stacks) == 1 else printed.split(f"\n{stack} ")[1]
        shown = {line.split()[0] for line in own.splitlines() if line.strip()}
        expected = {
            site.id.split(".", 1 if site.layer is None else 2)[-1]
            for site in model_map.sites.values()
            if site.stack == stack
        }
        assert len(expected) > 5
        assert expected <= shown


def test_the_two_stacks_of_t5_are_told_apart() -> None:
    printed = text(of_config("t5"))
    assert "encoder: 6 blocks, decoder: 6 blocks" in printed
    before, after = printed.split("\ndecoder ")
    assert "cross_attention.q" in after
    assert "cross_attention.q" not in before
    assert "final_norm" in before
    assert "final_norm" in after


def test_layers_that_differ_have_rows_of_their_own() -> None:
    modernbert = rows(text(of_config("modernbert"), width=200))
    assert [row.split()[1] for row in modernbert if row.startswith(("attention_norm", "ffn_norm"))] == ["0-21", "1-21"]
    gemma4 = rows(text(of_config("gemma4_text"), width=200))
    assert [row.split()[1:5] for row in gemma4 if row.startswith("attention.q ")] == [
        ["0-4,6-10,..,24-28", "2304", "->", "2048"],
        ["5,11,..,29", "2304", "->", "4096"],
    ]


def test_what_is_left_out_is_said() -> None:
    printed = text(of_config("mixtral"))
    assert "Left out:" in printed
    assert "- layers.0-31: mlp: mixture of experts: each would need its own op: not sites, no FFN sublayer" in printed
    assert "Left out:" not in text(of_config("llama"))


def test_the_task_head_is_counted_apart() -> None:
    printed = text(ModelMap.from_model(tiny_model("bert", "sequence")))
    assert re.search(r"task head +classifier \(counted apart\)", printed)
    assert "task head" not in text(ModelMap.from_model(tiny_model("bert")))


def test_one_block_is_singular() -> None:
    assert "layers: 1 block\n" in re.sub(" +\n", "\n", text(of_config("albert")))


# -- with a space ------------------------------------------------------------------------------------------------------

YAML = """
name: few
rules:
  - op: lora
    sites: ["layers.0.attention.{q,v}"]
    sizes: [1, 2, 4]
  - op: lora
    sites: ["layers.1.attention.q"]
    sizes: [1, 2, 3, 4, 8]
  - op: norm
    sites: ["*"]
    optional: true
"""


def test_a_space_shows_what_it_offers_and_where() -> None:
    model_map = ModelMap.from_model(tiny_model("bert"))
    space = parse_space(YAML, model_map.sites)
    printed = text(model_map, space)
    assert re.search(r"attention\.q +0 .* lora\[1,2,4\]=64n +64\n", printed)
    assert re.search(r"attention\.q +1 .* lora\[1\.\.8\]=64n +64\n", printed)
    assert re.search(r"attention\.v +1 .* - *\n", printed), "nothing is offered there, so no price of LoRA either"
    assert re.search(r"attention_norm +0-1 .* norm=64 *\n", printed)
    assert re.search(r"space +few: 7 choices, \d[\d,]* plans", printed)
    low, high = space.cheapest().cost(model_map.sites), space.dearest().cost(model_map.sites)
    assert f"{low:,} to {high:,} parameters" in printed


def test_a_huge_space_is_counted_in_powers_of_ten() -> None:
    model_map = of_config("llama")
    assert re.search(
        r"space +all: [\d,]+ choices, about 10\^\d+ plans", text(model_map, load_space("all", model_map.sites))
    )


def test_a_space_that_cannot_be_counted_is_shown_without_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftscout.errors import SpaceError

    def entangled(_: Space) -> int:
        raise SpaceError("too entangled")

    model_map = ModelMap.from_model(tiny_model("bert"))
    space = parse_space(YAML, model_map.sites)
    monkeypatch.setattr(Space, "cardinality", entangled)
    assert re.search(r"space +few: 7 choices *\n", text(model_map, space))
    assert inspect_json(model_map, space)["space"]["plans"] is None


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ISSUE)
def test_json_prices_agree_with_the_cost_of_a_plan(name: str) -> None:
    model_map = of_config(name)
    data = json.loads(json.dumps(inspect_json(model_map)))
    assert [site["id"] for site in data["sites"]] == list(model_map.sites)
    for site in data["sites"][:12]:
        assert list(site["ops"]) == list(ops_at(model_map.sites[site["id"]]))
        for op, own in site["ops"].items():
            n = own["largest_size"]
            cost = Plan.of({(site["id"], op): n}).cost(model_map.sites)
            assert own["fixed"] + own["per_size"] * n == cost


def test_json_holds_the_whole_map() -> None:
    model_map = ModelMap.from_model(tiny_model("t5", "sequence"))
    data = json.loads(json.dumps(inspect_json(model_map)))
    assert data["schema"] == 1
    assert data["model_type"] == "t5"
    assert data["stacks"] == {"encoder": 2, "decoder": 2}
    assert data["parameters"] == model_map.total
    assert data["head"] == ["classification_head"]
    assert data["skipped"] == []
    linears = [site for site in model_map.sites.values() if site.kind == "linear"]
    assert data["lora_rank_1"] == sum(s.in_features + s.out_features for s in linears)
    assert "space" not in data
    first = data["sites"][0]
    assert {k: v for k, v in first.items() if k != "ops"} == {
        "id": "encoder.0.attention.q",
        "kind": "linear",
        "role": "q",
        "stack": "encoder",
        "layer": 0,
        "module": "transformer.encoder.block.0.layer.0.SelfAttention.q",
        "in_features": 32,
        "out_features": 24,
        "has_bias": False,
        "input_module": None,
        "attention": None,
    }
    sublayer = next(site for site in data["sites"] if site["id"] == "decoder.1.cross_attention")
    assert sublayer["attention"]["heads"] == 4
    assert sublayer["ops"]["prefix"] == {"fixed": 0, "per_size": 48, "largest_size": 32}


def test_json_of_a_space() -> None:
    model_map = ModelMap.from_model(tiny_model("bert"))
    space = parse_space(YAML, model_map.sites)
    assert inspect_json(model_map, space)["space"] == {
        "name": "few",
        "choices": 7,
        "variables": len(space.variables),
        "plans": space.cardinality(),
        "cheapest": space.cheapest().cost(model_map.sites),
        "dearest": space.dearest().cost(model_map.sites),
    }


def test_every_op_is_offered_somewhere_in_bert() -> None:
    model_map = of_config("bert")
    assert {op for site in inspect_json(model_map)["sites"] for op in site["ops"]} == set(OPS)


def test_rank_1_column_sums_to_the_total() -> None:
    model_map = of_config("llama")
    linears = [site for site in model_map.sites.values() if site.kind == "linear"]
    table = rows(text(model_map, width=200))
    shown = [int(row.split()[-1].replace(",", "")) for row in table if "lora=" in row]
    assert len(shown) == 7
    assert sum(shown) == sum(price(site, "lora").at(1) for site in linears)


# -- the tree ---------------------------------------------------------------------------------------------------------


def tree(model_map: ModelMap, space: Space | None = None, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(inspect_tree(model_map, space))
    return out.getvalue()


@pytest.mark.parametrize("name", ["bert", "t5", "llama", "gpt2", "deepseek_v3"])
def test_the_tree_says_what_the_table_says(name: str) -> None:
    model_map = of_config(name)
    table, shown = (" ".join(printed.split()) for printed in (text(model_map, width=300), tree(model_map, width=300)))
    for price_of in set(re.findall(r"\b[a-z_]+=[\d,+]+n?", table)):
        assert price_of in shown
    for note in model_map.skipped:
        assert " ".join(note.split()) in shown
    assert f"{model_map.total:,} parameters" in shown


def test_layers_that_are_alike_share_a_branch_and_projections_lie_below_their_part() -> None:
    lines = tree(of_config("t5")).splitlines()
    branches = [line.strip("│├└─ ") for line in lines]
    assert branches.count("layers 0-5") == 2
    at = branches.index("attention")
    assert [branch.split()[0] for branch in branches[at + 1 : at + 5]] == ["q", "k", "v", "o"]
    assert branches[at + 5].startswith("as a whole")


def test_the_tree_shows_only_what_a_space_offers() -> None:
    model_map = of_config("bert")
    shown = tree(model_map, load_space("lora", model_map.sites))
    assert "lora[" in shown
    assert "serial" not in shown
