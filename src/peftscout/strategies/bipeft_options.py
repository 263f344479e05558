"""The options of BIPEFT, with the constants of the paper and its release by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftscout.errors import ConfigError

Order = Literal["alternating", "joint", "binary_first", "dimension_first"]
Estimator = Literal["bilevel", "split"]


@dataclass(frozen=True, slots=True)
class BipeftOptions:
    """Options of the `bipeft` strategy. Defaults are the paper's, unless said otherwise.

    Attributes:
        steps: most iterations; ``None``: as many as one evaluation has steps. The paper's are 1 to 40 epochs of half of
            the training rows.
        learning_rate: of the supernet's weights; ``None``: the study's own rates of each op. The paper has 3e-4, for
            T5-large and with a doubled optimiser step.
        weight_decay: of the supernet's weights.
        clip: largest norm of their gradient.
        gate_learning_rate: of Adam on alpha and beta.
        gate_betas: of that Adam.
        gate_weight_decay: of that Adam.
        regulariser: factor on mean|softmax(a) - a|, which the release adds to the loss of the gates.
        initial_std: of alpha and beta.
        temperature_start: of Gumbel-softmax, falling linearly
        temperature_end: to this one.
        gumbel: ``False``: plain softmax gates, an ablation.
        sampled_sizes: whether weights are trained at sampled sizes. The paper has ``False``: at those that lead.
        estimator: ``split``: one pass over rows of both halves, whose gradients arrive apart. ``bilevel``: a pass for
            the gates and one for the weights, as in the paper; finds nothing better, for more (``docs/one_shot.md``).
        validation_share: of the rows of a batch of ``split``; the others are for the weights.
        order: ``alternating`` batches for positions and dimensions; the ablations ``joint`` (both at once),
            ``binary_first`` and ``dimension_first`` (half of the steps each).
        ema: weight of the past in the sensitivity.
        warmup: share of the steps before indicators are taken (2 of 15 epochs).
        window: indicators that a new one is compared with; one more must exist.
        threshold: rho, the mean cosine from which on the ranking is stable.
        triggers: T_max; at most half of the steps.
        certain_triggers: triggers before the end from which on every module that is left counts whole.
        alternatives: plans asked for besides the result.
        keep_every: iterations between two saves.
        warm_start: whether the results are trained on from their weights in the supernet, not from fresh ones.

    Raises:
        ConfigError: on an impossible value.
    """

    steps: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 1e-4
    clip: float = 2.0
    gate_learning_rate: float = 0.01
    gate_betas: tuple[float, float] = (0.5, 0.999)
    gate_weight_decay: float = 1e-4
    regulariser: float = 0.01
    initial_std: float = 1e-3
    temperature_start: float = 5.0
    temperature_end: float = 1.0
    gumbel: bool = True
    sampled_sizes: bool = True
    estimator: Estimator = "split"
    validation_share: float = 0.25
    order: Order = "alternating"
    ema: float = 0.85
    warmup: float = 2 / 15
    window: int = 5
    threshold: float = 0.85
    triggers: int = 100
    certain_triggers: int = 10
    alternatives: int = 3
    keep_every: int = 50
    warm_start: bool = False

    def __post_init__(self) -> None:
        orders = ("alternating", "joint", "binary_first", "dimension_first")
        if self.order not in orders:
            raise ConfigError(f"order {self.order!r}: must be one of {', '.join(orders)}")
        if self.estimator not in ("bilevel", "split"):
            raise ConfigError(f"estimator {self.estimator!r}: must be bilevel or split")
        object.__setattr__(self, "gate_betas", tuple(self.gate_betas))
        for name in ("clip", "gate_learning_rate", "temperature_start", "temperature_end"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be above 0")
        for name in ("weight_decay", "gate_weight_decay", "regulariser", "initial_std", "alternatives"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must not be below 0")
        for name in ("window", "triggers", "certain_triggers", "keep_every"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be at least 1")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share {self.validation_share!r}: must be between 0 and 1")
        for name in ("steps", "learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} {value!r}: must be above 0")
        for name in ("ema", "warmup", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be within 0 and 1")

    def temperature(self, iteration: int, steps: int) -> float:
        """Return tau at ``iteration``; 1 without Gumbel noise."""
        if not self.gumbel:
            return 1.0
        return self.temperature_start + (self.temperature_end - self.temperature_start) * iteration / steps

    def trains(self, iteration: int, steps: int) -> tuple[bool, bool]:
        """Return whether ``iteration`` trains the positions, and whether it trains the dimensions."""
        first_half = 2 * iteration < steps
        match self.order:
            case "alternating":
                return iteration % 2 == 0, iteration % 2 == 1
            case "joint":
                return True, True
            case "binary_first":
                return first_half, not first_half
            case _:
                return not first_half, first_half

    def triggers_within(self, steps: int) -> int:
        """Return T_max for a search of ``steps``."""
        return max(1, min(self.triggers, steps // 2))


PAPER = BipeftOptions(learning_rate=3e-4, sampled_sizes=False, estimator="bilevel", alternatives=0)
"""The constants of the paper and its release."""
