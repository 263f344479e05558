"""Data sets of the hub and in memory; the hub itself is replaced."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from task_files import reviews

from peftscout.errors import DataError
from peftscout.tasks import RECIPES, find_recipe, load_task


def pairs(count: int, names: list[str] | None = None, label: int | None = None) -> Dataset:
    """Rows of GLUE's RTE: ClassLabel features, -1 where hidden."""
    features = Features(
        {
            "sentence1": Value("string"),
            "sentence2": Value("string"),
            "label": ClassLabel(names=names or ["entailment", "not_entailment"]),
            "idx": Value("int32"),
        }
    )
    rows = [
        {"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2 if label is None else label, "idx": i}
        for i in range(count)
    ]
    return Dataset.from_list(rows, features=features)


class Hub:
    """Stands in for ``datasets.load_dataset``."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.content: dict[tuple[str, str | None], Any] = {}
        self.scripted: set[str] = set()

    def __call__(self, path: str, name: str | None = None, **named: Any) -> Any:
        self.calls.append((path, name, named))
        if path in self.scripted and "revision" not in named:
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {path}.py")
        found = self.content.get((path, name))
        if found is None:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    return stand_in


@pytest.mark.parametrize("source", ["rte", "glue/rte", "nyu-mll/glue/rte", "RTE"])
def test_a_recipe_knows_its_place_on_the_hub(hub: Hub, source: str) -> None:
    hub.content["nyu-mll/glue", "rte"] = DatasetDict(train=pairs(50), validation=pairs(20), test=pairs(30, label=-1))
    task = load_task(source)
    assert hub.calls == [("nyu-mll/glue", "rte", {})]
    assert (task.name, task.labels, task.metrics) == ("rte", ("entailment", "not_entailment"), ("accuracy",))
    assert (len(task.train), len(task.search), len(task.report)) == (40, 10, 20)
    assert "nyu-mll/glue/rte test: 30 rows without labels, taken as no test split" in task.notes


def test_a_labelled_test_split_becomes_the_report(hub: Hub) -> None:
    names = ["not_equivalent", "equivalent"]
    hub.content["nyu-mll/glue", "mrpc"] = DatasetDict(
        train=pairs(50, names), validation=pairs(20, names), test=pairs(30, names)
    )
    task = load_task("glue/mrpc")
    assert (len(task.train), len(task.search), len(task.report)) == (50, 20, 30)
    assert task.metrics == ("accuracy", "f1")


@pytest.mark.parametrize(("source", "rows"), [("mnli", 12), ("glue/mnli_matched", 12), ("mnli_mismatched", 14)])
def test_mnli_takes_the_validation_split_that_its_name_says(hub: Hub, source: str, rows: int) -> None:
    def nli(count: int, tag: str) -> Dataset:
        found = Dataset.from_list(
            [{"premise": f"{tag} {i}", "hypothesis": "h", "label": i % 3, "idx": i} for i in range(count)]
        )
        return found.cast_column("label", ClassLabel(names=["entailment", "neutral", "contradiction"]))

    hub.content["nyu-mll/glue", "mnli"] = DatasetDict(
        train=nli(60, "t"), validation_matched=nli(12, "m"), validation_mismatched=nli(14, "x")
    )
    task = load_task(source)
    assert task.labels == ("entailment", "neutral", "contradiction")
    assert len(task.report) == rows


def test_super_glue_is_read_from_parquet_when_its_repository_holds_a_script(hub: Hub) -> None:
    rows = Dataset.from_list(
        [{"question": f"q {i}", "passage": f"p {i}", "idx": i, "label": i % 2} for i in range(40)]
    ).cast_column("label", ClassLabel(names=["False", "True"]))
    hub.content["aps/super_glue", "boolq"] = DatasetDict(train=rows, validation=rows.select(range(10)))
    hub.scripted.add("aps/super_glue")
    task = load_task("super_glue/boolq")
    assert hub.calls[-1] == ("aps/super_glue", "boolq", {"revision": "refs/convert/parquet"})
    assert (task.name, task.labels) == ("boolq", ("false", "true"))
    assert not any("trust_remote_code" in named for _, _, named in hub.calls)


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("imdb", ("imdb", None)),
        ("owner/name", ("owner/name", None)),
        ("owner/na.me", ("owner/na.me", None)),
        ("owner/name/config", ("owner/name", "config")),
        ("tweet_eval/irony", ("tweet_eval", "irony")),
    ],
)
def test_any_id_with_or_without_a_configuration(hub: Hub, source: str, key: tuple[str, str | None]) -> None:
    hub.content[key] = DatasetDict(train=Dataset.from_list(reviews(40)), test=Dataset.from_list(reviews(9)))
    task = load_task(source)
    assert task.name == "/".join(part for part in key if part)
    assert len(task.report) == 9


def test_an_id_that_nothing_answers_to_names_the_nearest_recipe(hub: Hub) -> None:
    with pytest.raises(DataError) as error:
        load_task("colla")
    assert str(error.value).startswith(
        "'colla': no such folder, file, recipe or data set on the hub (did you mean 'cola'?); "
        "the recipes are cola, sst2"
    )
    assert hub.calls == [("colla", None, {})]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConnectionError("no route"), r"'some/data': no such folder here, and the hub cannot be reached \(no route\)"),
        (
            ValueError("Config name is missing.\nPlease pick one"),
            r"(?s)cannot be loaded .*; write some/data/CONFIGURATION",
        ),
        (OSError("disk full"), "'some/data': cannot be loaded from the hub: disk full"),
        (datasets.exceptions.DatasetGenerationError("bad"), "'some/data': cannot be loaded from the hub: bad"),
    ],
)
def test_a_failing_hub_is_an_error_of_the_data(hub: Hub, failure: Exception, message: str) -> None:
    hub.content["some/data", None] = failure
    with pytest.raises(DataError, match=message):
        load_task("some/data")


def test_without_the_hub_the_error_says_so() -> None:
    with pytest.raises(DataError, match="'glue/rte': no such folder here, and the hub cannot be reached"):
        load_task("glue/rte")


class TestInMemory:
    def test_a_dataset_dict(self) -> None:
        data = DatasetDict(train=Dataset.from_list(reviews(40)), dev=Dataset.from_list(reviews(9)))
        task = load_task(data)
        assert (len(task.train), len(task.search), len(task.report)) == (32, 8, 9)
        assert task.manifest()["files"] == {}

    def test_a_plain_dict_and_a_single_data_set(self) -> None:
        rows = Dataset.from_list(reviews(40))
        assert load_task({"train": rows}).manifest() == load_task(rows).manifest()

    def test_it_equals_the_same_rows_from_a_file(self, tmp_path: Any) -> None:
        rows = Dataset.from_list(reviews(40))
        rows.to_parquet(tmp_path / "train.parquet")
        assert load_task(rows).train.digest == load_task(train=tmp_path / "train.parquet").train.digest

    def test_selected_and_formatted_rows_are_read_as_they_are(self) -> None:
        rows = Dataset.from_list(reviews(80)).select(range(0, 80, 2)).add_column("y2", list(range(40)))
        texts = {text for (text,) in load_task(rows.with_format("numpy"), label="y2", kind="regression").train.texts}
        assert texts <= {f"review number {i}" for i in range(0, 80, 2)}

    def test_class_names_keep_their_declared_order(self) -> None:
        task = load_task({"train": pairs(40, ["zebra", "ape"])})
        assert task.labels == ("zebra", "ape")

    def test_class_names_that_are_numbers_are_not_taken_for_ids(self) -> None:
        rows = pairs(40, ["5", "1"])
        task = load_task({"train": rows})
        assert task.labels == ("5", "1")
        row = task.train.texts[0][0]
        assert task.train.references[0] == int(row.split()[1]) % 2

    def test_class_names_that_read_alike_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"'label' declares classes that read alike: '1', '1\.0'; rename them"):
            load_task({"train": pairs(40, ["1", "1.0"])})

    def test_declared_classes_that_do_not_occur_are_kept_and_noted(self) -> None:
        task = load_task({"train": pairs(40, ["a", "b", "c"])})
        assert task.labels == ("a", "b", "c")
        assert "train: no row of class c" in task.notes

    def test_bad_rows_are_named_by_split_and_index(self) -> None:
        rows = Dataset.from_list([*reviews(20), {"text": None, "label": 0}])
        with pytest.raises(DataError, match=r"data train\[20\]: 'text' is null"):
            load_task({"train": rows})

    def test_other_splits_are_noted(self) -> None:
        rows = Dataset.from_list(reviews(40))
        task = load_task({"train": rows, "unsupervised": rows})
        assert "splits left alone: unsupervised" in task.notes

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"validation": Dataset.from_list(reviews(5))}, "data: no train split; found 'validation'"),
            ({}, "data: no train split; found nothing"),
            ({"train": reviews(5)}, "data train: is a list, a datasets.Dataset is needed"),
            (
                {"train": Dataset.from_list(reviews(5)).to_iterable_dataset()},
                "is a IterableDataset, a datasets.Dataset",
            ),
            ({"train": Dataset.from_list([])}, "data train: there is not one row"),
        ],
    )
    def test_what_is_no_data_set_is_refused(self, data: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            load_task(data)


class TestRecipes:
    def test_every_recipe_of_the_promise_is_there(self) -> None:
        glue = {"rte", "mrpc", "cola", "sst2", "stsb", "qnli", "qqp", "mnli", "wnli"}
        assert glue | {"boolq", "cb", "copa", "wic"} <= set(RECIPES)

    @pytest.mark.parametrize("name", RECIPES)
    def test_a_recipe_is_found_by_its_names_and_not_by_others(self, name: str) -> None:
        recipe = RECIPES[name]
        hub = recipe.hub[0]
        for known in (name, name.upper(), f"{hub}/{name}", f"{hub.split('/')[1]}/{name}"):
            assert find_recipe(known) is recipe
        assert find_recipe(f"someone/{name}") is None
        assert find_recipe(f"{name}x") is None

    def test_main_metrics_follow_the_field(self) -> None:
        main = {name: recipe.metrics for name, recipe in RECIPES.items()}
        assert main["cola"][0] == "matthews"
        assert main["stsb"] == ("spearman", "pearson")
        assert main["mrpc"] == main["qqp"] == ("accuracy", "f1")
        assert main["cb"] == ("accuracy", "macro_f1")
        assert all(
            main[name] == ("accuracy",) for name in ("sst2", "rte", "qnli", "wnli", "boolq", "copa", "wic", "mnli")
        )

    def test_kinds_follow_from_the_recipes(self) -> None:
        kinds = {name: recipe.kind for name, recipe in RECIPES.items()}
        assert kinds.pop("stsb") == "regression"
        assert kinds.pop("copa") == "multiple_choice"
        assert set(kinds.values()) == {"classification"}
