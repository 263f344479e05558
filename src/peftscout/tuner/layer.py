"""`PeftscoutLayer`: one wrapper for all ops of one leaf, applied in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from peftscout.errors import TunerError
from peftscout.ops import OPS, Affine, Gate, OpSettings, apply, generator_for
from peftscout.tuner.config import HostedOp
from peftscout.tuner.host import read_affine, write_affine
from peftscout.tuner.registration import PREFIX
from peftscout.tuner.stacked_op import Stacked


class SublayerInput:
    """Carries the input of a sublayer from its first leaf to the wrapper of its last, for ``parallel``.

    It is the forward pre-hook of the first leaf, and the wrapper of the last holds it too. Being an object and not a
    closure, it is copied along with the model: in a copy, both ends hold the same copy of it.
    """

    def __init__(self) -> None:
        self._value: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Take note of what enters the sublayer."""
        self._value = args[0]

    def take(self) -> Tensor | None:
        """Return what entered since the last call, and forget it."""
        value, self._value = self._value, None
        return value

    def keep(self, part: Callable[[Tensor], Tensor]) -> None:
        """Keep only a part of what entered, where the last leaf computes no more than that part."""
        if self._value is not None:
            self._value = part(self._value)


class PeftscoutLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A leaf (Linear, Conv1D, norm) with the ops of its sites.

    The tensors are kept in one ``ParameterDict`` per kind, keyed by adapter name, so that their names are flat:
    ``<module>.peftscout_lora_A.<adapter>``.
    """

    adapter_layer_names: tuple[str, ...] = ()  # of an instance: the containers that it has
    other_param_names: tuple[str, ...] = ("hosted", "settings")

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hosted: dict[str, tuple[HostedOp, ...]] = {}
        self.settings: dict[str, OpSettings] = {}
        self.sublayer_input: SublayerInput | None = None
        self.gates: Mapping[str, Gate] | None = None  # of a supernet: an op without a gate is closed, and skipped
        self.stacked: Stacked | None = None  # of many slots at once: instead of the active adapters
        self.merged_adapters: list[str] = []
        self._containers: dict[str, dict[str, str]] = {}  # op -> name of a tensor -> container
        self._unmerged: dict[str, Tensor] = {}
        self._active_adapter = adapter_name

    def update_layer(
        self, adapter_name: str, ops: Sequence[HostedOp], settings: OpSettings, seed: int, inference_mode: bool
    ) -> None:
        """Create the tensors of ``adapter_name``, initialised by ``seed`` as in `ops`."""
        self.hosted[adapter_name] = tuple(ops)
        self.settings[adapter_name] = settings
        for site, name, size in ops:
            op = OPS[name]
            tensors = op.init(op.shapes(site, size), generator_for(seed, site.id, name))
            self._containers[name] = {kind: f"{PREFIX}{name}_{kind}" for kind in tensors}
            for kind, tensor in tensors.items():
                self._container(name, kind)[adapter_name] = nn.Parameter(tensor)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _container(self, op: str, kind: str) -> nn.ParameterDict:
        name = self._containers[op][kind]
        if name not in self._modules:
            self.add_module(name, nn.ParameterDict())
            self.adapter_layer_names = (*self.adapter_layer_names, name)
        container = self._modules[name]
        assert isinstance(container, nn.ParameterDict)
        return container

    def parameters_of(self, adapter_name: str, op: str) -> dict[str, nn.Parameter]:
        """Return the tensors of ``op`` by the names that it gives them."""
        return {kind: self._container(op, kind)[adapter_name] for kind in self._containers[op]}

    def names_of(self, op: str) -> Mapping[str, str]:
        """Return the name of the container of each tensor of ``op``, by the name that the op gives it."""
        return self._containers[op]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the leaf's output with the ops of each active adapter applied to it, in the order of `ops.OPS`."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        sublayer_input = self.sublayer_input.take() if self.sublayer_input is not None else None
        if self.stacked is not None:
            return self.stacked.forward(x, y, sublayer_input)
        for adapter, hosted in self._at_work():
            if hosted.op == "prefix" or self._is_closed(hosted.op):
                continue  # a prefix is applied where the attention is computed
            source = x
            if hosted.op == "parallel":
                if sublayer_input is None:
                    raise TunerError(f"{hosted.place}: nothing went through {hosted.site.input_module} before this")
                source = sublayer_input
            y = self._applied(adapter, hosted.op, source, y)
        return y

    def attend_to_prefix(self, queries: Tensor, output: Tensor) -> Tensor:
        """Add the prefixes hosted here to the attention's ``output [batch, queries, heads, head_size]``.

        ``queries [batch, heads, queries, head_size]`` are scaled already.
        """
        if self.stacked is not None:
            return self.stacked.attend_to_prefix(queries, output)
        for adapter, hosted in self._at_work():
            if hosted.op == "prefix" and not self._is_closed("prefix"):
                output = self._applied(adapter, "prefix", queries, output)
        return output

    def _is_closed(self, op: str) -> bool:
        return self.gates is not None and op not in self.gates

    def _applied(self, adapter: str, op: str, x: Tensor, y: Tensor) -> Tensor:
        gate = None if self.gates is None else self.gates[op]
        return apply(OPS[op], self.parameters_of(adapter, op), x, y, self.settings[adapter], gate)

    def _at_work(self) -> Iterator[tuple[str, HostedOp]]:
        if self.disable_adapters or self.merged:
            return
        for adapter in self.active_adapters:
            for hosted in self.hosted.get(adapter, ()):
                yield adapter, hosted

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the ops of the adapters into the weight and bias of the leaf.

        Raises:
            TunerError: when an op does not fold into this leaf, or (``safe_merge``) the result is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.hosted]
        if not names:
            return
        leaf = self.get_base_layer()
        merged = read_affine(leaf)
        for name in names:
            merged = self.folded(merged, name)
        if safe_merge and not all(torch.isfinite(tensor).all() for tensor in merged if tensor is not None):
            raise TunerError(f"{self.hosted[names[0]][0].site.id}: the merged weights are not finite")
        if not self._unmerged:
            self._unmerged = {name: p.detach().clone() for name, p in leaf.named_parameters(recurse=False)}
        write_affine(leaf, merged)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Give the leaf its own weight and bias back, bit for bit."""
        with torch.no_grad():
            for name, before in self._unmerged.items():
                self.get_base_layer().get_parameter(name).copy_(before)
        self._unmerged = {}
        self.merged_adapters.clear()

    def folded(self, host: Affine, adapter_name: str) -> Affine:
        """Return ``host`` with every op of ``adapter_name`` folded in.

        Raises:
            TunerError: naming the op that does not fold.
        """
        for hosted in self.hosted.get(adapter_name, ()):
            params = {name: p.detach() for name, p in self.parameters_of(adapter_name, hosted.op).items()}
            folded = OPS[hosted.op].fold(params, host, self.settings[adapter_name])
            if folded is None:
                without = " without a bias" if hosted.op == "bias" else ""
                raise TunerError(f"{hosted.place} does not fold into a {type(self.get_base_layer()).__name__}{without}")
            host = folded
        return host

    def __getattr__(self, name: str) -> Any:
        """Look up in the leaf what is not here: some models read ``in_features`` or ``eps`` of their parts."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)
