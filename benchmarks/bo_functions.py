"""Synthetic AutoPEFT-like problems with known fronts: real spaces and real costs, a closed-form score, Gaussian noise.

Six problems. Three over the AutoPEFT space of a BERT-base-like model (15 variables, 5,446,350 plans; the front comes
from enumerating them all), three with a size of its own for every op in every layer (60 to 72 variables; the score is a
monotone function of a sum over layers, so the front comes from dynamic programming over layers).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from peftscout.plan import Plan, Sites
from peftscout.space import Choice, Space, load_space
from peftscout.surrogate.features import Encoder
from peftscout.surrogate.maximise import Candidates
from peftscout.surrogate.staircase import Reference, front, hypervolume

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from fake_sites import fake_sites

LAYERS = 12
FLOOR = 0.5
"""Score of the untrained model: the reference score of every hypervolume here."""

NOISE = 0.01
"""Standard deviation of an observed score: a point of accuracy, as on a development set of some thousand rows."""

Levels = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Function:
    """A problem: a space, the true score of its plans, and the exact front.

    Attributes:
        name: for tables.
        space: what may be chosen.
        score: true scores (n,) of level vectors (n, variables).
        front_points: computes (log10 costs, true scores) of the exact front.
    """

    name: str
    space: Space
    score: Callable[[Levels], Scores]
    front_points: Callable[[], tuple[Scores, Scores]]

    @cached_property
    def reference(self) -> Reference:
        """The dearest plan and the untrained score."""
        return Reference(float(np.log10(self.space.dearest().cost(self.space.sites))), FLOOR)

    @cached_property
    def best_hypervolume(self) -> float:
        """Hypervolume of the exact front."""
        return hypervolume(*self.front_points(), self.reference)

    def share_of_best(self, vectors: Levels) -> float:
        """Return the noise-free hypervolume of the plans ``vectors``, as a share of the exact front's."""
        costs = self.space.costs(vectors)
        there = costs > 0
        hv = hypervolume(np.log10(costs[there].astype(float)), self.score(vectors[there]), self.reference)
        return hv / self.best_hypervolume

    def observe(self, plan: Plan, rng: np.random.Generator) -> float:
        """Return one noisy score."""
        return float(self.score(self.space.encode(plan)[None])[0] + NOISE * rng.standard_normal())


def bert_base_sites() -> Sites:
    """Return the sites of a model of the dimensions of BERT-base."""
    return fake_sites("encoder", LAYERS, 768, 3072, 12, 12)


# -- 15 variables: the AutoPEFT space ---------------------------------------------------------------------------------


def _share(sizes: Scores, half: float) -> Scores:
    """Diminishing returns: half of the benefit at size ``half``."""
    return sizes / (sizes + half)


def _autopeft_parts(space: Space, vectors: Levels) -> tuple[Scores, Scores, Scores, Scores]:
    """Return the three sizes (n,) and the switches (n, layers)."""
    by_name = {v.name: (k, np.array(v.values, dtype=float)) for k, v in enumerate(space.variables) if v.kind == "size"}
    op_of = {c.size_variable: c.op for c in space.choices}
    size = {op_of[name]: values[vectors[:, k]] for name, (k, values) in by_name.items()}
    return size["serial"], size["parallel"], size["prefix"], vectors[:, 3:].astype(float)


def saturating(space: Space) -> Callable[[Levels], Scores]:
    """Every module and layer helps, later ones more, with diminishing returns."""
    weight = np.linspace(0.3, 1.0, LAYERS)

    def score(vectors: Levels) -> Scores:
        s, p, t, on = _autopeft_parts(space, vectors)
        strength = 0.5 * _share(s, 12) + 0.8 * _share(p, 96) + 0.3 * _share(t, 4)
        return FLOOR + 0.4 * (1 - np.exp(-(on @ weight) * strength / 2.5))

    return score


def sweet_spot(space: Space) -> Callable[[Levels], Scores]:
    """Modules interact; large parallel adapters in many layers diverge, and too many parameters overfit."""
    weight = np.exp(-0.5 * ((np.arange(LAYERS) - 7.5) / 3.0) ** 2)

    def score(vectors: Levels) -> Scores:
        s, p, t, on = _autopeft_parts(space, vectors)
        S, P, T = _share(s, 12), _share(p, 48), _share(t, 3)
        strength = np.maximum(0.6 * S + 0.6 * P + 0.3 * T - 0.5 * S * P + 0.4 * T * P, 0.0)
        gain = 0.38 * (1 - np.exp(-(on @ weight) * strength / 2.0))
        diverged = 0.25 * (on.mean(axis=1)) / (1 + np.exp(-3.0 * (np.log2(1 + p) - 8.0)))
        crowded = 0.06 / (1 + np.exp(-(on.sum(axis=1) * (s + p + t) - 2500.0) / 500.0))
        return FLOOR + gain - diverged - crowded

    return score


def few_layers(space: Space) -> Callable[[Levels], Scores]:
    """Five layers carry everything, neighbours help each other, others harm a little; serial adapters do nothing."""
    good = np.isin(np.arange(LAYERS), (3, 4, 8, 9, 10)).astype(float)

    def score(vectors: Levels) -> Scores:
        _, p, t, on = _autopeft_parts(space, vectors)
        useful = on * good
        together = (useful[:, 1:] * useful[:, :-1]).sum(axis=1)
        strength = 0.9 * _share(p, 24) + 0.5 * _share(t, 2)
        gain = 0.4 * (1 - np.exp(-(useful.sum(axis=1) + 0.5 * together) * strength / 3.0))
        return FLOOR + gain - 0.006 * (on * (1 - good)).sum(axis=1)

    return score


def _enumerated_front(space: Space, score: Callable[[Levels], Scores]) -> tuple[Scores, Scores]:
    """Return the exact front of a space that can be enumerated."""
    candidates = Candidates(Encoder(space), 10**12, np.log10)
    costs, scores = np.empty(0), np.empty(0)
    for indices in np.array_split(candidates.indices, 200):
        vectors = candidates.encoder.points_at(indices.astype(np.int64))[:, :-1]
        costs = np.concatenate([costs, np.log10(space.costs(vectors).astype(float))])
        scores = np.concatenate([scores, score(vectors)])
        kept = front(costs, scores)
        costs, scores = costs[kept], scores[kept]
    return costs, scores


# -- 60 and more variables: sizes layer by layer ----------------------------------------------------------------------

SIZES = (1, 2, 4, 8, 16, 32, 64)


def layerwise_space(sites: Sites, modules: tuple[tuple[str, str], ...]) -> Space:
    """Return the space of every module ``(place in the layer, op)`` in every layer, each with its own size."""
    choices = [Choice.untied(f"layers.{layer}.{place}", op, SIZES) for layer in range(LAYERS) for place, op in modules]
    return Space(f"layerwise-{len(choices)}", tuple(choices), sites)


FIVE = (("attention.q", "lora"), ("attention.v", "lora"), ("ffn.up", "lora"), ("ffn", "serial"), ("ffn", "parallel"))
SIX = (*FIVE, ("attention", "prefix"))

LayerGain = Callable[[int, Scores], Scores]
"""Gain of one layer, given its index and the sizes (n, modules) in it."""


def saturating_layer(layer: int, sizes: Scores) -> Scores:
    """Modules of one layer share what there is to gain; later layers have more of it."""
    strength = _share(sizes, 6.0) @ np.array([0.6, 1.0, 0.5, 0.8, 0.9])
    return (0.3 + 0.7 * layer / (LAYERS - 1)) * (1 - np.exp(-strength))


def sparse_layer(layer: int, sizes: Scores) -> Scores:
    """Eight of sixty variables matter, the others cost a little when they are there."""
    matters = {1: (1,), 4: (1, 4), 6: (3,), 8: (1, 4), 10: (0, 3)}
    useful = np.isin(np.arange(sizes.shape[1]), matters.get(layer, ()))
    return 1.2 * _share(sizes, 4.0) @ useful - 0.03 * (sizes > 0) @ ~useful


def overfitting_layer(layer: int, sizes: Scores) -> Scores:
    """Middle layers gain most, attention and FFN modules help each other, large sizes overfit."""
    weight = np.exp(-0.5 * ((layer - 6.5) / 3.0) ** 2)
    attention = _share(sizes, 3.0) @ np.array([0.5, 0.8, 0, 0, 0, 0.5])
    ffn = _share(sizes, 6.0) @ np.array([0, 0, 0.5, 0.7, 0.8, 0])
    overfit = 0.12 * np.log2(np.maximum(sizes / 8.0, 1.0)).mean(axis=1)
    return weight * (1 - np.exp(-attention - ffn - 0.5 * attention * ffn)) - overfit


def _layerwise_score(space: Space, gain: LayerGain, scale: float) -> Callable[[Levels], Scores]:
    values = np.array((0, *SIZES), dtype=float)

    def score(vectors: Levels) -> Scores:
        sizes = values[vectors].reshape(len(vectors), LAYERS, vectors.shape[1] // LAYERS)
        total = sum(gain(layer, sizes[:, layer]) for layer in range(LAYERS))
        return FLOOR + 0.4 * (1 - np.exp(-total / scale))

    return score


def _layerwise_front(space: Space, gain: LayerGain, scale: float) -> tuple[Scores, Scores]:
    """Return the exact front of a layerwise score, to a resolution of 1/2000 decade of cost.

    Costs and gains add over layers, so the front of k layers is the front of the sums of the front of k - 1 layers and
    that of the k-th; the score is a monotone function of the sum of gains.
    """
    modules = len(space.variables) // LAYERS
    grid = np.indices((len(SIZES) + 1,) * modules).reshape(modules, -1).T
    sizes = np.array((0, *SIZES), dtype=float)[grid]
    padded = np.zeros((len(grid), len(space.variables)), dtype=np.int64)
    padded[:, :modules] = grid
    layer_costs = space.costs(padded).astype(float)  # every layer has the same prices
    costs, gains = np.zeros(1), np.zeros(1)
    for layer in range(LAYERS):
        own = gain(layer, sizes)
        kept = front(layer_costs, own)
        all_costs = (costs[:, None] + layer_costs[kept][None]).ravel()
        all_gains = (gains[:, None] + own[kept][None]).ravel()
        costs, gains = _thinned(all_costs, all_gains)
    there = costs > 0
    return np.log10(costs[there]), FLOOR + 0.4 * (1 - np.exp(-gains[there] / scale))


def _thinned(costs: Scores, gains: Scores) -> tuple[Scores, Scores]:
    """Return the front with at most one point, the best, in each 1/2000 decade."""
    order = np.lexsort((-gains, np.floor(2000 * np.log10(np.maximum(costs, 0.1)))))
    bins = np.floor(2000 * np.log10(np.maximum(costs[order], 0.1)))
    first = order[np.r_[True, np.diff(bins) > 0]]
    kept = front(costs[first], gains[first])
    return costs[first][kept], gains[first][kept]


def functions() -> dict[str, Function]:
    """Return the six problems by name."""
    sites = bert_base_sites()
    base = load_space("autopeft", sites)
    problems = {}
    for make in (saturating, sweet_spot, few_layers):
        score = make(base)
        name = f"{make.__name__}-15"
        problems[name] = Function(name, base, score, lambda score=score: _enumerated_front(base, score))
    for gain, modules, scale in (
        (saturating_layer, FIVE, 3.0),
        (sparse_layer, FIVE, 2.5),
        (overfitting_layer, SIX, 2.0),
    ):
        space = layerwise_space(sites, modules)
        name = f"{gain.__name__}-{len(space.variables)}"
        args = (space, gain, scale)
        problems[name] = Function(name, space, _layerwise_score(*args), lambda args=args: _layerwise_front(*args))
    return problems
