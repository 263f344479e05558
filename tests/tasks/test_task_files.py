"""Reading files: every dialect that is promised, with true line numbers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_files import folder_of, jsonl, reviews

from peftscout.errors import DataError
from peftscout.tasks import load_task
from peftscout.tasks.files import read_table
from peftscout.tasks.table import MISSING

ROWS = [("one", "0"), ("two, or three", "1"), ('say "hi"', "0")]


def test_csv_with_byte_order_mark_and_crlf_reads_like_without(tmp_path: Path) -> None:
    plain = 'text,label\none,0\n"two, or three",1\n"say ""hi""",0\n'
    variants = {
        "plain.csv": plain.encode(),
        "mark.csv": b"\xef\xbb\xbf" + plain.encode(),
        "crlf.csv": plain.replace("\n", "\r\n").encode(),
        "no-last-newline.csv": plain.rstrip("\n").encode(),
        "blank-lines.csv": plain.replace("\n", "\n\n").encode(),
        "spaced-header.csv": plain.replace("text,label", " text , label ").encode(),
    }
    for name, content in variants.items():
        (tmp_path / name).write_bytes(content)
        table = read_table(tmp_path / name)
        assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == ROWS, name
        assert table.sha256 == hashlib.sha256(content).hexdigest()


def test_a_cell_over_several_lines_keeps_line_numbers_true(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text('text,label\n"one\nstill one",0\n\ntwo,1\n', encoding="utf-8")
    table = read_table(path)
    assert table.columns["text"] == ["one\nstill one", "two"]
    assert list(table.lines) == [2, 5]


def test_tsv_takes_quotes_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text('text\tlabel\n"open quote\t0\nsay "hi"\t1\n', encoding="utf-8")
    assert read_table(path).columns == {"text": ['"open quote', 'say "hi"'], "label": ["0", "1"]}


def test_jsonl_is_cut_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    text = "line\u2028separator and\u0085next"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"text": text}, ensure_ascii=False).encode() + b'\r\n\r\n{"text": "b"}'
    )
    table = read_table(path)
    assert table.columns["text"] == [text, "b"]
    assert list(table.lines) == [1, 3]


def test_a_key_that_a_line_lacks_is_not_a_null(tmp_path: Path) -> None:
    table = read_table(jsonl(tmp_path / "train.jsonl", [{"text": None}, {"label": 1}]))
    assert table.columns == {"text": [None, MISSING], "label": [MISSING, 1]}


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "TRAIN.CSV"
    path.write_text("text,label\na,0\n")
    assert read_table(path).columns["text"] == ["a"]


# pandas writes a lone carriage return without quotes; no reader could tell that from the end of a line.
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=20)


@settings(max_examples=40)
@given(st.lists(st.tuples(cells, st.integers(0, 3)), min_size=1, max_size=8))
def test_what_pandas_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int]]) -> None:
    import pandas as pd

    folder = tmp_path_factory.mktemp("round")
    frame = pd.DataFrame(rows, columns=["text", "label"])
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "a.parquet")
    frame.to_json(folder / "a.jsonl", orient="records", lines=True, force_ascii=False)
    texts = [text for text, _ in rows]
    assert read_table(folder / "a.parquet").columns == {"text": texts, "label": [label for _, label in rows]}
    assert read_table(folder / "a.jsonl").columns["text"] == texts
    assert read_table(folder / "a.csv").columns["text"] == texts


def test_class_names_in_parquet_metadata_become_the_labels(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])})
    rows = datasets.Dataset.from_list(reviews(20), features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    task = load_task(train=tmp_path / "train.parquet")
    assert task.labels == ("pos", "neg")
    assert task.kind == "classification"


def test_parquet_without_class_names_has_plain_numbers(tmp_path: Path) -> None:
    table = pa.table({"text": [f"t{i}" for i in range(20)], "label": [i % 3 for i in range(20)]})
    pa.parquet.write_table(table, tmp_path / "train.parquet")
    assert load_task(train=tmp_path / "train.parquet").labels == ("0", "1", "2")


def test_all_formats_of_one_data_set_give_the_same_task(tmp_path: Path) -> None:
    import pandas as pd

    rows = reviews(30, ("no", "yes"))
    frame = pd.DataFrame(rows)
    paths = [tmp_path / f"train{suffix}" for suffix in (".jsonl", ".csv", ".tsv", ".parquet")]
    jsonl(paths[0], rows)
    frame.to_csv(paths[1], index=False)
    frame.to_csv(paths[2], index=False, sep="\t")
    frame.to_parquet(paths[3])
    manifests = [load_task(train=path).manifest() for path in paths]
    for manifest in manifests:
        del manifest["files"]
    assert manifests[0] == manifests[1] == manifests[2] == manifests[3]


class TestFolder:
    def test_split_names_may_be_those_in_use(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "mine", train=reviews(20), dev=reviews(6), test=reviews(8))
        task = load_task(folder)
        assert (task.name, len(task.train), len(task.search), len(task.report)) == ("mine", 20, 6, 8)

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(20), validation=reviews(6))
        (folder / "README.md").write_text("about")
        (folder / ".hidden").write_text("")
        (folder / "train.json").write_text("[]")
        assert len(load_task(str(folder)).report) == 6

    def test_a_folder_without_train_says_what_it_holds(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, validation=reviews(6))
        with pytest.raises(DataError) as error:
            load_task(folder)
        assert str(error.value) == (
            f"{folder}: no train file; a data folder holds train.jsonl or train.csv or train.tsv or train.parquet, "
            "and validation likewise; found validation.jsonl"
        )

    def test_an_empty_folder_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no train file; .* found nothing"):
            load_task(tmp_path)

    def test_two_train_files_are_ambiguous(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(20))
        (folder / "train.csv").write_text("text,label\na,0\n")
        with pytest.raises(DataError, match=r"train\.csv and train\.jsonl are both there, keep one of them"):
            load_task(folder)

    def test_two_validation_names_are_ambiguous(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path, train=reviews(20), dev=reviews(5), validation=reviews(5))
        with pytest.raises(DataError, match="'dev' and 'validation' could each be the validation split, keep one"):
            load_task(folder)

    def test_a_train_file_of_an_unknown_type_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "train.xlsx").write_bytes(b"PK")
        with pytest.raises(DataError, match=r"train\.xlsx: cannot read files of type '\.xlsx'"):
            load_task(tmp_path)

    def test_what_save_to_disk_wrote_is_read(self, tmp_path: Path) -> None:
        rows = datasets.Dataset.from_list(reviews(20))
        datasets.DatasetDict({"train": rows, "validation": rows.select(range(6))}).save_to_disk(tmp_path / "saved")
        task = load_task(tmp_path / "saved")
        assert (task.name, len(task.report)) == ("saved", 6)


class TestArguments:
    def test_a_single_file_as_the_source_is_train(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "mine.jsonl", reviews(40))
        assert load_task(path).manifest() == load_task(train=path).manifest()

    def test_files_may_lie_anywhere(self, tmp_path: Path) -> None:
        train = jsonl(tmp_path / "a" / "x.jsonl", reviews(20))
        validation = jsonl(tmp_path / "b" / "y.jsonl", reviews(6))
        test = jsonl(tmp_path / "c" / "z.jsonl", reviews(8))
        task = load_task(train=str(train), validation=validation, test=test)
        assert (len(task.train), len(task.search), len(task.report)) == (20, 6, 8)
        assert task.manifest()["files"]["test"] == {
            "name": "z.jsonl",
            "sha256": hashlib.sha256(test.read_bytes()).hexdigest(),
        }

    def test_source_and_files_together_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="both a source"):
            load_task(tmp_path, train=tmp_path / "train.jsonl")

    def test_nothing_given_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"no data: give a source \(--data FOLDER_OR_HUB_ID\)"):
            load_task()

    def test_validation_alone_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"or a file of training rows \(--train FILE\)"):
            load_task(validation=tmp_path / "validation.jsonl")

    def test_one_file_for_two_splits_is_refused(self, tmp_path: Path) -> None:
        path = jsonl(tmp_path / "train.jsonl", reviews(20))
        with pytest.raises(DataError, match="serves as train and as validation"):
            load_task(train=path, validation=tmp_path / "." / "train.jsonl")

    def test_a_folder_where_a_file_belongs_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a folder, train must be a file"):
            load_task(train=tmp_path)

    @pytest.mark.parametrize("source", ["./absent", "/absent/folder", "absent.csv", "absent.json", Path("absent"), " "])
    def test_a_path_that_does_not_exist_is_not_sought_on_the_hub(self, source: str | Path) -> None:
        with pytest.raises(DataError, match="no such folder or file"):
            load_task(source)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kind": "regresion"}, r"kind 'regresion': unknown \(did you mean 'regression'\?\)"),
            ({"search_fraction": 0.5}, r"search_fraction 0\.5: must be above 0 and below 0\.5"),
            ({"search_fraction": 0.0}, r"search_fraction 0\.0: must be above 0"),
            ({"max_search_rows": 1}, "max_search_rows 1: at least 2 are needed"),
            ({"max_train_rows": 1}, "max_train_rows 1: at least 2 are needed"),
            ({"metric": "acuracy"}, r"metric 'acuracy': not a metric of classification \(did you mean 'accuracy'\?\)"),
        ],
    )
    def test_impossible_arguments_are_refused(self, tmp_path: Path, arguments: dict[str, object], message: str) -> None:
        path = jsonl(tmp_path / "train.jsonl", reviews(20))
        with pytest.raises(DataError, match=message):
            load_task(train=path, **arguments)  # type: ignore[arg-type]

    def test_the_task_is_named_after_its_file_or_else_its_folder(self, tmp_path: Path) -> None:
        assert load_task(jsonl(tmp_path / "mine" / "moods.jsonl", reviews(20))).name == "moods"
        assert load_task(jsonl(tmp_path / "mine" / "train.jsonl", reviews(20))).name == "mine"

    def test_a_home_folder_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        folder_of(tmp_path / "mine", train=reviews(20))
        assert load_task("~/mine").name == "mine"
