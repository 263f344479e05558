"""What a search reads from its own disk, sent to machines that do not see it: model, data, a space of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from peftscout.config import StudyConfig
from peftscout.errors import ExecutorError
from peftscout.preparation import Prepared
from peftscout.tasks.files import SUFFIXES

Parcel = tuple[str, Mapping[str, np.ndarray]]
"""Where the place is below the folder in which it is unpacked, and the content of its files, as bytes, by path."""

_DATA = ("source", "train", "validation", "test")

_OF_A_MODEL = (".safetensors", ".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab", ".bpe", ".spm")
"""Endings of what is read of a model's folder; its code goes along where it may run. Pickles do not."""


def places_of(config: Mapping[str, Any]) -> list[str]:
    """Return what a configuration, as plain data, names on this disk: folders and files, each once."""
    named = ((key, section[key]) for section, key in _named(config))
    there = (place for key, place in named if Path(place).exists() and (key != "space" or Path(place).is_file()))
    return list(dict.fromkeys(there))


def pack(config: Mapping[str, Any], place: str) -> Parcel:
    """Return what is read of a place of `places_of`. It keeps the name of its folder, which may name a recipe."""
    path = Path(place).resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _goes_along(config, path, file))
    root = path.parent.parent if path.is_file() else path.parent
    content = {file.relative_to(root).as_posix(): np.fromfile(file, dtype=np.uint8) for file in files}
    return path.relative_to(root).as_posix(), content


def unpack(parcel: Parcel, root: Path) -> str:
    """Write files below ``root`` and return where the place is now. What is there already is left alone.

    Raises:
        ExecutorError: when a file would land elsewhere.
    """
    place, files = parcel
    for name in (place, *files):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ExecutorError(f"{name!r}: what was sent leaves the folder that it is for")
    for name, content in files.items():
        if not (file := root / name).exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f"{file.name}.{os.getpid()}")
            content.tofile(unfinished)
            unfinished.replace(file)
    return str(root / place)


def moved(config: Mapping[str, Any], new: Mapping[str, str]) -> dict[str, Any]:
    """Return a configuration with the places that ``new`` knows elsewhere."""
    result = deepcopy(dict(config))
    for section, key in _named(result):
        section[key] = new.get(section[key], section[key])
    return result


def under_their_names(prepared: Prepared, config: StudyConfig) -> Prepared:
    """Return what was prepared from moved places as what it is: the study of ``config``."""
    name = config.model
    prepared.backbone.model.name_or_path = prepared.backbone.model.config._name_or_path = name
    backbone = replace(prepared.backbone, reference=replace(prepared.backbone.reference, name_or_path=name))
    others = {
        task: under_their_names(other, config.model_copy(update={"data": data, "also": ()}))
        for (task, other), data in zip(prepared.others.items(), config.also, strict=True)
    }
    return replace(prepared, config=config, backbone=backbone, others=others)


def _named(config: Mapping[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield section and key of whatever may be on a disk."""
    for section, keys in [(config, ("model", "space")), *((d, _DATA) for d in (config["data"], *config["also"]))]:
        yield from ((section, key) for key in keys if section.get(key) is not None)


def _goes_along(config: Mapping[str, Any], folder: Path, file: Path) -> bool:
    if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    if folder == Path(str(config.get("model"))).resolve():
        code = file.suffix == ".py" and bool(config.get("trust_remote_code"))
        return file.parent == folder and (file.suffix in _OF_A_MODEL or code)
    saved = (folder / "dataset_dict.json").is_file()
    return saved or (file.parent == folder and file.suffix.lower() in SUFFIXES)
