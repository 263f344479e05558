"""How a plan is trained: plain values, taken apart from the study configuration by whoever reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peftscout.training.arithmetic import FP32, Arithmetic
from peftscout.training.dropout import BackboneDropout


@dataclass(frozen=True)
class TrainingSettings:
    """See `peftscout.config.TrainingConfig` for the meaning and the defaults of each field.

    Attributes:
        micro_batches: passes that an optimiser step is divided into; its gradient is that of the whole batch.
        arithmetic: chosen from the configured precision and the machine, see `peftscout.training.arithmetic.choose`.
    """

    learning_rates: Mapping[str, float]
    batch_size: int = 32
    eval_batch_size: int = 128
    weight_decay: float = 0.0
    warmup: float = 0.06
    clip: float = 1.0
    evaluations: int = 2
    backbone_dropout: BackboneDropout = "off"
    shortcuts: bool = True
    packing: bool = True
    cache_bytes: int = 4_000_000_000
    micro_batches: int = 1
    arithmetic: Arithmetic = FP32
