"""One typed, strict study configuration: YAML <-> object <-> command line. The only place that knows all three."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from peftscout.errors import ConfigError, nearest
from peftscout.stock import StockForm
from peftscout.strict_yaml import read_strictly
from peftscout.tasks.recipes import Kind

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?\s*")
_SECONDS = {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse_duration(value: object) -> object:
    """Turn ``90``, ``"90s"``, ``"30m"``, ``"1h"`` or ``"2d"`` into seconds; anything else is left for the validator."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.lower())):
        return float(match[1]) * _SECONDS[match[2]]
    return value


def with_underscores(value: object) -> object:
    """Turn ``text-to-text`` into ``text_to_text``; anything that is no text is left for the validator."""
    return value.replace("-", "_") if isinstance(value, str) else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DataConfig(_Section):
    """Where the data are and what is in them.

    Attributes:
        source: hub id (``glue/rte``), recipe name (``rte``) or folder with ``train.*`` and ``validation.*``.
        train: file of training rows, instead of ``source``.
        validation: file of validation rows, with ``train``.
        test: file of test rows, with ``train`` (optional).
        text: column of the text; found by name when not given.
        text_pair: column of the second text.
        label: column of the label.
        kind: classification, regression or multiple_choice, inferred when not given; or labels_as_text, text_to_text,
            causal_lm, choice_likelihood, token_classification, question_answering (``docs/tasks.md``). Dashes are
            read as underscores.
        metric: main metric; by task when not given.
        on_bad_rows: stop at a row that cannot be used, or skip it and say how many.
        max_train_rows: use only so many training rows (a seeded sample).
        max_length: longest row in tokens; longer ones are cut.
        search_fraction: share of the training rows that is carved off for the search split, where one has to be carved.
        max_search_rows: most rows of a carved search split.
    """

    source: str | None = None
    train: Path | None = None
    validation: Path | None = None
    test: Path | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    kind: Annotated[Kind | None, BeforeValidator(with_underscores)] = None
    metric: str | None = None
    on_bad_rows: Literal["error", "skip"] = "error"
    max_train_rows: int | None = Field(default=None, ge=2)
    max_length: int = Field(default=256, ge=4)
    search_fraction: float = Field(default=0.2, gt=0, lt=1)
    max_search_rows: int = Field(default=1000, ge=2)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.train is None):
            raise ValueError("give either a source (hub id or folder) or a train file")
        if self.source is not None and (self.validation or self.test):
            raise ValueError("validation and test files go with a train file, not with a source")
        return self


class LearningRates(_Section):
    """Learning rate of each op family at ``lr_scale`` 1.

    ``None`` is a rate that follows from the model's width (`peftscout.training.schedule.rates_at`). Where the others
    come from: ``docs/training.md``. The search and the final comparison tune one factor on all of them, so their ratios
    are what they decide.
    """

    lora: float | None = Field(default=None, gt=0)
    bias: float = Field(default=5e-3, gt=0)
    scale: float = Field(default=1e-2, gt=0)
    norm: float = Field(default=1e-2, gt=0)
    serial: float | None = Field(default=None, gt=0)
    parallel: float | None = Field(default=None, gt=0)
    lowrank_adapter: float | None = Field(default=None, gt=0)
    prefix: float = Field(default=3e-2, gt=0)
    head: float = Field(default=3e-3, gt=0)


class TrainingConfig(_Section):
    """How a plan is trained, the same for every plan.

    Attributes:
        batch_size: rows per optimiser step.
        eval_batch_size: rows per evaluation batch.
        learning_rates: per op family.
        weight_decay: of AdamW, on tensors of two or more dimensions.
        warmup: share of the steps with a linearly growing learning rate; it decays linearly to 0 afterwards.
        clip: largest gradient norm.
        evaluations: evenly spaced evaluations on the search split, the last one at the end; the best state counts.
        precision: ``auto`` is what is faster on this machine (``docs/performance.md``); ``fp32`` is exact; ``bf16``.
        backbone_dropout: dropout of the frozen backbone in training: ``off``; only ``above`` the lowest tuned block; or
            on everywhere, as in each ``paper``.
        gradient_checkpointing: whether blocks keep their inputs only and compute the rest again in the backward pass:
            less memory, a third more time.
        shortcuts: whether what is known or never read is left out, where tests on the model show that it may be
            (``docs/performance.md``).
        packing: whether rows of a batch share sequences in the training of decoders, where that saves padding and a
            test on the model shows that none sees another; not without ``shortcuts`` or with dropout in the backbone.
        cache_bytes: most bytes of stored activations in the study folder; 0 stores none.
        threads: CPU threads, at most one a core; ``None`` leaves torch's choice.
    """

    batch_size: int = Field(default=32, ge=1)
    eval_batch_size: int = Field(default=128, ge=1)
    learning_rates: LearningRates = LearningRates()
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.06, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    evaluations: int = Field(default=2, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    backbone_dropout: Literal["off", "above", "paper"] = "off"
    gradient_checkpointing: bool = False
    shortcuts: bool = True
    packing: bool = True
    cache_bytes: int = Field(default=4_000_000_000, ge=0)
    threads: int | None = Field(default=None, ge=1)


class FinalConfig(_Section):
    """The comparison at the end, on the report split.

    Attributes:
        seeds: fresh seeds for the chosen plan and for the baseline; 0 leaves the comparison out.
        steps: optimiser steps; ``None``: as many as in the search.
        lr_scales: learning-rate factors that are tried for both contenders, on the search split, before the comparison.
    """

    seeds: int = Field(default=3, ge=0)
    steps: int | None = Field(default=None, ge=1)
    lr_scales: tuple[Annotated[float, Field(gt=0)], ...] = (0.33, 1.0, 3.0)


class ExecutorConfig(_Section):
    """Where and how evaluations are run. It decides how long a study takes, not what it finds (``docs/scaling.md``).

    Attributes:
        kind: ``local``: on this machine; ``ray``: on the machines of a Ray cluster (extra ``ray``).
        workers: processes that evaluate side by side; ``None``: one; on Ray as many as the cluster has room for.
        isolate: ``process`` evaluates in a process of its own, which may die without harm to the search; ``none`` in
            that of the search; ``auto`` in one of its own with several workers, with a time limit, and on a GPU, unless
            ``device_map`` or quantisation have the search itself hold the model there.
        trial_timeout: seconds after which an evaluation is stopped and recorded as failed.
        retries: how often an evaluation is tried again whose worker was lost.
        gpus_per_trial: share of a GPU that an evaluation takes: 0.25 puts four on one GPU; or how many GPUs of this
            machine one evaluation is spread over, a part of every batch on each.
        address: of the Ray cluster; ``auto``: the one of this machine; ``None``: a new one on this machine.
    """

    kind: Literal["local", "ray"] = "local"
    workers: int | None = Field(default=None, ge=1)
    isolate: Literal["auto", "none", "process"] = "auto"
    trial_timeout: Annotated[float, Field(gt=0), BeforeValidator(parse_duration)] | None = None
    retries: int = Field(default=2, ge=0)
    gpus_per_trial: float | None = Field(default=None, gt=0)
    address: str | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.address is not None and self.kind != "ray":
            raise ValueError("address: is that of a Ray cluster; add kind: ray (--executor ray)")
        if (self.gpus_per_trial or 1) > 1 and (
            self.kind == "ray" or self.gpus_per_trial != int(self.gpus_per_trial or 1)
        ):
            raise ValueError(
                "gpus_per_trial: above 1 it is a whole number, and of the GPUs of one machine (kind: local)"
            )
        if self.isolate == "none" and (self.kind == "ray" or self.trial_timeout or (self.workers or 1) > 1):
            raise ValueError(
                "isolate: none has no workers, no time limit and no cluster; take process, or leave it out"
            )
        return self


class StudyConfig(_Section):
    """Everything that a study is told.

    Attributes:
        model: hub id or folder of a pretrained model.
        budget: largest number of trainable parameters: ``200_000``, ``0.5%``, ``1.39‱``, ``2MB``.
        data: see `DataConfig`.
        also: further data: plans are trained on each, for a rule that holds on all of them. For the strategy
            ``design-spaces``; the adapter that is handed over at the end is for ``data``.
        space: name of a preset, or path of a YAML file.
        strategy: name of a search strategy.
        strategy_options: options of that strategy.
        trials: evaluations in all, the baseline (trial 0) among them; with rungs, what as many full trainings cost.
        fidelity: how much training plans get: ``full``; ``halving`` (successive halving: the best third at each rung
            goes on); ``early-stop`` (what cannot enter the front any more is stopped); ``one-epoch`` (the best after
            one epoch go on).
        fidelity_options: options of that fidelity.
        from_study: folder of another study, finished or not, on the same model: of the same task, split and training,
            its evaluations are known from the start; of another, they are a prior. For the strategy ``autopeft``.
        data_fraction: share of the training rows that evaluations of the search use; the final comparison uses all.
        steps: optimiser steps of an evaluation; ``None``: three passes over the training rows, within 50 to 500 steps.
        time: seconds after which no new evaluation is started.
        seed: of the search; the final seeds follow from it.
        lr_scales: learning-rate factors that the search may draw from (the nuisance axis).
        export: ``lora``, ``ln_tuning`` or ``ia3`` restricts the space, and what may be chosen at the end, to what a
            stock adapter of peft of that type can hold.
        storage: database URL for the ledger (``postgresql://...``); ``None``: a journal file in the study folder. A
            password in it is not written down.
        training: see `TrainingConfig`.
        final: see `FinalConfig`.
        executor: see `ExecutorConfig`.
        dtype: of the frozen weights, as in ``from_pretrained``; ``None``: as in the checkpoint. Adapters and head are
            float32 in any case.
        device_map: as in ``from_pretrained``: ``auto``, a device, or a mapping of modules to devices.
        quantization_config: as in ``from_pretrained``, as plain data: ``{load_in_4bit: true}`` (bitsandbytes), or with
            ``quant_method: torchao``. The library has to be installed.
        roles: for models whose structure is not recognised: regex on a module's path -> its role (or ``skip``).
        revision: revision of a hub model.
        trust_remote_code: whether code that comes with the model may run.
    """

    model: str
    budget: str | int
    data: DataConfig
    also: tuple[DataConfig, ...] = ()
    space: str = "all"
    strategy: str = "auto"
    strategy_options: dict[str, Any] = Field(default_factory=dict)
    trials: int = Field(default=12, ge=1)
    fidelity: Literal["full", "halving", "early-stop", "one-epoch"] = "full"
    fidelity_options: dict[str, Any] = Field(default_factory=dict)
    from_study: Path | None = None
    data_fraction: float = Field(default=1.0, gt=0, le=1)
    steps: int | None = Field(default=None, ge=1)
    time: Annotated[float, Field(gt=0), BeforeValidator(parse_duration)] | None = None
    seed: int = Field(default=0, ge=0)
    lr_scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    export: Annotated[Literal["any", StockForm], BeforeValidator(with_underscores)] = "any"
    storage: str | None = None
    training: TrainingConfig = TrainingConfig()
    final: FinalConfig = FinalConfig()
    executor: ExecutorConfig = ExecutorConfig()
    dtype: Literal["float32", "bfloat16"] | None = None
    device_map: str | dict[str, int | str] | None = None
    quantization_config: dict[str, Any] | None = None
    roles: dict[str, str] = Field(default_factory=dict)
    revision: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any]) -> Self:
        """Build from nested plain data (strict).

        Raises:
            ConfigError: naming each unknown key with the nearest known one, and each impossible value.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ConfigError(
                "\n".join(_readable(cls, e["loc"], e["type"], e["msg"], e.get("input")) for e in error.errors())
            ) from None

    def to_mapping(self) -> dict[str, Any]:
        """Return nested plain data, JSON- and YAML-able; the inverse of `from_mapping`."""
        return self.model_dump(mode="json")

    def deciding(self) -> dict[str, Any]:
        """Return what decides the numbers of a study, as plain data: all but the executor, which may change.

        It is written down and shown, so it has no password of a database.
        """
        storage = None if self.storage is None else _without_password(self.storage)
        return {key: value for key, value in self.to_mapping().items() if key != "executor"} | {"storage": storage}

    def to_yaml(self) -> str:
        """Return the YAML form, which ``--config`` reads."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True)


def _without_password(url: str) -> str:
    """Return the URL of a database without the password, which is between user and host or among the parameters."""
    url = re.sub(r"^([^:/]+://[^:/@]*):[^@]*@", r"\1@", url)
    return re.sub(r"(?<=[?&])password=[^&]*&?", "", url).rstrip("?&")


def _readable(model: type[BaseModel], location: Sequence[str | int], kind: str, message: str, value: object) -> str:
    place = ".".join(map(str, location)) or "configuration"
    if kind == "extra_forbidden":
        section: Any = model
        for part in location[:-1]:
            section = section.model_fields[part].annotation
        return f"{place}: unknown key{nearest(str(location[-1]), section.model_fields)}"
    if kind == "missing":
        return f"{place}: is needed"
    message = message.removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}" + (
        f", not {value!r}" if isinstance(value, str | int | float | None) else ""
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ConfigError: when it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    data = read_strictly(text, str(path), ConfigError)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(data).__name__}")
    return data


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b=c`` assignments to nested data; the values are read as YAML.

    Raises:
        ConfigError: when an assignment is not ``key=value`` or goes through something that is not a section.
    """
    result = merge(data, {})
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {assignment}: write it as section.key=value")
        try:
            value: Any = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ConfigError(f"--set {assignment[:80]}: the value is not valid YAML: {error}") from None
        for key in reversed(path.strip().split(".")):
            value = {key: value}
        result = merge(result, value)
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``over`` laid on top, section by section."""
    result = {key: merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below if isinstance(below, dict) else {}, value) if isinstance(value, Mapping) else value
    return result


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line ``key: old -> new`` per difference between two nested mappings."""
    lines: list[str] = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += config_diff(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines
