"""Where training runs, and with which arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from peftscout import tuner
from peftscout.training.arithmetic import FP32, Arithmetic


class Device:
    """An accelerator, or the CPU, with the arithmetic of its forward passes.

    Autocast is ours and not accelerate's, whose precision is fixed for the life of a process by the first who asks.

    Args:
        arithmetic: of the forward passes.
        place: where a model is that cannot be moved; ``None``: what accelerate finds.
    """

    def __init__(self, arithmetic: Arithmetic = FP32, place: torch.device | None = None) -> None:
        self.accelerator = Accelerator(mixed_precision="no")
        self.torch_device: torch.device = place or self.accelerator.device
        self.arithmetic = arithmetic

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast(self.torch_device.type, torch.bfloat16, enabled=self.arithmetic.dtype == "bf16")

    def put(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch on the device."""
        return {name: tensor.to(self.torch_device, non_blocking=True) for name, tensor in batch.items()}

    @contextmanager
    def attention_of(self, model: Any) -> Iterator[None]:
        """Let ``model`` compute with the attention of the arithmetic; it has its own back afterwards."""
        before = model.config._attn_implementation
        wanted = self.arithmetic.attention or before
        if wanted != before:
            model.set_attn_implementation(wanted)
        try:
            yield
        finally:
            if wanted != before:
                model.set_attn_implementation(before)

    @contextmanager
    def exact_heads(self, model: nn.Module) -> Iterator[None]:
        """Keep the task heads of an adapted ``model`` in fp32: bf16 has 8 bits, too few for a number from 0 to 5."""
        with ExitStack() as stack:
            if self.arithmetic.dtype != "fp32":
                for head in tuner.heads(model):
                    stack.enter_context(_exact(head, self.torch_device.type))
            yield


@contextmanager
def _exact(module: nn.Module, device_type: str) -> Iterator[None]:
    forward = module.forward

    def exact(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return forward(
                *(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args), **kwargs
            )

    module.forward = exact
    try:
        yield
    finally:
        del module.forward
