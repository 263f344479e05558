"""What tests of stacks share: random mixtures of ops, single runs, and the same runs in a stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from adapted import batch_of
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.cost import SIZELESS, largest_size, ops_at
from peftscout.plan import Plan
from peftscout.stacked import Stack
from tiny_models import tiny_model

Batch = dict[str, Tensor]
State = dict[str, Tensor]

FAMILIES = ("bert", "gpt2", "llama", "t5")


def prepared(family: str, **changes: object) -> tuple[Any, ModelMap]:
    model = tiny_model(family, head="sequence", **changes)
    return model, ModelMap.from_model(model)


def mixture(model_map: ModelMap, seed: int, share: float = 0.4, largest: int = 12) -> Plan:
    """Every op at a ``share`` of its places, at random sizes."""
    rng, sizes = np.random.default_rng(seed), {}
    for site in model_map.sites.values():
        for op in ops_at(site):
            if rng.random() < share:
                limit = 1 if op in SIZELESS else min(largest, largest_size(site, op))
                sizes[site.id, op] = int(rng.integers(1, limit + 1))
    return Plan.of(sizes)


def mixtures(model_map: ModelMap, count: int, seed: int = 0) -> list[Plan]:
    """Rich and poor plans in turns."""
    return [mixture(model_map, 100 * seed + k, share=(0.8, 0.2, 0.5)[k % 3]) for k in range(count)]


def batches_of(count: int, steps: int = 1, rows: int = 3, same: bool = False) -> list[list[Batch]]:
    """Labelled batches by slot and step, of one length; the ``same`` for all slots, or each its own."""
    return [
        [
            {
                **batch_of(rows, length=7, padding=2, seed=1000 * (0 if same else k) + n),
                "labels": torch.arange(rows) % 2,
            }
            for n in range(steps)
        ]
        for k in range(count)
    ]


def together(batches: Sequence[Batch]) -> Batch:
    """The batch of a stack."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def losses(logits: Sequence[Tensor], batches: Sequence[Batch]) -> list[Tensor]:
    return [F.cross_entropy(own, batch["labels"]) for own, batch in zip(logits, batches, strict=True)]


def inputs(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def stir(by_op: dict[str, list[nn.Parameter]], seed: int = 0) -> None:
    """Move tensors to a generic point, so that every op does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in by_op.values():
            for parameter in group:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def backbone_to_evaluation(model: Any) -> None:
    base = model.get_base_model()
    model.train()
    getattr(base, base.base_model_prefix).eval()


@dataclass
class Run:
    """One plan in training, by itself or in a slot: its rate, its clipping, and what came of it."""

    parameters: list[nn.Parameter]
    rate: float
    clip: float
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.rate)

    def update(self, loss: Tensor) -> None:
        """Clip, step, forget the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())

    @classmethod
    def of(cls, by_op: dict[str, list[nn.Parameter]], slot: int) -> Run:
        """Rates and clippings that differ by slot."""
        return cls([p for group in by_op.values() for p in group], rate=1e-2 / (slot + 1), clip=(0.1, 10.0)[slot % 2])


@contextmanager
def built(model: Any, plan: Plan, model_map: ModelMap, seed: int) -> Iterator[Any]:
    """The model of one plan."""
    adapted = tuner.build(model, plan, model_map, seed=seed)
    try:
        yield adapted
    finally:
        tuner.reset(adapted)


def trained_alone(
    model: Any, plan: Plan, model_map: ModelMap, seed: int, slot: int, batches: Sequence[Batch]
) -> tuple[State, list[float]]:
    """Train one plan by itself, as everybody would, and return its state and losses."""
    with built(model, plan, model_map, seed) as adapted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run = Run.of(tuner.parameters_by_op(adapted), slot)
        backbone_to_evaluation(adapted)
        for batch in batches:
            loss = losses([adapted(**inputs(batch)).logits], [batch])[0]
            loss.backward()
            run.update(loss)
        return tuner.trainable_state(adapted), run.losses


def train_step(stack: Stack, runs: dict[int, Run], batches: dict[int, Batch]) -> None:
    """One step of every live slot."""
    stack.train()
    own = [batches[k] for k in stack.live]
    found = losses(stack.split(stack.model(**inputs(together(own))).logits), own)
    torch.stack(found).sum().backward()
    for k, loss in zip(stack.live, found, strict=True):
        runs[k].update(loss)


def gradients(by_op: dict[str, list[nn.Parameter]]) -> list[Tensor]:
    return [p.grad.clone() for group in by_op.values() for p in group if p.grad is not None]


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor], relative: float) -> None:
    """Every tensor within ``relative`` of the largest element of all."""
    largest = max(tensor.abs().max().item() for tensor in expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=relative * largest)


def assert_states_near(found: State, expected: State, relative: float) -> None:
    """The same names, and `assert_near`."""
    assert found.keys() == expected.keys()
    assert_near([found[name] for name in expected], list(expected.values()), relative)


def assert_same(found: State, expected: State) -> None:
    """The same names and the same bits."""
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
