"""Small spaces for the tests of the surrogate and of AutoPEFT. Not a test module by itself."""

from __future__ import annotations

import numpy as np

from fake_sites import fake_sites
from peftscout.space import Choice, Space, load_space
from peftscout.surrogate.features import Encoder


def autopeft_space(layers: int = 3, width: int = 32) -> Space:
    """The AutoPEFT preset on a model of ``layers`` layers."""
    return load_space("autopeft", fake_sites("encoder", layers, width, 2 * width))


def layerwise_space(layers: int = 4) -> Space:
    """A size of its own for LoRA on q and for the serial adapter in every layer: no switches."""
    sites = fake_sites("encoder", layers)
    choices = [
        Choice.untied(f"layers.{n}.{place}", op, (1, 2, 4, 8))
        for n in range(layers)
        for place, op in (("attention.q", "lora"), ("ffn", "serial"))
    ]
    return Space("layerwise", tuple(choices), sites)


def switched_space(layers: int = 3) -> Space:
    """A size and a switch of its own for every layer: neither counts without the other."""
    sites = fake_sites("encoder", layers)
    choices = [Choice(f"layers.{n}.ffn", "serial", (1, 2, 4), f"size{n}", f"on{n}") for n in range(layers)]
    return Space("switched", tuple(choices), sites)


def all_points(encoder: Encoder) -> np.ndarray:
    """Every point, idle variables and the empty plan included."""
    return encoder.points_at(np.arange(encoder.combinations, dtype=np.int64))
