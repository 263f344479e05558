"""Everything that a study needs, loaded and checked before anything is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from peftscout import tuner
from peftscout.backbone import Backbone, Loading, load_backbone
from peftscout.config import StudyConfig
from peftscout.earlier import Earlier, earlier_for
from peftscout.errors import ConfigError
from peftscout.header import Header, versions
from peftscout.outcome import Fidelity
from peftscout.plan import Budget, Plan, Sites
from peftscout.space import Space, load_space
from peftscout.stock import holds_plan
from peftscout.strategies import (
    FidelityOptions,
    check_fidelity,
    check_judges_by_several,
    check_learns_from_others,
    check_strategy,
)
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import UniformPlan, lora_on_query_value
from peftscout.study import read_header
from peftscout.tasks import Encoded, Split, Task, encode_cached, load_task
from peftscout.training.arithmetic import Arithmetic, choose, use_threads
from peftscout.training.dropout import checkpoint
from peftscout.training.evaluator import EncodedTask, Evaluator
from peftscout.training.own_training import OwnTraining, name_of
from peftscout.training.schedule import rates_at
from peftscout.training.settings import TrainingSettings

_BYTES_OF_SMALL_FILES = 20_000


@dataclass(frozen=True)
class Prepared:
    """Everything a study needs, checked; nothing has been written yet.

    ``others`` are the further tasks of ``config.also``, by name, each with a copy of the model that has its head.
    """

    config: StudyConfig
    task: Task
    backbone: Backbone
    budget: Budget
    space: Space
    baseline: UniformPlan
    fidelity: Fidelity
    multi_fidelity: FidelityOptions | None
    arithmetic: Arithmetic
    earlier: Earlier | None = None
    own_training: OwnTraining | None = None
    others: Mapping[str, Prepared] = field(default_factory=dict)
    in_memory: bool = False

    @property
    def tied_to_this_process(self) -> str:
        """Why no other process can prepare the same, in words; empty when one can."""
        if self.own_training is not None:
            return "a training of your own is a function of this process"
        return "the data are in the memory of this process; write them to files" if self.in_memory else ""

    @property
    def problem(self) -> Problem:
        """The problem as strategies see it."""
        c = self.config
        return Problem(
            sites=self.backbone.model_map.sites,
            space=self.space,
            budget=self.budget,
            baseline=self.baseline.plan,
            fidelity=self.fidelity,
            trials=c.trials,
            seed=c.seed,
            lr_scales=c.lr_scales,
            reference_score=self.task.majority,
            observed=() if self.earlier is None else self.earlier.observed,
            related=() if self.earlier is None else self.earlier.related,
            tasks=("", *self.others),
        )

    @property
    def bytes_of_a_trial(self) -> int:
        """Most bytes that the folder of a trial takes: adapter and head in float32, and a few small files."""
        head = [self.backbone.model.get_submodule(name) for name in self.backbone.model_map.head]
        trained = self.budget.parameters + sum(p.numel() for module in head for p in module.parameters())
        return 4 * int(trained) + _BYTES_OF_SMALL_FILES

    def may_be_chosen(self, plan: Plan) -> bool:
        """Whether ``plan`` can be exported in the form that was asked for: the baseline, LoRA, sometimes cannot."""
        form = self.config.export
        return form == "any" or holds_plan(form, plan, self.backbone.model_map.sites)

    def header(self) -> Header:
        """What decides the study, for ``study.json``."""
        model_map = self.backbone.model_map
        model = {
            "fingerprint": tuner.fingerprint(self.backbone.model),
            "parameters": model_map.total,
            "reference": asdict(self.backbone.reference),
        }
        if self.own_training is not None:
            model["own_training"] = name_of(self.own_training)
        data = self.task.manifest()
        if self.others:
            data |= {"also": {name: other.task.manifest() for name, other in self.others.items()}}
        return Header(self.config.deciding(), data, model, versions(), self.arithmetic.to_json())

    def continuing(self, folder: Path) -> Prepared:
        """Return this with what the study in ``folder`` began with: its arithmetic, if there is one and the config
        leaves it open, and what it took from another study.

        Whoever continues a study on a faster machine gets the numbers of the machine that it began on.

        Raises:
            StudyError: when nothing can be taken from ``config.from_study``.
        """
        begun = self
        if self.config.from_study is not None:
            earlier = earlier_for(folder, self.config.from_study, self.header(), self.problem)
            begun = replace(begun, earlier=earlier)
        if self.config.training.precision != "auto" or not (folder / "study.json").exists():
            return begun
        return replace(begun, arithmetic=Arithmetic.from_json(read_header(folder).arithmetic))


def prepare(config: StudyConfig, dataset: Any = None, own_training: OwnTraining | None = None) -> Prepared:
    """Load and check everything that a study needs, without writing anything.

    ``dataset`` is a DatasetDict in memory that takes the place of ``config.data.source``; ``own_training`` trains and
    scores plans in the place of the evaluator's loop.

    Raises:
        PeftscoutError: whatever cannot work is found here: data, model, budget, space, strategy.
    """
    check_strategy(config.strategy, config.strategy_options)
    if config.also:
        check_judges_by_several(config.strategy)
    if config.from_study is not None:
        check_learns_from_others(config.strategy)
    multi_fidelity = check_fidelity(config.fidelity, config.strategy, config.fidelity_options)
    if own_training is not None and multi_fidelity is not None:
        raise ConfigError(f"fidelity {config.fidelity}: stops and resumes trainings, which a function of yours cannot")
    if own_training is not None and config.also:
        raise ConfigError("also: a function of yours trains on one task")
    use_threads(config.training.threads)
    d = config.data
    task = load_task(
        d.source if dataset is None else dataset,
        train=d.train,
        validation=d.validation,
        test=d.test,
        text=d.text,
        text_pair=d.text_pair,
        label=d.label,
        kind=d.kind,
        metric=d.metric,
        on_bad_rows=d.on_bad_rows,
        max_train_rows=d.max_train_rows,
        search_fraction=d.search_fraction,
        max_search_rows=d.max_search_rows,
        seed=config.seed,
    )
    backbone = load_backbone(
        config.model,
        task,
        seed=config.seed,
        roles=config.roles,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        loading=Loading(config.dtype, config.device_map, config.quantization_config),
    )
    if config.training.gradient_checkpointing:
        checkpoint(backbone.model)
    model_map = backbone.model_map
    budget = Budget.parse(config.budget, model_map.total)  # of float32, as adapters are on any base
    space = load_space(config.space, model_map.sites)
    if config.export != "any":
        space = space.for_stock(config.export)
    baseline = lora_on_query_value(model_map.sites, budget)
    rows = max(1, round(config.data_fraction * len(task.train)))
    fidelity = Fidelity(_steps(config, rows), config.data_fraction)
    if multi_fidelity is not None:
        epoch = math.ceil(rows / config.training.batch_size)
        fidelity = multi_fidelity.ladder(fidelity, epoch)
    arithmetic = choose(config.training.precision, backbone.place or Accelerator().device)
    return Prepared(
        config,
        task,
        backbone,
        budget,
        space,
        baseline,
        fidelity,
        multi_fidelity,
        arithmetic,
        own_training=own_training,
        others=_further_tasks(config, task.name, model_map.sites),
        in_memory=dataset is not None,
    )


def _further_tasks(config: StudyConfig, first: str, sites: Sites) -> dict[str, Prepared]:
    """Prepare the tasks of ``config.also``, each on a model of its own with the same sites."""
    others: dict[str, Prepared] = {}
    for number, data in enumerate(config.also):
        other = prepare(config.model_copy(update={"data": data, "also": ()}))
        name = other.task.name
        if name == first or name in others:
            raise ConfigError(f"also.{number}: a second task {name!r}; every task needs a name of its own")
        if other.backbone.model_map.sites != sites:
            raise ConfigError(f"also.{number}: task {name!r} needs a model with other sites than {first!r}")
        others[name] = other
    return others


def _steps(config: StudyConfig, rows: int) -> int:
    """Steps of an evaluation: as configured, or three passes over the training rows within 50 to 500 steps."""
    return config.steps or min(500, max(50, round(3 * rows / config.training.batch_size)))


def make_evaluator(prepared: Prepared, cache: Path, note: Callable[[str], None] = lambda text: None) -> Evaluator:
    """Tokenise (once, cached) and return the evaluator; nothing of the report split is touched.

    ``note`` is told which shortcuts the model does not allow.
    """
    config, backbone = prepared.config, prepared.backbone
    task = prepared.task
    data = EncodedTask(task, encode_split(prepared, task.train, cache), encode_split(prepared, task.search, cache))
    t = config.training
    settings = TrainingSettings(
        learning_rates=rates_at(backbone.model.config.get_text_config().hidden_size, t.learning_rates.model_dump()),
        batch_size=t.batch_size,
        eval_batch_size=t.eval_batch_size,
        weight_decay=t.weight_decay,
        warmup=t.warmup,
        clip=t.clip,
        evaluations=t.evaluations,
        backbone_dropout=t.backbone_dropout,
        shortcuts=t.shortcuts,
        packing=t.packing,
        cache_bytes=t.cache_bytes,
        arithmetic=prepared.arithmetic,
    )
    return Evaluator(backbone, data, settings, folder=cache, note=note, own=prepared.own_training)


def make_evaluators(
    prepared: Prepared, cache: Path, note: Callable[[str], None] = lambda text: None
) -> dict[str, Evaluator]:
    """Return the evaluator of every task by `Evaluate.task`, all with the arithmetic of the first one."""
    evaluators = {"": make_evaluator(prepared, cache, note)}
    for number, (name, other) in enumerate(prepared.others.items()):
        alike = replace(other, arithmetic=prepared.arithmetic)
        evaluators[name] = make_evaluator(alike, cache / f"also-{number}", partial(_note_of, name, note))
    return evaluators


def _note_of(name: str, note: Callable[[str], None], text: str) -> None:
    note(f"{name}: {text}")


def encode_split(prepared: Prepared, split: Split, cache: Path) -> Encoded:
    """Return the token ids of a split: rows no longer than configured and than the model takes; cached on disk."""
    longest = min(prepared.config.data.max_length, prepared.backbone.max_length)
    return encode_cached(split, prepared.backbone.tokenizer, max_length=longest, cache_dir=cache)
