"""A supernet in training: the `strategies.one_shot.OneShot` that a differentiable strategy drives, on torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peftscout.errors import DivergedSupernetError, SupernetError, SupernetMemoryError
from peftscout.gates import Floats, Gates, Kept, Modules, Step, WeightTraining
from peftscout.plan import Plan
from peftscout.space import Space
from peftscout.supernet import Leaves
from peftscout.training.dropout import set_training
from peftscout.training.evaluator import Evaluator
from peftscout.training.forward import Forward
from peftscout.training.kept_search import KeptSearch
from peftscout.training.loop import Progress
from peftscout.training.objectives import Pass
from peftscout.training.scoring import predict
from peftscout.training.split_rows import RowsInHalves
from peftscout.training.supernet_weights import SupernetWeights, below
from peftscout.training.trial import DivergedError
from peftscout.tuner.checks import EXACT, ROUNDED, evaluation, share_of_largest

REACH = 0.01
"""Norm of the step of DARTS' finite difference (Liu et al., 2019, section 2.3)."""


def one_shot_factory(
    evaluator: Evaluator,
    space: Space,
    folder: Path,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Callable[[WeightTraining], AbstractContextManager[SupernetInTraining]]:
    """Return what opens the supernet of ``space`` on the evaluator's backbone; its state is kept in ``folder``.

    ``note`` is told where it had to go back further than to the last state.

    Inside, running out of memory is a `SupernetMemoryError`.
    """

    @contextmanager
    def opened(training: WeightTraining) -> Iterator[SupernetInTraining]:
        one_shot = SupernetInTraining(evaluator, space, training, KeptSearch(folder, note), progress)
        try:
            yield one_shot
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise SupernetMemoryError(
                f"the supernet of space {space.name!r} does not fit into memory: take a smaller space, a smaller "
                "training.batch_size, or a strategy without a supernet, such as autopeft"
            ) from error
        finally:
            one_shot.close()
            evaluator.check_backbone()

    return opened


class SupernetInTraining:
    """The supernet of a space, its weights, their optimiser and the order of the data.

    It is built at the first pass, so that a finished search can be read without building anything.

    Attributes:
        modules: of the space.
        steps: optimiser steps of the weights so far.
        passes: forward-backward passes so far, held-out batches counted as a third of one.
        seconds: wall time until what was kept last, that of the runs before included.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        space: Space,
        training: WeightTraining,
        kept: KeptSearch,
        progress: Progress | None = None,
    ) -> None:
        self.modules = Modules(space)
        self._evaluator, self._training, self._kept, self._progress = evaluator, training, kept, progress
        self._rows = RowsInHalves(
            evaluator.data.train,
            evaluator.settings.batch_size,
            training.seed,
            evaluator.make_batch,
            evaluator.device,
            training.validation_share,
            training.held_out,
        )
        self._built: SupernetWeights | None = None
        self._rows_are_separate = False
        self._pending: dict[str, np.ndarray] | None = None
        self._products: dict[str, dict[int, Tensor]] = {"train": {}, "validation": {}}
        self._events: list[Mapping[str, Any]] = []
        self.steps = 0
        self.passes = 0.0
        self.seconds, self._counted_until = 0.0, time.perf_counter()

    # -- passes -------------------------------------------------------------------------------------------------------

    def step(self, gates: Gates, split: str, *, gate_gradients: bool, update_weights: bool) -> Step:
        """Pass over the next batch of ``split``; see `strategies.one_shot.OneShot.step`.

        Raises:
            DivergedSupernetError: when the loss is not finite.
        """
        weights = self._weights
        leaves = weights.net.trace_gates(gates) if gate_gradients else None
        if leaves is None:
            weights.net.set_gates(gates)
        loss = self._backward(self._rows.draw(split), stream=split == "train")
        if update_weights:
            self._skip_closed(gates)
        saliency, agreement = self._saliency(split, [p.grad for p in weights.of_modules])
        if update_weights:
            self._update()
        on, size = leaves.gradients() if leaves is not None else (np.zeros_like(gates.on), np.zeros_like(gates.size))
        return Step(loss, on, size, saliency, agreement)

    def split(self, train: Gates, validation: Gates) -> tuple[Step, Step]:
        """Pass once over rows of both halves and step on the weights; see `strategies.one_shot.OneShot.split`.

        Raises:
            DivergedSupernetError: when the loss is not finite.
            SupernetError: when the model mixes the rows of a batch.
        """
        weights, net = self._weights, self._weights.net
        batch, first = self._rows.draw_both()
        self._require_separate_rows(validation, batch, first)
        rows = len(batch["labels"])
        others = net.trace_rows(train, validation, first, rows, weights=self._training.saliency)
        losses = self._backward_apart(batch, first)
        self._skip_closed(train)
        copies = [copy.grad for of_module in others.parameters for copy in of_module]
        seen = Step(losses[1], *others.gates.gradients(), *self._saliency("validation", copies))
        nothing = np.zeros_like(train.on), np.zeros_like(train.size)
        trained = Step(losses[0], *nothing, *self._saliency("train", [p.grad for p in weights.of_modules]))
        self._update()
        return trained, seen

    def _require_separate_rows(self, gates: Gates, batch: dict[str, Tensor], first: int) -> None:
        """Check once that the rows from ``first`` on compute with the others what they compute without them."""
        if self._rows_are_separate:
            return
        net = self._weights.net
        net.set_gates(gates)
        with torch.no_grad(), evaluation(net.model):
            together = self._pass(batch)[0][first:]
            alone = self._pass({name: tensor[first:] for name, tensor in batch.items()})[0]
        error = share_of_largest(together, alone)
        if error > (EXACT if self._evaluator.device.arithmetic.dtype == "fp32" else ROUNDED):
            raise SupernetError(
                f"this model mixes the rows of a batch (outputs differ by {error:.1e} of the largest), so gates and "
                "weights cannot be trained by one pass: set strategy_options.estimator=bilevel"
            )
        self._rows_are_separate = True

    def _skip_closed(self, gates: Gates) -> None:
        """Leave the weights of closed modules alone: a gradient of zeros would let the optimiser move them."""
        for m in np.flatnonzero(gates.on == 0).tolist():
            for p in self._weights.net.parameters_of(m):
                p.grad = None

    def held_out_loss(self, gates: Gates, rows: int) -> float:
        """Return the mean loss on validation rows; see `strategies.one_shot.OneShot.held_out_loss`."""
        half, batch_size = self._rows.halves["validation"], self._evaluator.settings.batch_size
        chosen = half.subset(np.unique(np.linspace(0, len(half) - 1, min(rows, len(half))).astype(np.int64)))
        self._weights.net.set_gates(gates)
        forward = Forward(self._weights.net.model, self._evaluator.make_batch, self._evaluator.device)
        self.passes += math.ceil(len(chosen) / batch_size) / 3
        try:
            loss = predict(forward, chosen, self._evaluator.objective, batch_size)[1]
        except DivergedError:
            return math.inf
        return loss if math.isfinite(loss) else math.inf

    def _update(self) -> None:
        self._weights.update()
        self.steps += 1
        if self._progress is not None:
            self._progress(self.steps, self._training.steps)

    def unrolled(self, gates: Gates) -> Step:
        """Return DARTS' second-order gate gradients; see `strategies.one_shot.OneShot.unrolled`.

        With w' = w - (one optimiser step on the training batch), the gradient is that of L_val(w') less the mixed
        second derivative of L_train along R grad L_val(w'), R being the learning rate of each tensor; by a central
        difference. w' is made in place and taken back, so there is no second model.
        """
        weights = self._weights
        weights.net.set_gates(gates)
        batch = self._rows.peek("train")
        self._backward(batch, stream=True)
        before = weights.snapshot()
        weights.update()
        leaves = weights.net.trace_gates(gates)
        loss = self._backward(self._rows.draw("validation"), stream=False)
        direction = weights.scaled_gradients()
        weights.restore(before)
        first = leaves.gradients()
        nothing = np.zeros(len(self.modules))
        norm = float(torch.stack([d.square().sum() for d in direction.values()]).sum().sqrt())
        if norm == 0.0:
            return Step(loss, *first, nothing, nothing)
        reach = REACH / norm
        plus, minus = (self._gate_gradients_at(gates, batch, direction, sign * reach) for sign in (1, -1))
        weights.restore(before)
        on, size = (d1 - (p - m) / (2 * reach) for d1, p, m in zip(first, plus, minus, strict=True))
        return Step(loss, on, size, nothing, nothing)

    def _gate_gradients_at(
        self, gates: Gates, batch: dict[str, Tensor], direction: Mapping[nn.Parameter, Tensor], reach: float
    ) -> tuple[Floats, Floats]:
        """Return the gate gradients on ``batch`` with the weights moved along ``direction``; they are moved back."""
        _move(direction, reach)
        leaves: Leaves = self._weights.net.trace_gates(gates)
        self._backward(batch, stream=True)
        _move(direction, -reach)
        return leaves.gradients()

    def _backward(self, batch: dict[str, Tensor], stream: bool) -> float:
        """Leave the gradients of the loss on ``batch`` in the weights, and nothing else; return the loss."""
        self._prepare(stream)
        loss = self._loss(*self._pass(batch))
        self._evaluator.device.accelerator.backward(loss)
        return float(loss.item())

    def _backward_apart(self, batch: dict[str, Tensor], first: int) -> tuple[float, float]:
        """Leave the gradients of the ``first`` rows in the weights, and those of the others where they are traced.

        As no row sees another, the gradient of the sum of the two losses is that of each. Only the head is the same for
        all rows: its gradient is taken of the first loss alone.
        """
        self._prepare(stream=True)
        outputs, targets = self._pass(batch)
        train, validation = self._loss(outputs[:first], targets[:first]), self._loss(outputs[first:], targets[first:])
        head = self._weights.head
        of_head = torch.autograd.grad(train, head, retain_graph=True) if head else ()
        self._evaluator.device.accelerator.backward(train + validation)
        for p, gradient in zip(head, of_head, strict=True):
            p.grad = gradient
        return float(train.item()), float(validation.item())

    def _prepare(self, stream: bool) -> None:
        """Clear the gradients. Dropout follows from step and stream: the passes of one unrolled step share theirs."""
        for p in self._weights.parameters:
            p.grad = None
        torch.manual_seed(_stream_seed(self._training.seed, self.steps, stream))
        set_training(self._weights.net.model, self._evaluator.settings.backbone_dropout)
        self.passes += 1

    def _pass(self, batch: dict[str, Tensor]) -> Pass:
        with self._evaluator.device.autocast():
            return self._evaluator.objective.train(self._weights.net.model, batch)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = self._evaluator.objective.loss(outputs, targets)
        if not torch.isfinite(loss):
            raise DivergedSupernetError(
                f"the supernet's loss is {loss.item()} at step {self.steps + 1}: "
                "set a lower strategy_options.learning_rate"
            )
        return loss

    def _saliency(self, split: str, gradients: Sequence[Tensor | None]) -> tuple[Floats, Floats]:
        """Return sum abs(theta grad) and the mean cosine with the other split's products, of every module.

        ``gradients`` are those of the modules' tensors, in order.
        """
        modules = len(self.modules)
        if not self._training.saliency:
            return np.zeros(modules), np.zeros(modules)
        weights = self._weights
        pairs = enumerate(zip(weights.of_modules, gradients, strict=True))
        mine = {n: (p.detach() * gradient).float() for n, (p, gradient) in pairs if gradient is not None}
        other = self._products["validation" if split == "train" else "train"]
        self._products[split] = mine
        absolute, cosine = np.zeros(len(weights.of_modules)), np.zeros(len(weights.of_modules))
        if mine:
            absolute[list(mine)] = _numbers([product.abs().sum() for product in mine.values()])
        if both := [n for n in mine if n in other]:
            cosine[both] = _numbers([torch.cosine_similarity(mine[n].flatten(), other[n].flatten(), 0) for n in both])
        counts = np.bincount(weights.owner, minlength=modules)
        return (
            np.bincount(weights.owner, absolute, minlength=modules).astype(np.float64),
            np.bincount(weights.owner, cosine, minlength=modules) / counts,
        )

    def keep_slice(self, plan: Plan) -> str:
        """Keep the weights of ``plan`` as an initial state; return its name (`Evaluate.initial`)."""
        return self._evaluator.initial.save(self._weights.net.slice(plan))

    # -- keeping ------------------------------------------------------------------------------------------------------

    def log(self, event: Mapping[str, Any]) -> None:
        """Append to the event log."""
        self._events.append(dict(event))

    def keep(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Save everything, all or nothing."""
        everything = {f"strategy/{name}": a for name, a in arrays.items()}
        everything |= self._weights.state() if self._built is not None else (self._pending or {})
        for split, products in self._products.items():
            everything |= {f"products/{split}/{n}": t.cpu().numpy() for n, t in products.items()}
        now = time.perf_counter()
        self.seconds, self._counted_until = self.seconds + now - self._counted_until, now
        here = {"steps": self.steps, "passes": self.passes, "seconds": self.seconds, "drawn": self._rows.drawn}
        self._kept.save(everything, {"strategy": dict(facts), **here}, self._events)

    def resume(self) -> Kept | None:
        """Go back to where everything was saved last, and return the strategy's part of it."""
        if (found := self._kept.load()) is None:
            return None
        arrays, facts, self._events = found
        self.steps, self.passes = facts["steps"], facts["passes"]
        self.seconds, self._counted_until = facts["seconds"], time.perf_counter()
        self._rows.skip(facts["drawn"])
        for split in self._products:
            self._products[split] = {
                int(name): torch.as_tensor(a, device=self._evaluator.device.torch_device)
                for name, a in below(f"products/{split}/", arrays).items()
            }
        self._pending = {n: a for n, a in arrays.items() if n.startswith(("weights/", "optimiser/"))}
        if self._built is not None:
            self._built.load(self._pending, self.steps)
        return Kept(below("strategy/", arrays), facts["strategy"])

    @property
    def _weights(self) -> SupernetWeights:
        if self._built is None:
            self._built = SupernetWeights(self._evaluator, self.modules.space, self._training)
            if self._pending is not None:
                self._built.load(self._pending, self.steps)
        return self._built

    def close(self) -> None:
        """Give the backbone back."""
        if self._built is not None:
            self._built.close()
            self._built = None


def _move(direction: Mapping[nn.Parameter, Tensor], reach: float) -> None:
    with torch.no_grad():
        for p, d in direction.items():
            p.add_(d, alpha=reach)


def _numbers(scalars: list[Tensor]) -> Floats:
    return np.asarray(torch.stack(scalars).double().cpu().numpy())


def _stream_seed(seed: int, step: int, stream: bool) -> int:
    return int(np.random.SeedSequence([seed, step, int(stream)]).generate_state(1)[0])
