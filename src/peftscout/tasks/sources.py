"""Where data comes from: a folder, files, the hub, or data sets in memory; all become tables by role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftscout.errors import DataError, nearest
from peftscout.tasks.files import SUFFIXES, name_classes, read_table
from peftscout.tasks.recipes import RECIPES, Recipe, find_recipe
from peftscout.tasks.table import Table

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ROLES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""Names of the splits by what they are for."""


@dataclass(frozen=True, slots=True)
class Source:
    """Tables as they were found.

    Attributes:
        name: for people, and the name of the task unless a recipe applies.
        tables: by role: ``train``, and where there is one ``validation`` and ``test``.
        recipe: the recipe that the source is named like, if any.
        notes: what was passed over.
    """

    name: str
    tables: Mapping[str, Table]
    recipe: Recipe | None = None
    notes: tuple[str, ...] = ()


def from_files(train: Path, validation: Path | None, test: Path | None) -> Source:
    """Read one file a split; the recipe is the one that the folder of ``train`` is named like."""
    files = {"train": train, "validation": validation, "test": test}
    given = {role: Path(path) for role, path in files.items() if path is not None}
    for role, path in given.items():
        if path.is_dir():
            raise DataError(f"{path}: is a folder, {role} must be a file; give a folder as the source (--data)")
    for role, path in given.items():
        if role != "train" and path.resolve() == given["train"].resolve():
            raise DataError(f"{path}: serves as train and as {role}; nothing learnt from it could be trusted")
    folder, stem = Path(train).resolve().parent.name, Path(train).stem
    tables = {role: read_table(path) for role, path in given.items()}
    return Source(folder if stem.lower() in ROLES["train"] else stem, tables, find_recipe(folder))


def from_folder(folder: Path) -> Source:
    """Read ``train``, ``validation`` and ``test`` files of a folder, or what ``DatasetDict.save_to_disk`` wrote there.

    Raises:
        DataError: when there is no train file (lists what was found), two files for one split, or an unknown type.
    """
    name = folder.resolve().name
    recipe = find_recipe(name)
    if (folder / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        return from_datasets(load_from_disk(str(folder)), name, recipe)
    present = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    stems = {path: path.name.split(".")[0].lower() for path in present}
    chosen = _by_role(str(folder), stems.values(), recipe)
    tables: dict[str, Table] = {}
    for role, stem in chosen.items():
        paths = [path for path in present if stems[path] == stem]
        readable = [path for path in paths if path.suffix.lower() in SUFFIXES]
        if len(readable) > 1:
            raise DataError(
                f"{folder}: {' and '.join(path.name for path in readable)} are both there, keep one of them"
            )
        tables[role] = read_table((readable or paths)[0])
    if "train" not in tables:
        found = ", ".join(path.name for path in present[:8]) or "nothing"
        wanted = " or ".join(f"train{suffix}" for suffix in SUFFIXES)
        raise DataError(
            f"{folder}: no train file; a data folder holds {wanted}, and validation likewise; found {found}"
        )
    return Source(name, tables, recipe)


def from_datasets(data: Mapping[str, Dataset], name: str, recipe: Recipe | None = None) -> Source:
    """Take the splits of a ``DatasetDict`` or a plain dict of data sets."""
    chosen = _by_role(name, data, recipe)
    if "train" not in chosen:
        raise DataError(f"{name}: no train split; found {', '.join(map(repr, data)) or 'nothing'}")
    unused = [split for split in data if split not in chosen.values()]
    notes = (f"splits left alone: {', '.join(unused)}",) if unused else ()
    return Source(name, {role: _table(data[split], f"{name} {split}") for role, split in chosen.items()}, recipe, notes)


def from_hub(source: str) -> Source:
    """Load a data set from the Hugging Face hub: a recipe such as ``glue/rte``, or ``[owner/]name[/configuration]``.

    Repositories that still hold a loading script are read from the Parquet files that the hub converted them to; no
    code of a repository is ever run.

    Raises:
        DataError: when there is no such data set, the hub cannot be reached, or a configuration must be named.
    """
    recipe = find_recipe(source)
    for path, config in [recipe.hub] if recipe else _hub_ids(source):
        data = _load(source, path, config)
        if data is not None:
            return from_datasets(data, f"{path}/{config}" if config else path, recipe)
    raise DataError(
        f"{source!r}: no such folder, file, recipe or data set on the hub{nearest(source, RECIPES)}; "
        f"the recipes are {', '.join(RECIPES)}"
    )


def _hub_ids(source: str) -> list[tuple[str, str | None]]:
    """Return the ways to read an id, the most likely one first."""
    parts = source.strip("/").split("/")
    if len(parts) == 3:
        return [("/".join(parts[:2]), parts[2])]
    if len(parts) == 2:
        return [(source, None), (parts[0], parts[1])]
    return [(source, None)] if len(parts) == 1 else []


def _load(source: str, path: str, config: str | None) -> DatasetDict | None:
    """Return the data set, or ``None`` when the hub has none of that name."""
    import datasets

    try:
        try:
            return datasets.load_dataset(path, config)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(path, config, revision="refs/convert/parquet")
    except datasets.exceptions.DatasetNotFoundError:
        return None
    except ConnectionError as error:
        raise DataError(f"{source!r}: no such folder here, and the hub cannot be reached ({error})") from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        remedy = f"; write {source}/CONFIGURATION" if "onfig name is missing" in str(error) else ""
        raise DataError(f"{source!r}: cannot be loaded from the hub: {error}{remedy}") from error


def _by_role(place: str, names: Iterable[str], recipe: Recipe | None) -> dict[str, str]:
    """Return which of the names serves as which split."""
    present = list(dict.fromkeys(names))
    chosen: dict[str, str] = {}
    for role, known in ROLES.items():
        found = [name for name in present if name.lower() in known]
        if role == "validation" and recipe is not None and recipe.validation in present:
            found = [recipe.validation]
        if len(found) > 1:
            raise DataError(f"{place}: {' and '.join(map(repr, found))} could each be the {role} split, keep one")
        if found:
            chosen[role] = found[0]
    return chosen


def _table(data: Any, name: str) -> Table:
    """Turn a ``datasets.Dataset`` into a table; class ids become the names of their classes."""
    from datasets import Dataset

    if not isinstance(data, Dataset):
        raise DataError(
            f"{name}: is a {type(data).__name__}, a datasets.Dataset is needed "
            "(Dataset.from_pandas and Dataset.from_list make one; streamed data must be downloaded)"
        )
    if not len(data):
        raise DataError(f"{name}: there is not one row")
    classes = {column: tuple(f.names) for column, f in data.features.items() if type(f).__name__ == "ClassLabel"}
    columns = {column: name_classes(values, classes.get(column)) for column, values in data.to_dict().items()}
    return Table(name, columns, range(len(data)), is_text=False, class_names=classes)
