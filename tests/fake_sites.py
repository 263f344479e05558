"""Sites of realistic small models without torch, for tests of everything that is pure."""

from __future__ import annotations

from typing import Literal

from peftscout.plan import Sites
from peftscout.sites import Attention, Site

Kind = Literal["encoder", "encoder_decoder", "decoder"]


def fake_sites(
    kind: Kind = "encoder", layers: int = 2, width: int = 32, ffn: int = 64, heads: int = 4, kv_heads: int = 2
) -> Sites:
    """Return the sites, by id and in model order, of a model of ``layers`` blocks a stack.

    ``encoder`` is like BERT: q, k, v, o, up and down with biases, two LayerNorms a block, none at the end.
    ``encoder_decoder`` is like T5: no biases, RMS norms, cross-attention in the decoder, a final norm in each stack.
    ``decoder`` is like Llama with grouped-query attention: q, k, v, o, gate, up, down, no biases, ``kv_heads`` of
    ``heads``, a final norm.
    """
    match kind:
        case "encoder":
            stacks = {"layers": ("attention",)}
        case "encoder_decoder":
            stacks = {"encoder": ("attention",), "decoder": ("attention", "cross_attention")}
        case "decoder":
            stacks = {"layers": ("attention",)}
    biased = kind == "encoder"
    grouped = kv_heads if kind == "decoder" else heads
    sites: list[Site] = []
    for stack, attentions in stacks.items():
        for layer in range(layers):
            block = _Block(stack, layer, width, biased)
            for sublayer in attentions:
                sites += block.attention(sublayer, heads, grouped)
            sites += block.ffn(ffn, gated=kind == "decoder")
        if not biased:
            sites.append(
                Site(f"{stack}.final_norm", "norm", "final_norm", stack, None, f"{stack}.norm", width, width, False)
            )
    return {site.id: site for site in sites}


class _Block:
    """The sites of one transformer block."""

    def __init__(self, stack: str, layer: int, width: int, biased: bool) -> None:
        self.stack, self.layer, self.width, self.biased = stack, layer, width, biased
        self.id = f"{stack}.{layer}"

    def attention(self, name: str, heads: int, kv_heads: int) -> list[Site]:
        head_size = self.width // heads
        inner, inner_kv = heads * head_size, kv_heads * head_size
        module = f"{self.id}.{name}"
        behind = Attention(module, f"{module}.k", heads, kv_heads, head_size)
        return [
            self._linear(name, "q", self.width, inner),
            self._linear(name, "k", self.width, inner_kv),
            self._linear(name, "v", self.width, inner_kv),
            self._linear(name, "o", inner, self.width),
            self._sublayer(name, "o", "q", behind),
            self._norm(name),
        ]

    def ffn(self, ffn: int, gated: bool) -> list[Site]:
        gate = [self._linear("ffn", "gate", self.width, ffn)] if gated else []
        return [
            *gate,
            self._linear("ffn", "up", self.width, ffn),
            self._linear("ffn", "down", ffn, self.width),
            self._sublayer("ffn", "down", "up", None),
            self._norm("ffn"),
        ]

    def _linear(self, sublayer: str, role: str, i: int, o: int) -> Site:
        name = f"{self.id}.{sublayer}.{role}"
        return Site(name, "linear", role, self.stack, self.layer, name, i, o, self.biased)

    def _norm(self, sublayer: str) -> Site:
        name, w = f"{self.id}.{sublayer}_norm", self.width
        return Site(name, "norm", f"{sublayer}_norm", self.stack, self.layer, name, w, w, self.biased)

    def _sublayer(self, sublayer: str, leaf: str, first: str, attention: Attention | None) -> Site:
        name, w = f"{self.id}.{sublayer}", self.width
        leaf, first = f"{name}.{leaf}", f"{name}.{first}"
        return Site(name, "sublayer", sublayer, self.stack, self.layer, leaf, w, w, self.biased, first, attention)
