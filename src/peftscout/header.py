"""What decides a study, as plain data, and which of it may change while the study goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from peftscout.config import StudyConfig, config_diff
from peftscout.errors import ConfigError, StudyError

SCHEMA = 1
"""Version of ``study.json`` and ``summary.json``."""

_VERSIONED = ("peftscout", "torch", "transformers", "peft")

_DECIDES_SCORES = (
    "learning_rates",
    "batch_size",
    "weight_decay",
    "warmup",
    "clip",
    "evaluations",
    "backbone_dropout",
)
"""Keys of the configuration's training section that change what a plan scores."""

_LEAVES_THE_SEARCH = ("trials", "time", "final", "export", "storage", "training", "trust_remote_code")
"""Keys of the configuration that may change without a supernet that is being searched becoming another one."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide numbers."""
    return {name: version(name) for name in _VERSIONED}


@dataclass(frozen=True)
class Header:
    """What decides a study; equal headers may continue each other.

    Attributes:
        config: the configuration, as plain data.
        data: manifest of the splits (rows, hashes, seeds).
        model: fingerprint and parameter count of the backbone.
        versions: of the packages that decide numbers.
        arithmetic: of forward passes (`peftscout.training.arithmetic.Arithmetic`); the default is that of studies made
            before it was written down.
    """

    config: Mapping[str, Any]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    versions: Mapping[str, str]
    arithmetic: Mapping[str, Any] = field(default_factory=lambda: {"dtype": "fp32", "attention": None})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": SCHEMA,
            "config": dict(self.config),
            "data": dict(self.data),
            "model": dict(self.model),
            "versions": dict(self.versions),
            "arithmetic": dict(self.arithmetic),
        }

    @classmethod
    def from_json(cls, data: Any, place: Path) -> Self:
        """Read the JSON form.

        Raises:
            StudyError: when it is not one, or of an unknown schema.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise StudyError(f"{place}: not a study header of schema {SCHEMA} (found {found!r})")
        try:
            recorded = {"arithmetic": data["arithmetic"]} if "arithmetic" in data else {}
            return cls(data["config"], data["data"], data["model"], data["versions"], **recorded)
        except KeyError as error:
            raise StudyError(f"{place}: {error} is missing") from None


@dataclass(frozen=True)
class Change:
    """What was changed in a study while it went on, as was asked for.

    Attributes:
        after: evaluations that had ended.
        differences: ``key: before -> now``, at least one.
    """

    after: int
    differences: tuple[str, ...]

    def __str__(self) -> str:
        return f"after {self.after} evaluations this study went on with something else: {'; '.join(self.differences)}"

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"after": self.after, "differences": list(self.differences)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the inverse of `to_json`."""
        return cls(data["after"], tuple(data["differences"]))


def differences(old: Header, new: Header) -> tuple[str, ...]:
    """Return what two headers differ in, ``key: old -> new``; options that the old one did not know are by default."""
    before = {**old.to_json(), "config": _with_defaults(old.config)}
    return tuple(config_diff(before, json.loads(json.dumps(new.to_json()))))


def what_changes_scores(old: Header, new: Header) -> tuple[str, ...]:
    """Return what makes scores of one study differ from those of another, apart from noise; empty: nothing does."""
    return tuple(config_diff(_decisive(old), _decisive(new)))


def what_forbids_a_change(old: Header, new: Header) -> tuple[str, ...]:
    """Return those differences that no study may go on with, as its old scores would be false; empty: it may.

    With another seed the model has another fingerprint, as what its checkpoint lacks is drawn by it: then its name has
    to do.
    """
    by_weights = old.config.get("seed") == new.config.get("seed")
    try:
        return tuple(config_diff(_binding(old, by_weights), _binding(new, by_weights)))
    except (KeyError, IndexError, TypeError) as error:
        return (f"{error}: the header does not say it",)


def leaves_the_search(difference: str) -> bool:
    """Whether a search that is under way on a supernet is still the same after this difference."""
    section, _, rest = difference.partition(".")
    return section != "config" or rest.startswith(_LEAVES_THE_SEARCH)


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with what it says nothing of, as there was no such option yet, as it is by default."""
    try:
        return StudyConfig.from_mapping(config).deciding()
    except ConfigError:
        return dict(config)


def _binding(header: Header, by_weights: bool) -> dict[str, Any]:
    model = {"model.fingerprint": header.model["fingerprint"]} if by_weights else {}
    taken: dict[str, Any] = {"data": {key: value for key, value in header.data.items() if key != "files"}}
    taken |= {"from_study": header.config.get("from_study")}
    taken |= {"also.max_length": [also.get("max_length") for also in header.config.get("also", ())]}
    apart = ("task", "model") if by_weights else ("task",)
    return {key: value for key, value in _decisive(header).items() if key not in apart} | model | taken


def _decisive(header: Header) -> dict[str, Any]:
    data, config = header.data, header.config
    training = {key: config["training"].get(key) for key in _DECIDES_SCORES}
    return {
        "model": _place(header.model["reference"]["name_or_path"]),
        "own_training": header.model.get("own_training"),
        "revision": config.get("revision"),
        "dtype": config.get("dtype"),
        "quantization_config": config.get("quantization_config"),
        "task": _task(data),
        "max_length": config["data"].get("max_length"),
        "training": _plain(training),
    }


def _task(data: Mapping[str, Any]) -> dict[str, Any]:
    rows = {name: data["splits"][name]["sha256"][:12] for name in ("train", "search")}
    return {"kind": data["kind"], "metric": data["metrics"][0], "labels": data["labels"], "rows": rows}


def _place(model: str) -> str:
    """Return the hub's name of a model, or the whole path of its folder, however it was given."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _plain(value: Any) -> Any:
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value
