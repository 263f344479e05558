"""A real text task from what is installed: docstrings of scientific libraries; which library is this from?

The names that would give the answer away are masked. Source files are parsed, never imported, so building the task
takes seconds and gives the same rows wherever the same versions are installed.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftscout.errors import DataError

LIBRARIES = ("numpy", "scipy", "sklearn", "torch")
"""The labels: dependencies of peftscout, so they are there, with enough public docstrings each."""

WORDS = range(8, 25)
"""Shorter passages say too little; longer ones are cut, which keeps training short."""

_SKIPPED = re.compile(
    r"^_|^tests?$|^testing$|^test_|^conftest|^externals$|^distutils$|^setup|^(?:ao|distributed|fx|onnx)$"
)
"""Folders and files that are private, tests, copies of other people's code, or internals of torch."""


@dataclass(frozen=True, slots=True)
class Passage:
    """The beginning of one docstring.

    Attributes:
        text: cleaned and masked.
        label: the library it is from.
        file: where it stood; train and validation never share a file.
    """

    text: str
    label: str
    file: str


def build_task(folder: str | Path, *, train_rows: int, validation_rows: int, seed: int = 0) -> Path:
    """Write ``train.jsonl`` and ``validation.jsonl`` (fields ``text``, ``label``) into ``folder`` and return it.

    Classes are balanced, no text stands twice, and no source file feeds both splits. The rows depend on the installed
    versions and on ``seed`` only.

    Raises:
        DataError: when a library is not installed or has too few docstrings for that many rows.
    """
    passages = {library: list(_passages(library)) for library in LIBRARIES}
    unique = _without_repeats([passage for library in LIBRARIES for passage in passages[library]])
    train: list[Passage] = []
    validation: list[Passage] = []
    for position, library in enumerate(LIBRARIES):
        own = [passage for passage in unique if passage.label == library]
        wanted = [rows // len(LIBRARIES) + (position < rows % len(LIBRARIES)) for rows in (train_rows, validation_rows)]
        for_train, for_validation = _split_by_file(own, wanted[1], seed)
        if len(for_train) < wanted[0] or len(for_validation) < wanted[1]:
            raise DataError(
                f"{library}: {len(for_train)} docstrings for {wanted[0]} train rows and {len(for_validation)} for "
                f"{wanted[1]} validation rows; ask for fewer rows"
            )
        train += for_train[: wanted[0]]
        validation += for_validation[: wanted[1]]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation)):
        ordered = sorted(rows, key=lambda passage: _shuffle_key(seed, passage.text))
        lines = [json.dumps({"text": row.text, "label": row.label}, ensure_ascii=False) + "\n" for row in ordered]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def _passages(library: str) -> Iterator[Passage]:
    """Every public docstring of ``library`` that has enough words, in the order of its files."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise DataError(
            f"{library}: not installed; its docstrings are a quarter of the demo task: pip install {library}"
        )
    root = Path(spec.origin).parent
    for path in sorted(root.rglob("*.py")):
        *folders, name = path.relative_to(root).parts
        # Private *files* hold the documented functions of scipy and numpy; private *folders* hold internals.
        if any(map(_SKIPPED.search, folders)) or _SKIPPED.search(name.lstrip("_")):
            continue
        for docstring in _docstrings(path):
            text = clean(docstring)
            if len(text.split()) >= WORDS.start:
                yield Passage(text, library, path.relative_to(root).as_posix())


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of the public classes and functions of one source file, which is parsed and not run."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # templates and code for other versions of Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield ast.get_docstring(node) or ""


_SECTION = re.compile(
    r"^\s*(?:[A-Z][A-Za-z ]+\n\s*[-=~]{3,}|(?:Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?"
    r"|Inputs?|Outputs?|Shape|Attributes|Keyword args|Keyword arguments|References)\s*:{1,2})\s*$|^\s*(?:>>>|\.\. )",
    re.MULTILINE,
)
"""Where the prose ends: a headed section of either convention, an example, a directive."""

_MARKUP = (
    (re.compile(r":[a-z:]+:`~?(?:[\w.]*\.)?([^`<]*?)(?:\s*<[^`]*>)?`"), r"\1"),  # :class:`~torch.nn.Module` -> Module
    (re.compile(r"`+([^`]*)`+_*"), r"\1"),
    (re.compile(r"[*_]{2,}|https?://\S+"), " "),
)
_GIVEAWAYS = (
    (
        re.compile(r"\b(?:np|sp|torch|numpy|scipy|sklearn)(?:\.\w+)*\.(\w+)", re.IGNORECASE),
        r"\1",
    ),  # np.linalg.norm -> norm
    (
        re.compile(
            r"\b(?:num-?py|scipy|sklearn|scikit-?learn|scikits?|(?:py)?torch(?:script|vision)?|pandas|aten|autograd|cuda)\b",
            re.IGNORECASE,
        ),
        "library",
    ),
    (re.compile(r"\b(?:ndarray|array[_-]like|tensor|recarray|matrix)(s?)\b", re.IGNORECASE), r"array\1"),
)


def clean(docstring: str) -> str:
    """Return the opening prose of a docstring, at most 24 words, with markup and the libraries' own names masked."""
    section = _SECTION.search(docstring)
    text = docstring[: section.start()] if section else docstring
    for pattern, replacement in (*_MARKUP, *_GIVEAWAYS):
        text = pattern.sub(replacement, text)
    return " ".join(text.split()[: WORDS.stop - 1])


def _without_repeats(passages: Sequence[Passage]) -> list[Passage]:
    """Keep the first of equal texts, and none where two libraries share one: nobody could tell them apart."""
    labels: dict[str, set[str]] = {}
    first: dict[str, Passage] = {}
    for passage in passages:
        key = " ".join(re.findall(r"[a-z]+", passage.text.lower()))
        labels.setdefault(key, set()).add(passage.label)
        first.setdefault(key, passage)
    return [passage for key, passage in first.items() if len(labels[key]) == 1]


def _split_by_file(passages: Sequence[Passage], validation_rows: int, seed: int) -> tuple[list[Passage], list[Passage]]:
    """Deal whole files, in an order drawn from ``seed``: first to validation until it is full, the rest to train."""
    files: dict[str, list[Passage]] = {}
    for passage in passages:
        files.setdefault(passage.file, []).append(passage)
    most_of_a_file = max(1, validation_rows // 8)  # no single file decides the score
    train: list[Passage] = []
    validation: list[Passage] = []
    for file in sorted(files, key=lambda name: _shuffle_key(seed, name)):
        own = sorted(files[file], key=lambda passage: _shuffle_key(seed, passage.text))
        if len(validation) < validation_rows:
            validation += own[:most_of_a_file]
        else:
            train += own
    return sorted(train, key=lambda passage: _shuffle_key(seed, passage.text)), validation


def _shuffle_key(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()
