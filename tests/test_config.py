from pathlib import Path

import pytest
import yaml

from peftscout.config import StudyConfig, config_diff, merge, override, parse_duration, read_yaml
from peftscout.errors import ConfigError

SMALL = {"model": "bert", "budget": "0.5%", "data": {"source": "rte"}}


def test_yaml_and_object_are_the_same_thing():
    config = StudyConfig.from_mapping({**SMALL, "trials": 3, "final": {"seeds": 0}, "lr_scales": [0.3, 1]})
    assert StudyConfig.from_mapping(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trails": 3}, r"trails: unknown key \(did you mean 'trials'\?\)"),
        ({"training": {"batchsize": 3}}, r"training.batchsize: unknown key \(did you mean 'batch_size'\?\)"),
        ({"training": {"learning_rates": {"lor": 1}}}, r"learning_rates.lor: unknown key \(did you mean 'lora'\?\)"),
        ({"trials": 0}, "trials: input should be greater than or equal to 1, not 0"),
        ({"export": "loraa"}, "export: input should be 'any', 'lora', 'ln_tuning' or 'ia3', not 'loraa'"),
        ({"time": "soon"}, "time: input should be a valid number"),
        ({"lr_scales": [1, -1]}, "lr_scales.1: input should be greater than 0"),
        ({"data": {}}, "data: give either a source"),
        ({"data": {"source": "rte", "train": "x.csv"}}, "data: give either a source"),
        ({"data": {"source": "rte", "validation": "x.csv"}}, "validation and test files go with a train file"),
        ({"model": None}, "model: input should be a valid string"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_place(change, message):
    with pytest.raises(ConfigError, match=message):
        StudyConfig.from_mapping({**SMALL, **change})


def test_every_mistake_is_reported_at_once():
    with pytest.raises(ConfigError) as error:
        StudyConfig.from_mapping({"budget": 1, "trials": 0, "bogus": 1})
    assert len(str(error.value).splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h", 3600), ("1.5 h", 5400), ("2d", 172800)]
)
def test_durations_are_read_in_everyday_units(text, seconds):
    assert parse_duration(text) == seconds
    assert StudyConfig.from_mapping({**SMALL, "time": text}).time == seconds


def test_set_reaches_into_sections_and_reads_yaml_values():
    data = override(SMALL, ["training.learning_rates.lora=3e-4", "final.lr_scales=[1.0]", "data.text=null"])
    config = StudyConfig.from_mapping(data)
    assert config.training.learning_rates.lora == 3e-4
    assert config.final.lr_scales == (1.0,)
    assert "training" not in SMALL


@pytest.mark.parametrize("assignment", ["training", "=3", "a=[1"])
def test_a_malformed_assignment_is_refused(assignment):
    with pytest.raises(ConfigError, match="--set"):
        override({}, [assignment])


def test_merge_lays_one_mapping_over_another_without_changing_either():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}, "d": 4}
    assert base == {"a": {"b": 1, "c": 2}}


def test_a_difference_names_the_key_and_both_values():
    lines = config_diff({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "d": 4})
    assert lines == ["a.b: 1 -> 3", "c: 2 -> None", "d: None -> 4"]
    assert config_diff(SMALL, SMALL) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n", "expected 'key: value'"),
        ("a: [", r"study.yaml:1: "),
        ("a: 1\na: 2\n", r"study.yaml:2: the key 'a' is there twice"),
        ("\xff", "cannot be read"),
    ],
)
def test_an_unreadable_configuration_file_is_named(tmp_path, content, message):
    path = tmp_path / "study.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(path)
    assert "study.yaml" in str(error.value)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(Path("nowhere.yaml"))


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("model: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match=r"study.yaml:1: could not determine a constructor"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me@host/x"),
        ("mysql+pymysql://me:se:cr/et@host:3306/x?charset=utf8", "mysql+pymysql://me@host:3306/x?charset=utf8"),
        ("postgresql://host/x?user=me&password=secret", "postgresql://host/x?user=me"),
        ("postgresql://host/x?password=secret&user=me", "postgresql://host/x?user=me"),
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        (None, None),
    ],
)
def test_the_password_of_a_database_is_not_written_down(given, written):
    config = StudyConfig.from_mapping({**SMALL, "storage": given})
    assert config.storage == given
    assert config.deciding()["storage"] == written
