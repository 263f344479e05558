"""A supernet as a formula: the best structure is known, and a search on it takes milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from peftscout.gates import Gates, Kept, Modules, Step, WeightTraining
from peftscout.plan import Plan


class ToyOneShot:
    """loss = 1/2 sum_mi (u_mi + noise - on_m w_mi theta_mi)^2 over the units i of the modules m.

    ``usefulness[m]`` is u of the first ``best[m]`` units of a module, all others have u = 0; w_mi is the weight of the
    sizes that hold the unit. The noise differs from batch to batch and so between train and validation. Weights move by
    plain gradient descent. What is kept is kept in `disk`, a dict that outlives the object.
    """

    def __init__(
        self, modules: Modules, usefulness: np.ndarray, best: np.ndarray, *, disk: dict[str, Any] | None = None,
        noise: float = 0.3, rate: float = 0.2, seed: int = 0, die_after: int | None = None,
    ) -> None:  # fmt: skip
        self.modules = modules
        sizes = [module.sizes for module in modules]
        units = max(s[-1] for s in sizes)
        self.nested = np.zeros((*modules.costs.shape, units))
        for m, module_sizes in enumerate(sizes):
            for k, size in enumerate(module_sizes):
                self.nested[m, k, :size] = 1.0
        self.u = usefulness[:, None] * (np.arange(units) < best[:, None])
        self.theta = 0.3 * np.random.default_rng(seed).standard_normal(self.u.shape)
        self.disk = {} if disk is None else disk
        self.noise, self.rate, self.seed, self.die_after = noise, rate, seed, die_after
        self.passes = 0
        self.drawn = {"train": 0, "validation": 0}
        self.products: dict[str, np.ndarray] = {}
        self.events: list[dict[str, Any]] = []

    def _target(self, split: str, ahead: int = 0) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.drawn[split] + ahead, split == "train"])
        return self.u + self.noise * rng.standard_normal(self.u.shape)

    def _gradients(self, gates: Gates, theta: np.ndarray, target: np.ndarray):
        w = np.einsum("mk,mki->mi", gates.size, self.nested)
        error = gates.on[:, None] * w * theta - target
        on = (error * w * theta).sum(1)
        size = np.einsum("mi,mki->mk", error * gates.on[:, None] * theta, self.nested)
        return 0.5 * float((error**2).sum()), on, size, error * gates.on[:, None] * w

    def step(self, gates: Gates, split: str, *, gate_gradients: bool, update_weights: bool) -> Step:
        assert gates.on.shape == (len(self.modules),)
        assert np.allclose(gates.size.sum(1), 1.0)
        assert not gates.size[~self.modules.allowed].any()
        if self.die_after is not None and self.passes >= self.die_after:
            raise KeyboardInterrupt
        loss, on, size, theta = self._gradients(gates, self.theta, self._target(split))
        self.drawn[split] += 1
        self.passes += 1
        product = self.theta * theta
        other = self.products.get("train" if split == "validation" else "validation", np.zeros_like(product))
        length = np.linalg.norm(product, axis=1) * np.linalg.norm(other, axis=1)
        agreement = (product * other).sum(1) / np.where(length > 0, length, 1.0)
        self.products[split] = product
        if update_weights:
            self.theta = self.theta - self.rate * theta
        none = np.zeros_like
        gradients = (on, size) if gate_gradients else (none(on), none(size))
        return Step(loss, *gradients, np.abs(product).sum(1), agreement)

    def held_out_loss(self, gates: Gates, rows: int) -> float:
        """The loss without noise, as many rows would show it."""
        if self.die_after is not None and self.passes >= self.die_after:
            raise KeyboardInterrupt
        return self._gradients(gates, self.theta, self.u)[0]

    def split(self, train: Gates, validation: Gates) -> tuple[Step, Step]:
        """Rows do not see each other, so this is the two passes, counted as one."""
        seen = self.step(validation, "validation", gate_gradients=True, update_weights=False)
        trained = self.step(train, "train", gate_gradients=False, update_weights=True)
        self.passes -= 1
        return trained, seen

    def unrolled(self, gates: Gates) -> Step:
        """Exact: the Hessian of the formula is diagonal."""
        target = self._target("train")
        _, _, _, theta_train = self._gradients(gates, self.theta, target)
        ahead = self.theta - self.rate * theta_train
        loss, on, size, theta = self._gradients(gates, ahead, self._target("validation"))
        self.drawn["validation"] += 1
        self.passes += 4
        step = 1e-4 / max(1e-12, float(np.linalg.norm(theta)))
        plus, minus = (self._gradients(gates, self.theta + sign * step * theta, target) for sign in (1, -1))
        second = [(a - b) / (2 * step) for a, b in zip(plus[1:3], minus[1:3], strict=True)]
        nothing = np.zeros(len(self.modules))
        return Step(loss, on - self.rate * second[0], size - self.rate * second[1], nothing, nothing)

    def keep(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        mine = {"theta": self.theta, "drawn": self.drawn, "products": self.products, "events": self.events}
        self.disk["kept"] = copy.deepcopy((Kept(arrays, facts), mine))

    def keep_slice(self, plan: Plan) -> str:
        return f"slice of {plan.digest}"

    def resume(self) -> Kept | None:
        if "kept" not in self.disk:
            return None
        kept, mine = copy.deepcopy(self.disk["kept"])
        vars(self).update(mine)
        return kept

    def log(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))


def toy_factory(modules: Modules, usefulness: np.ndarray, best: np.ndarray, **options: Any):
    """Return what a problem's ``one_shot`` is; every supernet that was opened is in its ``opened``."""

    @contextmanager
    def open_one_shot(training: WeightTraining) -> Iterator[ToyOneShot]:
        one_shot = ToyOneShot(modules, usefulness, best, **options)
        opened.append(one_shot)
        yield one_shot

    opened: list[ToyOneShot] = []
    open_one_shot.opened = opened  # type: ignore[attr-defined]
    return open_one_shot
