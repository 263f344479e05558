"""The found rule: in words, as a design space for further search, and as plans; and the published models as plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from peftscout.errors import SpaceError
from peftscout.plan import Budget, Plan, Sites
from peftscout.strategies.design_spaces.axes import AxisOption, Design, DesignSpace, MethodSet
from peftscout.strategies.design_spaces.compilation import Compilation, Compiled, compile_genotype
from peftscout.strategies.design_spaces.genotype import InfeasibleDesignError, canonical_genotype
from peftscout.strategies.design_spaces.layout import Layout, layout
from peftscout.strategies.design_spaces.yaml import load_design_space, to_yaml


@dataclass(frozen=True)
class Rule:
    """What a refinement found: the design space that is left.

    Attributes:
        space: with one option on each axis that was decided.
    """

    space: DesignSpace

    @property
    def open_axes(self) -> tuple[str, ...]:
        """Axes on which no option was decided for."""
        return self.space.open_axes

    def __str__(self) -> str:
        """Return the rule in words: ``spindle, uniform allocation, all groups, G1: lora+serial; G2: ...``."""
        s = self.space
        grouping = _either([p.label for p in s.grouping])
        allocation = _either([a.label for a in s.allocation])
        tunable = _either([t.label for t in s.tunable])
        tuned = sorted({group for t in s.tunable for group in t.groups})
        groups = "; ".join(f"G{g + 1}: {_either([self._ops(m) for m in s.methods[g]])}" for g in tuned)
        return f"{grouping}, {allocation} allocation, {tunable}, {groups}"

    def _ops(self, methods: MethodSet) -> str:
        """Return the ops of a method set; the name of the method where several have one op."""
        ops = {m.name: m.op for m in self.space.methods_defined}
        uses = Counter(ops.values())
        return "+".join(ops[name] if uses[ops[name]] == 1 else name for name in methods.names)

    def designs(self) -> list[Design]:
        """Return every combination of the options that are left, simplest options first, at most 1,000."""
        axes = self.space.axes
        options: list[Sequence[AxisOption]] = [self.space.options(axis) for axis in axes]
        found = []
        for chosen in islice(product(*options), 1000):
            design = self.space.first
            for axis, option in zip(axes, chosen, strict=True):
                design = design.with_option(axis, option)
            found.append(design)
        return found

    def plans(self, layout: Layout, budget: Budget, limit: int = 8) -> list[tuple[Design, Compiled]]:
        """Return the canonical plan of each design of the rule, without repetitions, at most ``limit``.

        Designs that are impossible within the budget are left out.
        """
        found: dict[Plan, tuple[Design, Compiled]] = {}
        for design in self.designs():
            try:
                genotype = canonical_genotype(design, layout)
                compiled = compile_genotype(genotype, layout, budget, Compilation(tight="make_room"))
            except InfeasibleDesignError:
                continue
            found.setdefault(compiled.plan, (design, compiled))
            if len(found) == limit:
                break
        return list(found.values())

    def to_yaml(self) -> str:
        """Return the rule as a design space for further search."""
        return to_yaml(self.space)


def _either(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    shown = ", ".join(labels[:4]) + (f", ... ({len(labels)} options)" if len(labels) > 4 else "")
    return f"undecided ({shown})"


def compile_preset(name_or_path: str | Path, sites: Sites, budget: Budget) -> Compiled:
    """Compile a published model (``s4-model``, ``s4-3b-model``) or any design of one option an axis to ``budget``.

    The structure is the canonical one of the grouping. A layer whose methods cost more than its share is made room for,
    and noted. On a model with fewer layers than the grouping needs, groups follow the relative depth and may be empty.

    Raises:
        SpaceError: when there is no such preset, it leaves an axis open, the model has no site for one of its methods,
            or its methods at size 1 cost more than the budget.
    """
    space = load_design_space(name_or_path)
    if space.open_axes:
        raise SpaceError(f"{space.name} is a space, not a model: {space.open_axes[0]} has several options; search it")
    there = layout(sites, space.methods_defined, space.numbering)
    return compile_genotype(canonical_genotype(space.first, there), there, budget, Compilation(tight="make_room"))


def preset_plan(name_or_path: str | Path, sites: Sites, budget: Budget) -> Plan:
    """Return the plan of `compile_preset`; raises as it does."""
    return compile_preset(name_or_path, sites, budget).plan
