"""`PeftscoutConfig`: what an adapter of mixed ops is, as it is saved in ``adapter_config.json``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from peftscout.errors import TunerError, nearest
from peftscout.ops import OPS, OpSettings
from peftscout.plan import Plan, Sites
from peftscout.sites import Attention, Site
from peftscout.tuner.registration import peft_type

SCHEMA = 1
"""Version of the fields below."""


class HostedOp(NamedTuple):
    """One op of a plan at the module that hosts its tensors."""

    site: Site
    op: str
    size: int

    @property
    def host(self) -> str:
        """Dotted path of the leaf that carries the tensors: for a prefix the projection of the keys."""
        if self.op == "prefix" and self.site.attention is not None:
            return self.site.attention.key_module
        return self.site.module

    @property
    def place(self) -> str:
        """For messages: ``layers.0.ffn.down: lora``."""
        return f"{self.site.id}: {self.op}"


@dataclass
class PeftscoutConfig(PeftConfig):  # type: ignore[misc]
    """An adapter of mixed ops: the plan, and the sites as they were found when it was built.

    The sites are stored with the adapter, so that an old file loads the same way whatever becomes of the structural
    analysis that found them.
    """

    plan: dict[str, Any] = field(default_factory=dict, metadata={"help": "The plan in its JSON form."})
    sites: dict[str, Any] = field(default_factory=dict, metadata={"help": "The sites that the plan names, by id."})
    settings: dict[str, Any] = field(default_factory=dict, metadata={"help": "Scales and activations of the ops."})
    seed: int = field(default=0, metadata={"help": "Seed of the initialisation."})
    schema: int = field(default=SCHEMA, metadata={"help": "Version of these fields."})
    target_modules: str | None = field(
        default=None, metadata={"help": "Regex of the adapted modules; follows from plan and sites, for peft's eyes."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained and saved whole: the task head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        if self.schema != SCHEMA:
            raise TunerError(
                f"this adapter was saved with schema {self.schema!r}, this version of peftscout reads schema {SCHEMA}; "
                "install the version of peftscout that saved it"
            )
        hosts = "|".join(re.escape(module) for module in self.hosts)
        self.target_modules = hosts or DUMMY_TARGET_MODULES

    @classmethod
    def for_plan(
        cls, plan: Plan, sites: Sites, settings: OpSettings, seed: int, modules_to_save: tuple[str, ...]
    ) -> Self:
        """Describe ``plan`` in the model behind ``sites``."""
        used = {placement.site: dataclasses.asdict(sites[placement.site]) for placement in plan}
        return cls(
            plan=plan.to_json(),
            sites=used,
            settings=dataclasses.asdict(settings),
            seed=seed,
            modules_to_save=list(modules_to_save) or None,
        )

    @cached_property
    def hosts(self) -> Mapping[str, tuple[HostedOp, ...]]:
        """The ops by the module that hosts them, in the order in which they are applied."""
        plan = Plan.from_json(self.plan) if self.plan else Plan()
        hosts: dict[str, list[HostedOp]] = {}
        for placement in plan:
            hosted = HostedOp(self._site(placement.site), placement.op, placement.size)
            hosts.setdefault(hosted.host, []).append(hosted)
        for module, hosted_ops in hosts.items():
            ops = [hosted.op for hosted in hosted_ops]
            if doubled := sorted({op for op in ops if ops.count(op) > 1}):
                raise TunerError(f"{module}: {doubled[0]} is asked for by two sites, one module holds it once")
        order = list(OPS)
        return {module: tuple(sorted(ops, key=lambda h: order.index(h.op))) for module, ops in hosts.items()}

    @property
    def ops(self) -> tuple[HostedOp, ...]:
        """Every op of the plan."""
        return tuple(hosted for ops in self.hosts.values() for hosted in ops)

    @cached_property
    def op_settings(self) -> OpSettings:
        """Scales and activations of the ops."""
        known = [f.name for f in dataclasses.fields(OpSettings)]
        if unknown := sorted(set(self.settings) - set(known)):
            raise TunerError(f"settings: unknown key {unknown[0]!r}{nearest(unknown[0], known)}")
        return OpSettings(**self.settings)

    def _site(self, name: str) -> Site:
        try:
            record = dict(self.sites[name])
        except KeyError:
            raise TunerError(f"{name}: the adapter's plan names this site, but its sites do not hold it") from None
        attention = record.pop("attention", None)
        return Site(**record, attention=None if attention is None else Attention(**attention))
