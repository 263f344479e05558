"""Where and in which precision training runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

Precision = Literal["auto", "fp32", "bf16"]


class Device:
    """An accelerator, or the CPU, with the precision of its forward passes.

    Autocast is ours and not accelerate's, whose precision is fixed for the life of a process by the first who asks.

    Args:
        precision: ``auto`` is bf16 where an accelerator has it, else fp32.
    """

    def __init__(self, precision: Precision) -> None:
        self.accelerator = Accelerator(mixed_precision="no")
        self.torch_device: torch.device = self.accelerator.device
        has_bf16 = self.torch_device.type == "cuda" and torch.cuda.is_bf16_supported()
        self.bf16 = precision == "bf16" or (precision == "auto" and has_bf16)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.bf16)

    def put(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch on the device."""
        return {name: tensor.to(self.torch_device, non_blocking=True) for name, tensor in batch.items()}
