"""A supernet: every choice of a space at once on one frozen backbone, built by the one builder and gated.

Sizes are nested: size s of an op is its first s units, so every op is built once, at its largest size, and one product
serves all sizes, its units weighted by the gates (weight sharing as in slimmable networks and BIPEFT). A module whose
gate is closed is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.gates import Floats, Gates, Modules
from peftscout.ops import OPS, Gate, OpSettings, OtherRows
from peftscout.plan import Plan
from peftscout.space import Space
from peftscout.tuner.building import wrappers
from peftscout.tuner.layer import PeftscoutLayer
from peftscout.tuner.state import active_adapter


class Leaves(NamedTuple):
    """The gates as tensors that collect gradients: ``on [modules]`` and ``size [modules, levels]``."""

    on: Tensor
    size: Tensor

    def gradients(self) -> tuple[Floats, Floats]:
        """Return the gradients of both; zero where no gradient arrived."""
        return _gradient(self.on), _gradient(self.size)


class OtherLeaves(NamedTuple):
    """What collects the gradients of the other rows of a batch: the gates, and copies of each module's parameters."""

    gates: Leaves
    parameters: Sequence[Sequence[Tensor]]


class _Place(NamedTuple):
    """Where one op of a module sits."""

    layer: PeftscoutLayer
    path: str
    op: str


class Supernet:
    """A space, realised on a backbone. Make it with `supernet`, which also takes it down again.

    Attributes:
        model: the adapted model; its gates are all open at the largest size until `set_gates`.
        modules: of the space.
    """

    def __init__(self, model: Any, modules: Modules) -> None:
        self.model = model
        self.modules = modules
        self._adapter = active_adapter(model)
        at = {
            (hosted.site.id, hosted.op): _Place(layer, path, hosted.op)
            for path, layer in wrappers(model)
            for hosted in layer.hosted.get(self._adapter, ())
        }
        self._places = [[at[choice.site, choice.op] for choice in module.choices] for module in modules]
        self._layers = list({id(place.layer): place.layer for place in at.values()}.values())
        self._device = next(iter(self.parameters())).device
        self._nested = self._units_of_sizes()

    @classmethod
    def build(
        cls, model: PreTrainedModel, space: Space, model_map: ModelMap, *, settings: OpSettings | None, seed: int
    ) -> Self:
        """Build every choice of ``space`` into ``model`` at its largest size, freshly initialised, and check it.

        Raises:
            SpaceError: when the space has switches.
            TunerError: when a choice cannot be realised.
        """
        modules = Modules(space)
        everything = space.dearest()
        adapted = tuner.build(model, everything, model_map, settings=settings, seed=seed)
        try:
            tuner.check_built(adapted, everything)
            return cls(adapted, modules)
        except BaseException:
            tuner.reset(adapted)
            raise

    # -- gates --------------------------------------------------------------------------------------------------------

    def set_gates(self, gates: Gates) -> None:
        """Let the next passes compute with ``gates``; closed modules are skipped and get no gradient at all."""
        each = self._gates(self._tensor(gates.on), self._tensor(gates.size))
        self._install((place, each[m]) for m in np.flatnonzero(gates.on) for place in self._places[m])

    def trace_gates(self, gates: Gates) -> Leaves:
        """Let the next passes compute with ``gates`` and return them as leaves of the graph.

        Closed modules are computed too, so that the gradient says what opening them would do; of those that are not
        `Gates.probed` it is zero.
        """
        leaves = self._leaves(gates)
        each = self._gates(*leaves)
        computed = np.ones(len(each), dtype=bool) if gates.probed is None else gates.probed | (gates.on != 0)
        self._install((place, each[m]) for m in np.flatnonzero(computed) for place in self._places[m])
        return leaves

    def trace_rows(self, gates: Gates, others: Gates, first: int, rows: int, *, weights: bool) -> OtherLeaves:
        """Let the next passes compute a batch with ``gates``, but its rows from ``first`` on with ``others``.

        The gradients of the two parts arrive apart: those of the first rows in the parameters (of closed modules they
        are zero), those of the others in what is returned.

        Args:
            gates: of the first rows.
            others: of the other rows, traced as by `trace_gates`.
            first: where the other rows begin.
            rows: of the batch.
            weights: whether the parameters' gradients from the other rows are wanted, too.
        """
        leaves = self._leaves(others)
        mine, theirs = self._gates(self._tensor(gates.on), self._tensor(gates.size)), self._gates(*leaves)
        parameters: list[list[Tensor]] = []
        installed: list[tuple[_Place, Gate]] = []
        for m, places in enumerate(self._places):
            parameters.append([])
            for place in places:
                copies = {kind: p.detach().requires_grad_(weights) for kind, p in self._tensors(place).items()}
                parameters[m] += copies.values()
                installed.append((place, mine[m]._replace(others=OtherRows(theirs[m], copies, first, rows))))
        self._install(installed)
        return OtherLeaves(leaves, parameters)

    def _leaves(self, gates: Gates) -> Leaves:
        return Leaves(self._tensor(gates.on).requires_grad_(), self._tensor(gates.size).requires_grad_())

    def _gates(self, on: Tensor, size: Tensor) -> list[Gate]:
        """Return the gate of every module."""
        units = (size[:, None] @ self._nested).squeeze(1)
        sizes = [module.sizes for module in self.modules]
        return [
            Gate(factor, None if len(held) == 1 else weights[: held[-1]])
            for factor, weights, held in zip(on.unbind(), units.unbind(), sizes, strict=True)
        ]

    def _install(self, gates: Iterable[tuple[_Place, Gate]]) -> None:
        installed: dict[int, dict[str, Gate]] = {id(layer): {} for layer in self._layers}
        for place, gate in gates:
            installed[id(place.layer)][place.op] = gate
        for layer in self._layers:
            layer.gates = installed[id(layer)]

    def _units_of_sizes(self) -> Tensor:
        """Return ``[modules, levels, units]``: 1 where the size holds the unit; zeros pad all but the first axis."""
        sizes = [module.sizes for module in self.modules]
        nested = np.zeros((*self.modules.costs.shape, max(s[-1] for s in sizes)))
        for of_module, held in zip(nested, sizes, strict=True):
            of_module[: len(held)] = np.arange(nested.shape[2]) < np.array(held)[:, None]
        return self._tensor(nested)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float32), device=self._device)

    # -- parameters ---------------------------------------------------------------------------------------------------

    def parameters_of(self, module: int) -> list[nn.Parameter]:
        """Return the tensors of one module, in a fixed order."""
        return [p for place in self._places[module] for p in self._tensors(place).values()]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield everything that is trained: all modules, and the head."""
        for group in tuner.parameters_by_op(self.model).values():
            yield from group

    def slice(self, plan: Plan) -> dict[str, Tensor]:
        """Return copies of the tensors of ``plan``, head included, named as in the model that is built for it.

        `tuner.load_trainable_state` takes them: that model then computes what the supernet computes with the hard gates
        of the plan (`Gates.of_plan`).

        Raises:
            SpaceError: when the plan is not in the space.
        """
        state = {}
        for m, level in self.modules.levels_of(plan).items():
            size = self.modules[m].sizes[level]
            for place in self._places[m]:
                names = place.layer.names_of(place.op)
                for kind, tensor in OPS[place.op].shrink(self._tensors(place), size).items():
                    name = f"base_model.model.{place.path}.{names[kind]}.{self._adapter}"
                    state[name] = tensor.detach().clone()
        heads = {id(p) for p in tuner.parameters_by_op(self.model).get("head", [])}
        return state | {n: p.detach().clone() for n, p in self.model.named_parameters() if id(p) in heads}

    def _tensors(self, place: _Place) -> dict[str, nn.Parameter]:
        return place.layer.parameters_of(self._adapter, place.op)


@contextmanager
def supernet(
    model: PreTrainedModel, space: Space, model_map: ModelMap, *, settings: OpSettings | None = None, seed: int = 0
) -> Iterator[Supernet]:
    """Give the supernet of ``space`` on ``model``; afterwards the model is what it was, bit for bit.

    Raises:
        SpaceError: when the space has switches.
        TunerError: when a choice cannot be realised.
    """
    net = Supernet.build(model, space, model_map, settings=settings, seed=seed)
    try:
        yield net
    finally:
        tuner.reset(net.model)


def _gradient(leaf: Tensor) -> Floats:
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return np.asarray(gradient.double().cpu().numpy())
