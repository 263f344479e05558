"""`Slots`: several adapters of one model at work at once, each on its own rows of a batch, slot after slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from peftscout.errors import TunerError
from peftscout.ops import OPS
from peftscout.tuner.building import wrappers
from peftscout.tuner.layer import PeftscoutLayer
from peftscout.tuner.stacked_op import Stacked, StackedOp

TOGETHER = "together"
"""Name under which the heads of all slots, each on its own rows, stand among the trained copies of a head."""


class Stream:
    """A random stream of its own: inside ``with stream:`` torch draws from it, from where it was left last.

    Args:
        seed: it starts as torch does after ``torch.manual_seed(seed)``.
        device: on which the masks are drawn.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=self._cuda):
            torch.manual_seed(seed)
            self._own = self._state()
        self._outer = self._own

    def __enter__(self) -> None:
        self._outer = self._state()
        self._set(self._own)

    def __exit__(self, *_: object) -> None:
        self._own = self._state()
        self._set(self._outer)

    def _state(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self._cuda)]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._cuda, states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)


class Slots:
    """Lets the leaves, heads and dropouts of a model compute by slot; `close` takes that off again.

    Heads, and dropouts outside the backbone, run once per slot, in the random stream of the slot. The backbone runs
    once, so it must not draw random numbers: it has to be in evaluation mode.

    Attributes:
        adapters: at work, in the order of their rows.
        streams: of each of them.
    """

    def __init__(self, peft_model: PeftModel) -> None:
        self.adapters: list[str] = []
        self.streams: list[Stream] = []
        self._model = peft_model
        self._on = False
        base = peft_model.get_base_model()
        self._backbone = getattr(base, base.base_model_prefix, base)
        self._heads = [module for module in base.modules() if isinstance(module, ModulesToSaveWrapper)]
        for head in self._heads:
            head.update(TOGETHER)
            head.modules_to_save[TOGETHER] = _Call(self._head(head))
        inside = {id(module) for root in (self._backbone, *self._heads) for module in root.modules()}
        self._dropouts = [m for m in base.modules() if isinstance(m, _DropoutNd) and id(m) not in inside]
        for dropout in self._dropouts:
            dropout.forward = self._dropout(dropout.forward)
        self._guard = peft_model.register_forward_pre_hook(self._require_shares, with_kwargs=True)

    def install(self, adapters: Sequence[str], streams: Sequence[Stream]) -> None:
        """Let the next passes compute ``adapters``, all of which the model holds, each in its stream."""
        self.adapters, self.streams, self._on = list(adapters), list(streams), True
        for _, layer in wrappers(self._model):
            layer.stacked = Stacked(list(_stacked_ops(layer, self.adapters)), len(self.adapters))
        for head in self._heads:
            head.set_adapter(TOGETHER)

    def suspend(self) -> None:
        """Let the next passes compute the active adapter on all rows, as any adapted model does."""
        self._on = False
        for _, layer in wrappers(self._model):
            layer.stacked = None

    def close(self) -> None:
        """Leave nothing behind on the model."""
        self.suspend()
        self._guard.remove()
        for dropout in self._dropouts:
            del dropout.forward
        for head in self._heads:
            head.delete_adapter(TOGETHER, None)

    def _require_shares(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise a TunerError unless the next pass can be shared by the slots."""
        if not self._on:
            return
        if not self.adapters:
            raise TunerError("no slot of this stack is at work; refill one")
        rows = next((len(each) for each in (*args, *kwargs.values()) if isinstance(each, Tensor)), 0)
        if rows % len(self.adapters):
            raise TunerError(f"a batch of {rows} rows cannot be shared by {len(self.adapters)} slots alike")
        if self._backbone.training:
            raise TunerError(
                "the backbone is in training mode, where its dropout would draw one mask for all slots; "
                "call Stack.train() (backbone dropout 'off') before a stacked pass"
            )

    def _head(self, head: ModulesToSaveWrapper) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            pieces = []
            for adapter, stream, rows in zip(self.adapters, self.streams, x.chunk(len(self.adapters)), strict=True):
                own = head.modules_to_save[adapter]
                with stream if _draws(own) else nullcontext():
                    pieces.append(own(rows, *args, **kwargs))
            return torch.cat(pieces)

        return forward

    def _dropout(self, alone: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        module = alone.__self__  # type: ignore[attr-defined]

        def forward(x: Tensor) -> Tensor:
            if not self._on or not _draws(module):
                return alone(x)
            pieces = []
            for stream, rows in zip(self.streams, x.chunk(len(self.streams)), strict=True):
                with stream:
                    pieces.append(alone(rows))
            return torch.cat(pieces)

        return forward


class _Call(nn.Module):
    """A function as a module, without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._function(*args, **kwargs)


def _draws(module: nn.Module) -> bool:
    return any(m.training and m.p for m in module.modules() if isinstance(m, _DropoutNd))


def _stacked_ops(layer: PeftscoutLayer, adapters: Sequence[str]) -> Iterator[StackedOp]:
    """Yield what the leaf computes for ``adapters``, in the order in which ops are applied."""
    by_slot = [{(each.op, each.site.id): each for each in layer.hosted.get(name, ())} for name in adapters]
    places = dict.fromkeys(place for hosted in by_slot for place in hosted)
    order = list(OPS)
    for op, site in sorted(places, key=lambda place: order.index(place[0])):
        hosted = tuple(own.get((op, site)) for own in by_slot)
        holders = {k: adapters[k] for k, each in enumerate(hosted) if each is not None}
        tensors = tuple(layer.parameters_of(name, op) if k in holders else None for k, name in enumerate(adapters))
        yield StackedOp(hosted, tensors, layer.settings[next(iter(holders.values()))])
