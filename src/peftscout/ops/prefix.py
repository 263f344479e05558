"""Prefix: P trained keys and values for each key/value head, attended to by every query, with values zero at the start.

The attention's output over the tokens is A(q) = softmax(q K^T) V. The prefix adds

    S(q) = sum_p exp(q k_p) v_p / (1 + sum_p exp(q k_p)),

a softmax of its own over the prefix and one slot of score and value zero. A softmax of its own is the zero-initialised
attention of LLaMA-Adapter (Zhang et al., 2024; also the prefix of BIPEFT's S2 space), with its gate multiplied into the
values, g softmax(q k) v = softmax(q k) (g v): the parameters are 2 P kv_heads head_size and no more. The empty slot
lets a query attend to none of the prefix; without it a prefix of one would have no use for its key (the softmax of one
score is 1), and the prefix of none, where a supernet masks all scores, would not be zero.

Prefix-tuning (Li & Liang, 2021) attends to tokens and prefix in one softmax, which is (1 - m(q)) A(q) + m(q) P(q) with
m the prefix's share of the weight (He et al., 2022, section 3.1): no choice of keys and values makes that the identity,
so it disturbs the backbone from the first step on. S adds exactly nothing at the start, and asks nothing of masks,
caches, position biases or the kernel of the attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peftscout.ops.base import Affine, OpSettings, Shapes, Tensors
from peftscout.sites import Site

OUTER = ("values",)


def shapes(site: Site, size: int) -> Shapes:
    """Return keys and values, each ``[kv_heads, P, head_size]``; ``size`` is the length P."""
    attention = site.attention
    assert attention is not None, site.id
    shape = (attention.kv_heads, size, attention.head_size)
    return {"keys": shape, "values": shape}


def init(shapes: Shapes, generator: torch.Generator) -> dict[str, Tensor]:
    """Keys standard normal, values zero.

    The keys must differ by about as much as real keys do: were they all near zero, every query would weigh all values
    alike, all values would get the same gradient, and the prefix would stay one vector in P copies.
    """
    return {"keys": torch.randn(shapes["keys"], generator=generator), "values": torch.zeros(shapes["values"])}


def delta(params: Tensors, x: Tensor, y: Tensor, settings: OpSettings) -> Tensor:
    """Return S(x) ``[batch, queries, heads, head_size]``.

    ``x [batch, heads, queries, head_size]`` are the queries, scaled as the attention scales them. Groups of
    heads / kv_heads consecutive query heads share the prefix of one key/value head.
    """
    keys, values = params["keys"], params["values"]
    *batch, _, _, head_size = x.shape
    grouped = x.to(keys.dtype).reshape(
        *batch, keys.shape[-3], -1, head_size
    )  # [batch, kv_heads, group * queries, size]
    scores = F.pad(grouped @ keys.mT, (1, 0))  # the first is the score of nothing
    shares = scores.softmax(-1)
    if "weights" in params:  # of a supernet's tokens; by a product and not by log-weights, whose slope at 0 is infinite
        weighted = shares[..., 1:] * params["weights"]
        total = shares[..., :1] + weighted.sum(-1, keepdim=True)
        attended = weighted / total.clamp_min(torch.finfo(total.dtype).tiny) @ values
    else:
        attended = shares[..., 1:] @ values
    return attended.reshape(*x.shape[:-1], values.shape[-1]).transpose(-3, -2)


def shrink(params: Tensors, size: int) -> dict[str, Tensor]:
    """Length P is the first P keys and values."""
    return {name: tensor[..., :size, :] for name, tensor in params.items()}


def weigh(params: Tensors, weights: Tensor) -> Tensors:
    """The exponentials of S: a token of weight 0 takes no attention, as one of score minus infinity."""
    return {**params, "weights": weights[None, None] if weights.dim() == 1 else weights}


def fold(params: Tensors, host: Affine, settings: OpSettings) -> None:
    """Attention to a prefix is no part of any projection."""
