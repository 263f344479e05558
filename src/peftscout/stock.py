"""Which stock adapter of peft, one that loads without an import of ours, holds a plan exactly. Pure data."""

from __future__ import annotations

from typing import Literal

from peftscout.plan import Plan, Sites
from peftscout.sites import Site

StockForm = Literal["lora", "ln_tuning", "ia3"]

STOCK_FORMS: tuple[StockForm, ...] = ("lora", "ln_tuning", "ia3")
"""peft's types that hold a plan of ours exactly, in the order in which an export tries them."""


def holds(form: StockForm, site: Site, op: str) -> bool:
    """Whether a stock adapter of ``form`` can hold ``op`` at ``site``.

    ``lora``: LoRA, a rank for each module. ``ln_tuning``: trained copies of norms: the op ``norm``, and ``bias`` at a
    norm that has one. ``ia3``: factors on the outputs of projections, which is ``scale``.
    """
    match form:
        case "lora":
            return op == "lora"
        case "ia3":
            return op == "scale"
        case "ln_tuning":
            return op == "norm" or (op == "bias" and site.kind == "norm" and site.has_bias)


def holds_plan(form: StockForm, plan: Plan, sites: Sites) -> bool:
    """Whether a stock adapter of ``form`` can hold all of ``plan``; it needs something to hold."""
    return bool(len(plan)) and all(holds(form, sites[placement.site], placement.op) for placement in plan)


def stock_form(plan: Plan, sites: Sites) -> StockForm | None:
    """Return the first stock form that holds ``plan``; ``None`` when it takes a type of our own."""
    return next((form for form in STOCK_FORMS if holds_plan(form, plan, sites)), None)
