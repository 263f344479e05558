"""A stack: K plans of any mixture of ops in one forward and one backward pass on one frozen backbone.

A batch of K * B rows, slot after slot, goes through the frozen weights at once. Each op is one batched product over the
slots that hold it, smaller sizes padded with units that do nothing; heads, and dropouts outside the backbone, run once
per slot. So every slot computes what it computes alone, and only rows of its own reach its parameters: those are
ordinary ones, each slot with an optimiser, a schedule and a clipping of its own. One process then keeps busy where a
single small batch would leave it waiting for dispatch (HFTA, Wang et al., 2021; here over plans of different shapes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.ops import OpSettings
from peftscout.plan import Plan
from peftscout.training.dropout import set_training
from peftscout.tuner.building import add
from peftscout.tuner.checks import EXACT, ROUNDED, evaluation, perturbed, share_of_largest
from peftscout.tuner.slots import Slots, Stream

ALONE = "default"
"""The adapter name of a model that is built for one plan, which the states of all slots use."""


class Stack:
    """Plans at work together. Make it with `stacked`, which also takes it down again.

    Slots are counted from 0 and keep their numbers. Those at work are in `live`; a batch holds rows for each of them,
    equally many, in ascending order.

    Attributes:
        model: the adapted model; call it with the batch of all live slots.
        plans: by slot.
    """

    def __init__(self, model: PeftModel, slots: Slots, model_map: ModelMap, settings: OpSettings | None) -> None:
        self.model = model
        self.plans: list[Plan] = []
        self._adapters: list[str] = []
        self._streams: list[Stream] = []
        self._live: list[int] = []
        self._fillings = 0
        self._model_map = model_map
        self._settings = settings
        self._slots = slots

    # -- slots --------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of live slots."""
        return len(self._live)

    @property
    def live(self) -> tuple[int, ...]:
        """The slots at work, ascending."""
        return tuple(self._live)

    def refill(self, slot: int, plan: Plan, seed: int) -> None:
        """Give ``slot`` a new plan, initialised and with a random stream as if it were trained alone with ``seed``.

        The parameters of all other slots stay the objects that they are.

        Raises:
            PlanError, TunerError: when the plan cannot be realised. The stack is then as it was.
        """
        self._require_slot(slot)
        fresh, old = f"slot{slot}_{self._fillings}", self._adapters[slot]
        self._fillings += 1
        try:
            self._build(fresh, plan, seed)
            self._adapters[slot], self.plans[slot], self._streams[slot] = fresh, plan, self._stream(seed)
            self._live = sorted({*self._live, slot})
            self.model.delete_adapter(old)
        finally:
            self._install()

    def retire(self, slot: int) -> None:
        """Take ``slot`` out of the passes; its tensors stay readable until it is filled again."""
        self._require_slot(slot)
        self._live = [k for k in self._live if k != slot]
        self._install()

    def rng(self, slot: int) -> AbstractContextManager[None]:
        """Return the context in which torch draws from the random stream of ``slot``, which then moves on.

        At first it is that of ``torch.manual_seed(seed)``. To read or set torch's state inside is to read or set
        that of the slot.
        """
        self._require_slot(slot)
        return self._streams[slot]

    @contextmanager
    def alone(self, slot: int) -> Iterator[PeftModel]:
        """Give the model as if it had been built for the plan of ``slot`` alone, for batches of its rows only.

        Tensors of the other slots are not trained meanwhile.
        """
        self._require_slot(slot)
        self._slots.suspend()
        self._activate(self._adapters[slot])
        try:
            yield self.model
        finally:
            self._install()

    # -- passes -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Switch to training; the backbone stays in evaluation mode, where it draws no masks."""
        set_training(self.model, "off")

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the part of each live slot of a tensor of all their rows."""
        return rows.chunk(len(self))

    def check(self, batch: Mapping[str, Tensor], slots: Sequence[int] | None = None) -> None:
        """Check with a few rows that each of ``slots`` (live ones, by default all) computes what it computes alone.

        Also that the gradient reaches every tensor of its plan. What is still zero gets small random values for the
        check. Values, gradients, modes and random streams are put back exactly.

        Args:
            batch: of one slot, without labels or with.
            slots: to check.

        Raises:
            TunerError: when one does not; plans cannot be stacked on this model then.
        """
        batch = {name: tensor for name, tensor in batch.items() if name != "labels"}
        parameters = [p for k in self._live for group in self.parameters_by_op(k).values() for p in group]
        with torch.no_grad(), perturbed(parameters), evaluation(self.model):
            repeated = {name: torch.cat([tensor] * len(self)) for name, tensor in batch.items()}
            together = dict(zip(self._live, self.split(_logits(self.model(**repeated))), strict=True))
            for k in self._live if slots is None else slots:
                with self.alone(k):
                    _require_equal(together[k], _logits(self.model(**batch)), k)
        for k in self._live if slots is None else slots:
            with self.alone(k):
                tuner.check_gradients(self.model, self.plans[k], batch)

    # -- tensors ------------------------------------------------------------------------------------------------------

    def parameters_by_op(self, slot: int) -> dict[str, list[nn.Parameter]]:
        """Return the trained tensors of each op of ``slot``, and those of its head (`tuner.parameters_by_op`)."""
        self._require_slot(slot)
        return tuner.parameters_by_op(self.model, self._adapters[slot])

    def trainable_state(self, slot: int) -> dict[str, Tensor]:
        """Return copies of the trained tensors of ``slot``, named as in the model that is built for its plan alone."""
        self._require_slot(slot)
        state = tuner.trainable_state(self.model, self._adapters[slot])
        return {_renamed(name, self._adapters[slot], ALONE): tensor for name, tensor in state.items()}

    def load_trainable_state(self, slot: int, state: Mapping[str, Tensor]) -> None:
        """Write a `trainable_state` of this plan, from a slot or from a model built for it alone, into ``slot``.

        Raises:
            TunerError: when it is of another plan; nothing is written then.
        """
        self._require_slot(slot)
        adapter = self._adapters[slot]
        own = {_renamed(name, ALONE, adapter): tensor for name, tensor in state.items()}
        tuner.load_trainable_state(self.model, own, adapter)

    # -- adapters -----------------------------------------------------------------------------------------------------

    def _append(self, plan: Plan, seed: int) -> None:
        """Fill one more slot; the first is built already."""
        adapter = f"slot{len(self.plans)}"
        self._build(adapter, plan, seed)
        self._live.append(len(self.plans))
        self.plans.append(plan)
        self._adapters.append(adapter)
        self._streams.append(self._stream(seed))

    def _build(self, adapter: str, plan: Plan, seed: int) -> None:
        if adapter not in self.model.peft_config:
            add(self.model, plan, self._model_map, settings=self._settings, seed=seed, adapter_name=adapter)
        try:
            self._activate(adapter)
            tuner.check_built(self.model, plan)
        except BaseException:
            if self._adapters:
                self._activate(self._adapters[0])
            self.model.delete_adapter(adapter)
            raise

    def _stream(self, seed: int) -> Stream:
        return Stream(seed, next(self.model.parameters()).device)

    def _activate(self, adapter: str) -> None:
        """Make ``adapter`` the only one that is trained, and that the model computes alone."""
        self.model.set_adapter(adapter)
        others = [name for name in self.model.peft_config if name != adapter]
        self.model.set_requires_grad(others, False)

    def _install(self) -> None:
        self._activate(self._adapters[0])
        self._slots.install([self._adapters[k] for k in self._live], [self._streams[k] for k in self._live])
        self.model.set_requires_grad(self._adapters, True)

    def _require_slot(self, slot: int) -> None:
        if not 0 <= slot < len(self._adapters):
            raise TunerError(f"slot {slot}: this stack has the slots 0 to {len(self._adapters) - 1}")


@contextmanager
def stacked(
    model: PreTrainedModel,
    plans: Sequence[Plan],
    model_map: ModelMap,
    *,
    seeds: Sequence[int],
    settings: OpSettings | None = None,
) -> Iterator[Stack]:
    """Give a stack of ``plans`` on ``model``; afterwards the model is what it was, bit for bit.

    Every slot starts, bit for bit, from what `tuner.build` gives its plan and seed alone. With one plan the stack
    computes bit for bit what that model computes; with more, up to rounding.

    Args:
        model: without adapters.
        plans: at least one; equal plans may be there more than once.
        model_map: of this model.
        seeds: of each plan: for initialisation and random stream.
        settings: scales and activations of the ops, for all plans.

    Raises:
        PlanError: when a plan does not fit the model.
        TunerError: when a plan cannot be realised, or there are not as many seeds as plans, or no plans.
    """
    if not plans or len(plans) != len(seeds):
        raise TunerError(
            f"{len(plans)} plans and {len(seeds)} seeds: a stack takes at least one plan, each with a seed"
        )
    for plan in plans:
        plan.check(model_map.sites)
    built = tuner.build(model, plans[0], model_map, settings=settings, seed=seeds[0], adapter_name="slot0")
    try:
        with closing(Slots(built)) as slots:
            stack = Stack(built, slots, model_map, settings)
            for plan, seed in zip(plans, seeds, strict=True):
                stack._append(plan, seed)
            stack._install()
            yield stack
    finally:
        tuner.reset(built)


def _logits(outputs: Any) -> Tensor:
    logits: Tensor | None = getattr(outputs, "logits", None)
    return outputs[0] if logits is None else logits


def _require_equal(together: Tensor, alone: Tensor, slot: int) -> None:
    exact = torch.finfo(alone.dtype).eps <= torch.finfo(torch.float32).eps
    error = share_of_largest(together, alone)
    if not error <= (EXACT if exact else ROUNDED):
        raise TunerError(
            f"slot {slot}: its outputs in the stack differ from those alone by {error:.1e} of the largest; "
            "this model mixes the rows of a batch, so plans cannot be stacked on it"
        )


def _renamed(name: str, old: str, new: str) -> str:
    """Return the name of a tensor with the part that is the adapter's name exchanged."""
    return ".".join(new if part == old else part for part in name.split("."))
