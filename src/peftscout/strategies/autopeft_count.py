"""The parameter count of the AutoPEFT paper, for comparison with its tables; the real count is `Plan.cost`."""

from __future__ import annotations

from peftscout.cost import price
from peftscout.errors import PlanError
from peftscout.plan import Plan, Sites

_BIASED = frozenset({"serial", "parallel"})
_COUNTED = (*sorted(_BIASED), "prefix", "lora")


def paper_count(plan: Plan, sites: Sites) -> int:
    """Return the parameters of ``plan`` as the paper counts them: adapter biases, prefix generator and head left out.

    On the AutoPEFT space of a model of width D with n active layers this is 2 D n (D_SA + D_PA + L_PT) (dossier,
    section 1.4). Derived from the one cost formula: what grows with the size, less one bias for each bottleneck unit.

    Raises:
        PlanError: on an op the paper does not count, or a site that is not there.
    """
    plan.check(sites)
    total = 0
    for placement in plan:
        if placement.op not in _COUNTED:
            raise PlanError(f"{placement}: the AutoPEFT paper counts no {placement.op}, only {', '.join(_COUNTED)}")
        per_size = price(sites[placement.site], placement.op).per_size
        total += placement.size * (per_size - (placement.op in _BIASED))
    return total
