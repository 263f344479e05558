"""Uniform plans: what people use today, each at the size that fills the budget. Baselines of every search.

The first, LoRA on queries and values, is trial 0 of every study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from peftscout.cost import SIZELESS, largest_size, ops_at, price
from peftscout.errors import BudgetError
from peftscout.outcome import Evaluate, Outcome
from peftscout.plan import Budget, Plan, Sites
from peftscout.sites import Site
from peftscout.strategies.base import Problem, Strategy

_QUERY_VALUE = ("q", "v", "qv", "qkv")
"""Roles that LoRA's paper adapts (section 4.2: W_q and W_v); a fused projection stands for both."""


@dataclass(frozen=True)
class UniformPlan:
    """A plan of one op and one size everywhere.

    Attributes:
        label: in words, with its size and, where the budget does not reach all layers, the layers.
        plan: within the budget.
    """

    label: str
    plan: Plan


def lora_on_query_value(sites: Sites, budget: Budget) -> UniformPlan:
    """LoRA on queries and values of every attention, one rank: the default of most libraries."""
    return _fill(
        "LoRA", "lora", [s for s in sites.values() if _in_attention(s) and s.role in _QUERY_VALUE], budget, "q, v"
    )


def lora_on_all_linear(sites: Sites, budget: Budget) -> UniformPlan:
    """LoRA on every projection of every block, one rank."""
    return _fill("LoRA", "lora", [s for s in sites.values() if s.kind == "linear"], budget, "all linear layers")


def serial_after_ffn(sites: Sites, budget: Budget) -> UniformPlan:
    """A serial bottleneck adapter after every FFN (Pfeiffer et al. 2021)."""
    return _fill("serial adapters", "serial", [s for s in sites.values() if s.role == "ffn"], budget, "FFN outputs")


def bitfit(sites: Sites, budget: Budget) -> UniformPlan:
    """Every bias of the model's own (BitFit, Ben Zaken et al. 2022); added vectors where it has none."""
    biased = [s for s in sites.values() if s.kind != "sublayer" and s.has_bias]
    chosen = biased or [s for s in sites.values() if s.kind == "linear"]
    return _fill("BitFit", "bias", chosen, budget, "all biases" if biased else "added biases of all linear layers")


def prefix_in_self_attention(sites: Sites, budget: Budget) -> UniformPlan:
    """A learned prefix of one length in every self-attention (Li and Liang 2021)."""
    return _fill("prefix", "prefix", [s for s in sites.values() if s.role == "attention"], budget, "self-attention")


_ALL: Sequence[tuple[str, Callable[[Sites, Budget], UniformPlan]]] = (
    ("lora", lora_on_query_value),
    ("lora", lora_on_all_linear),
    ("serial", serial_after_ffn),
    ("bias", bitfit),
    ("prefix", prefix_in_self_attention),
)


def uniform_plans(sites: Sites, budget: Budget, ops: Iterable[str]) -> list[UniformPlan]:
    """Return every uniform plan that uses only ``ops`` and fits, without repetitions; what cannot fit is left out."""
    allowed = set(ops)
    found: dict[Plan, UniformPlan] = {}
    for op, make in _ALL:
        if op in allowed:
            try:
                uniform = make(sites, budget)
            except BudgetError:
                continue
            found.setdefault(uniform.plan, uniform)
    return list(found.values())


def uniform(problem: Problem) -> Strategy:
    """Return the strategy that evaluates each uniform plan once per learning-rate factor; the baseline is known."""
    plans = uniform_plans(problem.sites, problem.budget, {c.op for c in problem.space.choices})
    requests = [
        Evaluate(u.plan, problem.fidelity, problem.seed, lr_scale, u.label)
        for lr_scale in problem.lr_scales
        for u in plans
        if (u.plan, lr_scale) != (problem.baseline, 1.0)
    ]
    return _Listed(requests)


class _Listed:
    """Hands out a fixed list."""

    def __init__(self, requests: Sequence[Evaluate]) -> None:
        self._waiting = list(requests)

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        handed, self._waiting = self._waiting[:capacity], self._waiting[capacity:]
        return handed

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Nothing follows from it."""


def _in_attention(site: Site) -> bool:
    return site.kind == "linear" and (".attention." in site.id or ".cross_attention." in site.id)


def _fill(name: str, op: str, sites: Sequence[Site], budget: Budget, where: str) -> UniformPlan:
    """Place ``op`` at ``sites`` at the largest common size within the budget.

    Where not even size 1 fits everywhere, the last layers are kept: they matter most to a task on the model's output.

    Raises:
        BudgetError: when the model has no such site, or size 1 at the cheapest one is above the budget.
    """
    sites = [s for s in sites if op in ops_at(s)]
    if not sites:
        raise BudgetError(f"{name} on {where}: this model has no such sites")
    layers = sorted({_depth(s) for s in sites}, reverse=True)
    size, kept = 0, sites
    for dropped in range(len(layers)):
        kept = [s for s in sites if _depth(s) in layers[: len(layers) - dropped]]
        size = _largest_common_size(op, kept, budget)
        if size:
            break
    if not size:
        cheapest = min(price(s, op).at(1) for s in sites)
        raise BudgetError(
            f"{name} on {where}: the budget {budget} is below one layer of it ({cheapest:,} at its cheapest site)"
        )
    plan = Plan.of({(s.id, op): size for s in kept})
    label = f"uniform {name}{'' if op in SIZELESS else f' {size}'} on {where}"
    return UniformPlan(
        label if len(kept) == len(sites) else f"{label} of the last {len({_depth(s) for s in kept})} layers", plan
    )


def _depth(site: Site) -> tuple[bool, int]:
    """Order of layers from input to output: encoder before decoder, what lies after the blocks last."""
    return site.stack == "decoder", 2**31 if site.layer is None else site.layer


def _largest_common_size(op: str, sites: Sequence[Site], budget: Budget) -> int:
    prices = [price(s, op) for s in sites]
    fixed, per_size = sum(p.fixed for p in prices), sum(p.per_size for p in prices)
    return max(0, min((budget.parameters - fixed) // per_size, *(largest_size(s, op) for s in sites)))
