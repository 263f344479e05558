"""ModelMap: what it says of a model is what the model does, and what it cannot tell it says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BartConfig,
    Gemma2Config,
    GPTNeoXConfig,
    ModernBertConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from peftscout.architecture import ModelMap
from peftscout.architecture.model_map import ranges
from peftscout.errors import ArchitectureError
from peftscout.sites import Site
from tiny_models import TINY_NAMES, Head, tiny_model

SMALL = {"vocab_size": 100, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {
    "bart": lambda: BartConfig(
        vocab_size=100,
        pad_token_id=0,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    ),
    "gemma2": lambda: Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=12, intermediate_size=48),
    "gpt_neox": lambda: GPTNeoXConfig(**SMALL, intermediate_size=48),
    "modernbert": lambda: ModernBertConfig(**SMALL, intermediate_size=48),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32),
    "phi3": lambda: Phi3Config(**SMALL, num_key_value_heads=2, intermediate_size=48),
}
RUNNABLE = (*TINY_NAMES, *MORE)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def runnable(name: str) -> PreTrainedModel:
    if name in MORE:
        return AutoModel.from_config(MORE[name]()).eval()
    return tiny_model(name)


def run(model: PreTrainedModel) -> None:
    tokens = torch.randint(3, 100, (2, 7), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **extra)


def record(model: PreTrainedModel, model_map: ModelMap) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor]]:
    """Run ``model``; return the modules of sites in the order in which they ran, and their inputs and outputs."""
    order: list[str] = []
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            order.append(path)
            inputs[path], outputs[path] = args[0], output

        return note

    handles = [
        model.get_submodule(path).register_forward_hook(hook(path))
        for path in {site.module for site in model_map.sites.values()}
    ]
    run(model)
    for handle in handles:
        handle.remove()
    return order, inputs, outputs


# -- what the map says is what the model does --------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNNABLE)
def test_widths_are_those_of_the_tensors_that_flow(name: str) -> None:
    model = runnable(name)
    model_map = ModelMap.from_model(model)
    _, inputs, outputs = record(model, model_map)
    for site in model_map.sites.values():
        entry = site.module if site.input_module is None else site.input_module
        assert inputs[entry].shape[-1] == site.in_features, site.id
        assert outputs[site.module].shape[-1] == site.out_features, site.id


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_sublayer_begins_with_its_input_module_and_ends_with_its_module(name: str) -> None:
    model = runnable(name)
    model_map = ModelMap.from_model(model)
    order, _, _ = record(model, model_map)
    for site in model_map.sites.values():
        if site.kind != "sublayer":
            continue
        own = [s.module for s in model_map.sites.values() if s.kind == "linear" and s.id.startswith(f"{site.id}.")]
        ran = [path for path in order if path in own]
        assert (ran[0], ran[-1]) == (site.input_module, site.module), site.id
        assert sorted(ran) == sorted(own), f"{site.id}: every projection runs once"


@pytest.mark.parametrize("name", RUNNABLE)
def test_projections_of_one_sublayer_read_what_enters_it(name: str) -> None:
    model = runnable(name)
    model_map = ModelMap.from_model(model)
    _, inputs, _ = record(model, model_map)
    sites = model_map.sites
    for site in sites.values():
        if site.role not in ("q", "k", "v", "gate", "up"):
            continue
        sublayer = sites[site.id.rpartition(".")[0]]
        assert sublayer.input_module is not None
        same = torch.equal(inputs[site.module], inputs[sublayer.input_module])
        crosses = sublayer.role == "cross_attention" and site.role in ("k", "v")
        assert same != crosses, f"{site.id}: keys and values of cross-attention read the encoder, all else the input"


@pytest.mark.parametrize("name", RUNNABLE)
def test_norms_run_beside_the_sublayer_that_they_are_named_after(name: str) -> None:
    model = runnable(name)
    model_map = ModelMap.from_model(model)
    order, _, _ = record(model, model_map)
    sites = model_map.sites
    for site in sites.values():
        if site.kind != "norm" or site.layer is None or site.role not in ("attention_norm", "ffn_norm"):
            continue
        sublayer = sites[site.id.removesuffix("_norm")]
        block = [path for path in order if any(s.module == path for s in _of_block(model_map, site))]
        at = block.index(site.module)
        assert sublayer.input_module is not None
        before, after = block.index(sublayer.input_module) - 1, block.index(sublayer.module) + 1
        assert at in (before, after), f"{site.id} runs just before or just after {sublayer.id}"


def _of_block(model_map: ModelMap, site: Site) -> list[Site]:
    return [s for s in model_map.sites.values() if (s.stack, s.layer) == (site.stack, site.layer)]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_final_norm_runs_after_the_last_block(name: str) -> None:
    model = runnable(name)
    model_map = ModelMap.from_model(model)
    order, _, _ = record(model, model_map)
    for stack in model_map.stacks:
        final = model_map.sites.get(f"{stack}.final_norm")
        inside = [s.module for s in model_map.sites.values() if s.stack == stack and s.layer is not None]
        if final is not None:
            assert order.index(final.module) > max(order.index(path) for path in inside)


@pytest.fixture
def attention_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Registers the attention function ``recorder``; returns its calls: module, queries, keys."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def recorder(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        assert key.shape == value.shape
        calls.append((module, query, key))
        return query.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "recorder", recorder)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "recorder", sdpa_mask)
    return calls


@pytest.mark.parametrize("name", RUNNABLE)
def test_attention_names_the_modules_that_call_the_attention_function(
    name: str, attention_calls: list[tuple[nn.Module, Tensor, Tensor]]
) -> None:
    model = runnable(name)
    model_map = ModelMap.from_model(model)
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), type(model.config)):
            config._attn_implementation = "recorder"
    run(model)
    told = [s.attention for s in model_map.sites.values() if s.attention is not None]
    assert {model.get_submodule(a.module) for a in told} == {module for module, _, _ in attention_calls}
    assert len(told) == len(attention_calls) > 0
    shapes = {module: (query.shape, key.shape) for module, query, key in attention_calls}
    for attention in told:
        query, key = shapes[model.get_submodule(attention.module)]
        assert (query[1], query[3]) == (attention.heads, attention.head_size)
        assert (key[1], key[3]) == (attention.kv_heads, attention.head_size)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_a_model_is_left_as_it_was(name: str) -> None:
    model = tiny_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [p.requires_grad for p in model.parameters()]
    ModelMap.from_model(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == grads


@pytest.mark.parametrize("name", TINY_NAMES)
def test_the_map_on_the_meta_device_is_the_map_of_the_real_model(name: str) -> None:
    model = tiny_model(name, "sequence")
    with torch.device("meta"):
        ghost = type(model)(model.config)
    assert ModelMap.from_model(ghost) == ModelMap.from_model(model)


def test_sites_are_listed_stack_by_stack_and_in_a_block_projections_norms_sublayers() -> None:
    model_map = ModelMap.from_model(tiny_model("t5_gated"))
    assert [i for i in model_map.sites if i.startswith(("decoder.0", "decoder.final"))] == [
        *(f"decoder.0.attention.{role}" for role in "qkvo"),
        *(f"decoder.0.cross_attention.{role}" for role in "qkvo"),
        *(f"decoder.0.ffn.{role}" for role in ("gate", "up", "down")),
        "decoder.0.attention_norm",
        "decoder.0.cross_attention_norm",
        "decoder.0.ffn_norm",
        "decoder.0.attention",
        "decoder.0.cross_attention",
        "decoder.0.ffn",
        "decoder.final_norm",
    ]
    stacks = [site.stack for site in model_map.sites.values()]
    assert stacks == sorted(stacks, key=["encoder", "decoder"].index)
    layers = [site.layer for site in model_map.sites.values() if site.stack == "encoder" and site.layer is not None]
    assert layers == sorted(layers)


def test_roles_of_norms_are_the_last_part_of_their_id() -> None:
    model_map = ModelMap.from_model(tiny_model("qwen3"))
    roles = {site.id: site.role for site in model_map.sites.values() if site.kind == "norm"}
    assert roles["layers.1.attention.q_norm"] == "q_norm"
    assert all(site_id.rpartition(".")[2] == role for site_id, role in roles.items())
    assert model_map.sites["layers.final_norm"].layer is None


# -- heads and totals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY_NAMES)
@pytest.mark.parametrize("head", ["base", "lm"])
def test_base_and_language_models_have_no_head(name: str, head: Head) -> None:
    model = tiny_model(name, head)
    model_map = ModelMap.from_model(model)
    assert model_map.head == ()
    assert model_map.total == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "head"), [*((name, "sequence") for name in TINY_NAMES), *((n, "multiple_choice") for n in TINY_NAMES[:2])]
)
def test_the_task_head_is_what_lies_outside_the_base_model(name: str, head: Head) -> None:
    model = tiny_model(name, head)
    model_map = ModelMap.from_model(model)
    parts = [child for part, child in model.named_children() if part in model_map.head]
    assert len(parts) == len(model_map.head) == 1
    assert model_map.total == model.num_parameters() - sum(p.numel() for p in parts[0].parameters())


def test_tied_embeddings_are_counted_once() -> None:
    tied = ModelMap.from_model(tiny_model("gpt2", "lm"))
    untied = ModelMap.from_model(tiny_model("gpt2", "lm", tie_word_embeddings=False))
    assert untied.total - tied.total == 100 * 32
    assert tied.total == ModelMap.from_model(tiny_model("gpt2")).total


def test_the_head_does_not_change_the_sites() -> None:
    base = ModelMap.from_model(tiny_model("bert"))
    choice = ModelMap.from_model(tiny_model("bert", "multiple_choice"))
    assert list(base.sites) == list(choice.sites)
    assert choice.sites["layers.0.ffn.up"].module == f"bert.{base.sites['layers.0.ffn.up'].module}"


# -- toy models: what no table of real models reaches ------------------------------------------------------------------


class ToyAttention(nn.Module):
    def __init__(self, width: int = 8, inner: int = 8) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.o_proj = nn.Linear(inner, width)


class ToyBlock(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def toy(*blocks: nn.Module) -> nn.Module:
    model = nn.Module()
    model.layers = nn.ModuleList(blocks)
    model.config = SimpleNamespace(model_type="toy")
    return model


def block(**children: nn.Module) -> nn.Module:
    children.setdefault("self_attn", ToyAttention())
    return ToyBlock(**children)


def mlp(**children: nn.Module) -> nn.Module:
    return ToyBlock(**children)


def linear_roles(model: nn.Module, roles: dict[str, str] | None = None) -> dict[str, str]:
    sites = ModelMap.from_model(model, roles).sites.values()
    return {s.module.removeprefix("layers.0."): s.id.removeprefix("layers.0.") for s in sites if s.kind == "linear"}


def test_widths_tell_up_from_down_even_when_the_ffn_is_narrower_than_the_hidden_states() -> None:
    model = toy(block(mlp=mlp(a=nn.Linear(8, 4), b=nn.Linear(4, 8))))
    roles = linear_roles(model)
    assert (roles["mlp.a"], roles["mlp.b"]) == ("ffn.up", "ffn.down")


@pytest.mark.parametrize(
    ("first", "second"), [("fc1", "fc2"), ("up_proj", "down_proj"), ("wi", "wo"), ("one", "other"), ("lin1", "lin2")]
)
def test_an_ffn_as_wide_as_the_hidden_states_goes_by_name_and_order(first: str, second: str) -> None:
    roles = linear_roles(toy(block(mlp=mlp(**{first: nn.Linear(8, 8), second: nn.Linear(8, 8)}))))
    assert (roles[f"mlp.{first}"], roles[f"mlp.{second}"]) == ("ffn.up", "ffn.down")


def test_a_name_beats_the_order_in_an_ffn_as_wide_as_the_hidden_states() -> None:
    roles = linear_roles(
        toy(block(mlp=mlp(down_proj=nn.Linear(8, 8), up_proj=nn.Linear(8, 8), gate_proj=nn.Linear(8, 8))))
    )
    assert [roles[f"mlp.{name}_proj"] for name in ("gate", "up", "down")] == ["ffn.gate", "ffn.up", "ffn.down"]


def test_a_projection_up_of_twice_the_width_is_gate_and_up_fused() -> None:
    roles = linear_roles(toy(block(mlp=mlp(inp=nn.Linear(8, 24), out=nn.Linear(12, 8)))))
    assert roles["mlp.inp"] == "ffn.gate_up"


def test_conv1d_is_read_the_other_way_round() -> None:
    model = toy(block(mlp=mlp(c_fc=Conv1D(12, 8), c_proj=Conv1D(8, 12))))
    sites = ModelMap.from_model(model).sites
    up, down = sites["layers.0.ffn.up"], sites["layers.0.ffn.down"]
    assert (up.in_features, up.out_features, down.in_features, down.out_features) == (8, 12, 12, 8)


def test_attention_narrower_than_the_hidden_states_keeps_the_hidden_width_outside() -> None:
    sites = ModelMap.from_model(toy(block(self_attn=ToyAttention(8, 6)))).sites
    assert (sites["layers.0.attention.q"].out_features, sites["layers.0.attention"].out_features) == (6, 8)


def test_an_attention_of_unknown_make_takes_no_prefix_and_says_so() -> None:
    model_map = ModelMap.from_model(toy(block()))
    assert model_map.sites["layers.0.attention"].attention is None
    assert model_map.skipped == (
        "layers.0: attention: ToyAttention does not call transformers' AttentionInterface: no prefix",
    )


def test_a_projection_without_a_role_is_named_with_its_place_and_the_remedy() -> None:
    model = toy(*(block(mlp=mlp(up=nn.Linear(8, 12), down=nn.Linear(12, 8)), extra=nn.Linear(5, 6)) for _ in range(3)))
    with pytest.raises(ArchitectureError) as caught:
        ModelMap.from_model(model)
    message = str(caught.value)
    assert message.startswith(
        "layers.0.extra: this projection has no role: it is outside attention and outside the FFN"
    )
    assert "(2 more: extra)" in message
    assert "roles={'extra': 'up'}" in message
    assert "'skip' to leave it alone" in message


def test_an_unknown_name_in_attention_is_named() -> None:
    attention = ToyAttention()
    attention.mystery = nn.Linear(8, 8)
    with pytest.raises(ArchitectureError, match=r"layers\.0\.self_attn\.mystery: .* it is in attention"):
        ModelMap.from_model(toy(block(self_attn=attention)))


def test_two_gates_without_a_name_are_not_guessed() -> None:
    model = toy(block(mlp=mlp(a=nn.Linear(8, 12), b=nn.Linear(8, 12), c=nn.Linear(12, 8))))
    with pytest.raises(ArchitectureError, match="which is the gate"):
        ModelMap.from_model(model)
    roles = linear_roles(model, {r"mlp\.a": "gate", r"mlp\.b": "up"})
    assert (roles["mlp.a"], roles["mlp.b"], roles["mlp.c"]) == ("ffn.gate", "ffn.up", "ffn.down")


# -- overrides ---------------------------------------------------------------------------------------------------------


def test_an_override_beats_what_was_found() -> None:
    model = tiny_model("llama")
    model_map = ModelMap.from_model(model, roles={r"mlp\.gate_proj": "up", r"mlp\.up_proj": "gate"})
    assert model_map.sites["layers.1.ffn.up"].module == "layers.1.mlp.gate_proj"
    assert model_map.sites["layers.1.ffn"].input_module == "layers.1.mlp.up_proj"


def test_an_override_may_name_the_path_in_the_model_and_so_one_layer_only() -> None:
    model_map = ModelMap.from_model(tiny_model("bert"), roles={r"encoder\.layer\.1\..*\.query": "skip"})
    assert "layers.0.attention.q" in model_map.sites
    assert "layers.1.attention.q" not in model_map.sites
    assert "layers.1.attention" not in model_map.sites, "nothing tells what enters it"
    assert "layers.1: attention.self.query: skipped by role override" in model_map.skipped


def test_an_override_matches_in_full() -> None:
    with pytest.raises(ArchitectureError, match=r"roles\['query'\] matches no projection of a block"):
        ModelMap.from_model(tiny_model("bert"), roles={"query": "skip"})


def test_the_first_override_that_matches_counts() -> None:
    model_map = ModelMap.from_model(tiny_model("llama"), roles={r"mlp\.gate_proj": "gate", r"mlp\..*": "skip"})
    assert "layers.0.ffn.gate" in model_map.sites
    assert "layers.0.ffn.up" not in model_map.sites


def test_an_override_can_say_which_attention() -> None:
    roles = {rf"self_attn\.{role}_proj": f"cross_attention.{role}" for role in "qkvo"}
    model_map = ModelMap.from_model(tiny_model("llama"), roles=roles)
    assert "layers.0.cross_attention.q" in model_map.sites
    assert "layers.0.attention.q" not in model_map.sites


def test_overrides_make_blocks_of_a_model_whose_classes_are_not_named_attention() -> None:
    plain = mlp(a=nn.Linear(8, 8), b=nn.Linear(8, 8), c=nn.Linear(8, 8), d=nn.Linear(8, 8))
    model = toy(ToyBlock(mix=plain, ffn=mlp(up=nn.Linear(8, 12), down=nn.Linear(12, 8))))
    with pytest.raises(ArchitectureError, match="is not supported"):
        ModelMap.from_model(model)
    found = linear_roles(model, {r"mix\.a": "q", r"mix\.b": "k", r"mix\.c": "v", r"mix\.d": "o"})
    assert found["mix.a"] == "attention.q"
    assert found["ffn.down"] == "ffn.down"


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"x": "qeury"}, "unknown role 'qeury'"),
        ({"x": "gates"}, r"unknown role 'gates' \(did you mean 'gate'\?\)"),
        ({"x": "ffn.q"}, "unknown role 'ffn.q'"),
        ({"(": "q"}, "not a regular expression"),
        ({"no.such": "q"}, "matches no projection of a block; there are attention.self.query"),
    ],
)
def test_a_wrong_override_is_refused_with_the_reason(roles: dict[str, str], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        ModelMap.from_model(tiny_model("bert"), roles=roles)


# -- what is left out --------------------------------------------------------------------------------------------------


def test_a_router_and_experts_of_linears_are_left_out_but_the_shared_expert_is_not() -> None:
    expert = [mlp(w1=nn.Linear(8, 4), w2=nn.Linear(4, 8)) for _ in range(2)]
    moe = mlp(
        gate=nn.Linear(8, 2),
        experts=nn.ModuleList(expert),
        shared_expert=mlp(gate_proj=nn.Linear(8, 4), up_proj=nn.Linear(8, 4), down_proj=nn.Linear(4, 8)),
    )
    model_map = ModelMap.from_model(toy(block(moe=moe)))
    assert {"layers.0.shared_ffn.gate", "layers.0.shared_ffn.up", "layers.0.shared_ffn.down"} <= set(model_map.sites)
    assert "layers.0.ffn" not in model_map.sites
    assert "layers.0.shared_ffn" not in model_map.sites
    assert (
        "layers.0: moe: mixture of experts: each would need its own op: not sites, no FFN sublayer" in model_map.skipped
    )
    assert "layers.0: moe.gate: router or gate of a mixture of experts: not a site" in model_map.skipped


def test_a_model_that_already_carries_adapters_is_refused() -> None:
    attention = ToyAttention()
    attention.q_proj = ToyBlock(base_layer=nn.Linear(8, 8), lora_A=nn.Linear(8, 2), lora_B=nn.Linear(2, 8))
    with pytest.raises(ArchitectureError, match=r"layers\.0\.self_attn\.q_proj\.base_layer: .* carries adapters"):
        ModelMap.from_model(toy(block(self_attn=attention)))


def test_lists_that_hold_no_blocks_are_not_stacks() -> None:
    model = toy(block())
    model.adapters = nn.ModuleList([nn.Linear(8, 8)])
    model.towers = nn.ModuleList([ToyAttention()])  # an attention is not a block
    assert dict(ModelMap.from_model(model).stacks) == {"layers": 1}


def test_groups_of_blocks_are_flattened_into_one_stack() -> None:
    groups = [ToyBlock(blocks=nn.ModuleList([block(), block()]), reduction=nn.Linear(8, 4)) for _ in range(2)]
    model_map = ModelMap.from_model(toy(*groups))
    assert dict(model_map.stacks) == {"layers": 4}
    assert model_map.sites["layers.2.attention.q"].module == "layers.1.blocks.0.self_attn.q_proj"


def test_albert_counts_its_shared_block_once() -> None:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(**{**SMALL, "num_hidden_layers": 6, "intermediate_size": 48, "embedding_size": 16})
    model_map = ModelMap.from_model(AlbertModel(config))
    assert dict(model_map.stacks) == {"layers": 1}
    two = AlbertConfig(**{**config.to_dict(), "num_hidden_groups": 2, "inner_group_num": 3})
    assert dict(ModelMap.from_model(AlbertModel(two)).stacks) == {"layers": 6}


def test_ranges_join_neighbours() -> None:
    assert ranges([]) == ""
    assert ranges([3]) == "3"
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2,4,6-7"
