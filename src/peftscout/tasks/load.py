"""load_task: any source of data to a Task; everything that is wrong with the data is said here, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftscout.errors import DataError, nearest
from peftscout.tasks.columns import find_layout, recipe_for
from peftscout.tasks.files import SUFFIXES
from peftscout.tasks.labels import class_labels, infer_kind, is_hidden
from peftscout.tasks.metrics import kind_of_metric, metrics_for
from peftscout.tasks.partition import Carving, Partition, partition
from peftscout.tasks.recipes import KINDS, READ_AS, SEQUENCE_KINDS, Kind, Layout, Recipe
from peftscout.tasks.rows import (
    Rows,
    choice_names,
    extract_rows,
    label_reader,
    num_choices,
    read_split,
    require_variety,
)
from peftscout.tasks.sources import Source, from_datasets, from_files, from_folder, from_hub
from peftscout.tasks.spans import find_span_layout
from peftscout.tasks.splits import LockedSplit, Split
from peftscout.tasks.table import BadRows, OnBadRows, Table
from peftscout.tasks.targets import find_target_layout, read_targets, tag_names
from peftscout.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def load_task(
    source: str | Path | DatasetDict | Mapping[str, Dataset] | None = None,
    *,
    train: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    kind: Kind | None = None,
    metric: str | None = None,
    on_bad_rows: OnBadRows = "error",
    max_train_rows: int | None = None,
    search_fraction: float = 0.2,
    max_search_rows: int = 1000,
    seed: int = 0,
) -> Task:
    """Read data, check every row, and divide it into train, search and report.

    Args:
        source: a folder with ``train.jsonl`` (csv, tsv, parquet) and perhaps ``validation`` and ``test``; a recipe
            (``rte``, ``glue/rte``, ``super_glue/boolq``) or any data set of the hub; or a mapping of data sets by
            split. A folder that exists comes before a recipe or data set of the same name.
        train: a file, instead of ``source``.
        validation: a file that goes with ``train``.
        test: a file that goes with ``train``.
        text: column of the text (for multiple choice: of the prompt); found by name when not given.
        text_pair: column of the second text.
        label: column of the label. Naming any column turns recipes off.
        kind: see `peftscout.tasks.recipes.Kind`; ``classification``, ``regression`` or ``multiple_choice`` is told from
            the data when not given.
        metric: the main metric; by default that of the recipe, or accuracy, or Spearman's correlation.
        on_bad_rows: ``error`` refuses data with bad rows, ``skip`` leaves them out and counts them in the notes.
        max_train_rows: most rows to train on, a seeded sample taken after carving.
        search_fraction: share of train carved for a split that the source lacks.
        max_search_rows: most rows of a carved split.
        seed: of carving and sampling.

    Raises:
        DataError: on anything that cannot be trained on; names file and line, the counts, and the remedy.
    """
    carving = Carving(search_fraction, max_search_rows, max_train_rows, seed)
    if kind is not None and kind not in KINDS:
        raise DataError(f"kind {kind!r}: unknown{nearest(kind, KINDS)}; choose from {', '.join(KINDS)}")
    bad = BadRows(on_bad_rows)
    found = _find_source(source, train, validation, test)
    asked, kind = kind, READ_AS.get(kind, kind) if kind else None
    recipe, layout, notes = _layout(found, text, text_pair, label, kind, kind or kind_of_metric(metric))
    tables, hidden = _labelled(found.tables, layout)

    choices = num_choices(tables["train"], layout)
    rows = {role: extract_rows(table, layout, choices, bad) for role, table in tables.items()}
    bad.settle()
    kind = kind or _kind(recipe, layout, metric, rows["train"])
    labels = _labels(kind, recipe, layout, choices, rows["train"])
    metrics = metrics_for(kind, len(labels), metric, recipe.metrics if recipe else ())
    kind, reads = asked or kind, kind
    splits = _splits(kind, reads, labels, layout, rows, bad)

    parts = partition(splits, carving)
    return Task(
        name=recipe.name if recipe else found.name,
        kind=kind,
        labels=labels,
        metrics=metrics,
        train=parts.train,
        search=parts.search,
        report=LockedSplit(parts.report),
        notes=(
            *notes, *found.notes, *hidden, *bad.notes(), *_repeats(rows["train"], splits["train"]),
            *parts.notes, *_thin_classes(parts, labels),
        ),
        num_choices=choices if reads == "multiple_choice" else None,
        columns={"texts": _text_columns(layout), "label": layout.label},
        files={
            role: {"name": Path(table.name).name, "sha256": table.sha256}
            for role, table in found.tables.items()
            if table.sha256
        },
        overlap=parts.overlap,
        seed=seed,
    )  # fmt: skip


def _splits(
    kind: Kind, reads: Kind, labels: tuple[str, ...], layout: Layout, rows: Mapping[str, Rows], bad: BadRows
) -> dict[str, Split]:
    """Return the rows of each split with what is to be predicted."""
    if kind in SEQUENCE_KINDS:
        splits = {role: read_targets(role, own, layout, kind, labels, bad) for role, own in rows.items()}
        bad.settle()
        return splits
    reader = label_reader(reads, labels, layout, rows["train"].labels)
    splits = {role: replace(read_split(role, own, layout, reader, reads, bad), kind=kind) for role, own in rows.items()}
    bad.settle()
    require_variety(f"{rows['train'].table.name}: {layout.label!r}", splits["train"])
    return splits


def _find_source(source: Any, train: Any, validation: Any, test: Any) -> Source:
    if source is not None and (train or validation or test):
        raise DataError("both a source (--data) and files (--train, --validation, --test) are given; give one of them")
    if source is None:
        if train is None:
            raise DataError(
                "no data: give a source (--data FOLDER_OR_HUB_ID) or a file of training rows (--train FILE)"
            )
        return from_files(Path(train), validation and Path(validation), test and Path(test))
    if isinstance(source, Mapping):
        return from_datasets(source, "data")
    if not isinstance(source, str | Path):
        return from_datasets({"train": source}, "data")
    path = Path(source).expanduser()
    if path.is_dir():
        return from_folder(path)
    if path.is_file():
        return from_files(path, None, None)
    like_a_path = str(source).startswith((".", "/", "~")) or path.suffix.lower() in (*SUFFIXES, ".json", ".txt")
    if isinstance(source, Path) or like_a_path or not source.strip():
        raise DataError(f"{source}: no such folder or file")
    return from_hub(source)


def _layout(
    found: Source, text: str | None, text_pair: str | None, label: str | None, asked: Kind | None, likely: Kind | None
) -> tuple[Recipe | None, Layout, list[str]]:
    """Return the recipe that applies, the columns, and what to note about them."""
    table = found.tables["train"]
    if text is None and text_pair is None and label is None:
        recipe, why = recipe_for(table, found.recipe)
        if recipe is not None and asked in (None, recipe.kind):
            return recipe, recipe.layout, [why]
    else:
        why = f"named like the recipe {found.recipe.name}, which is off: columns were given" if found.recipe else ""
    if likely == "question_answering":
        layout = find_span_layout(table, text, text_pair, label)
    elif likely in SEQUENCE_KINDS:
        layout = find_target_layout(table, likely, text, label)
    else:
        layout = find_layout(table, text=text, text_pair=text_pair, label=label, kind=likely)
    unused = [column for column in table.columns if column not in layout.columns]
    columns = f"texts: {', '.join('+'.join(c) for c in _text_columns(layout))}; label: {layout.label}"
    return None, layout, [note for note in (why, columns, f"not used: {', '.join(unused)}" if unused else "") if note]


def _text_columns(layout: Layout) -> list[list[str]]:
    return [list(columns) for columns in layout.texts] + ([[layout.choices]] if layout.choices else [])


def _labelled(tables: Mapping[str, Table], layout: Layout) -> tuple[dict[str, Table], list[str]]:
    """Leave out a test split without labels, as benchmarks publish it.

    Raises:
        DataError: when the labels of train or validation are hidden.
    """
    known = tables["train"].column(layout.label)
    kept: dict[str, Table] = {}
    notes = []
    for role, table in tables.items():
        absent = layout.label not in table.columns
        if role == "test" and (absent or is_hidden(table.column(layout.label), known)):
            notes.append(f"{table.name}: {table.total} rows without labels, taken as no test split")
            continue
        if role == "validation" and is_hidden(table.column(layout.label), known):
            raise DataError(f"{table.name}: {layout.label!r} is -1 or null in all {len(table)} rows: labels are hidden")
        kept[role] = table
    return kept, notes


def _kind(recipe: Recipe | None, layout: Layout, metric: str | None, rows: Rows) -> Kind:
    if recipe is not None:
        return recipe.kind
    if layout.multiple_choice:
        return "multiple_choice"
    if layout.label in rows.table.class_names:
        return "classification"
    if (implied := kind_of_metric(metric)) is not None:
        return implied
    return infer_kind(f"{rows.table.name}: {layout.label!r}", rows.labels)


def _labels(kind: Kind, recipe: Recipe | None, layout: Layout, choices: int | None, rows: Rows) -> tuple[str, ...]:
    if kind in ("regression", "text_to_text", "causal_lm", "question_answering"):
        return ()
    if kind == "token_classification":
        return tag_names(rows, layout)
    if kind == "multiple_choice":
        return choice_names(layout, choices or 0)
    declared: Sequence[str] = recipe.labels if recipe else rows.table.class_names.get(layout.label, ())
    return class_labels(f"{rows.table.name}: {layout.label!r}", rows.labels, declared)


def _repeats(rows: Rows, train: Split) -> list[str]:
    """Note training rows that repeat, contradict each other, or share an identifier."""
    notes = []
    references: dict[tuple[str, ...], set[float]] = {}
    for key, reference in zip(train.keys, train.references.tolist(), strict=True):
        references.setdefault(key, set()).add(reference)
    if repeated := len(train) - len(references):
        contrary = sum(len(found) > 1 for found in references.values())
        also = f", {contrary} texts have several labels" if contrary else ""
        notes.append(f"{rows.table.name}: {repeated} rows repeat the texts of another{also}")
    for column in ("id", "idx", "guid", "uid"):
        values = rows.table.columns.get(column)
        if values is not None and (twice := len(values) - len(set(map(str, values)))):
            notes.append(f"{rows.table.name}: {twice} values of {column!r} repeat")
    return notes


def _thin_classes(parts: Partition, labels: tuple[str, ...]) -> list[str]:
    """Note the classes of which a split has no row."""
    notes: list[str] = []
    if parts.train.targets:
        return notes
    for split in (parts.train, parts.search, parts.report):
        present = set(split.classes.tolist())
        absent = [label for i, label in enumerate(labels) if i not in present]
        if absent:
            notes.append(f"{split.name}: no row of class {', '.join(absent[:10])}")
    return notes
