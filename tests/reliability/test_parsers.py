"""Whatever is fed to the parsers, what comes out is a value or an error of ours. Time-bounded by few examples each.

Plans, budgets, spaces and strict YAML have theirs beside their own tests (test_plan.py, test_budget.py,
test_space_yaml.py, test_strict_yaml.py): here are the configuration, the ledger, and the files of a study.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_torn_ledger import write

from figures import record
from peftscout.api import read_plan
from peftscout.config import DataConfig, FinalConfig, StudyConfig, TrainingConfig, override, parse_duration, read_yaml
from peftscout.earlier import FILE, Earlier
from peftscout.errors import ConfigError, PeftscoutError, StudyError
from peftscout.ledger import Ledger
from peftscout.study import read_header, read_records, read_summary
from thinning import FACTOR

QUICK = settings(
    max_examples=40 * FACTOR, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted({name for model in (StudyConfig, DataConfig, TrainingConfig, FinalConfig) for name in model.model_fields})
SETTINGS = st.recursive(
    JSON, lambda inner: st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=5), max_leaves=12
)
YAML_LIKE = st.text(alphabet="ab:-{}[]\"'!&*#%@,.0123456789 \n\t~<>|\\x\u00e9", max_size=40)


@pytest.fixture(scope="module", autouse=True)
def counted():
    yield
    record("inputs that parsers were fed", FED[0])


FED = [0]


def said(error: type[PeftscoutError], read: Callable[[], object]) -> str | None:
    """Return the message of an error of that class, ``None`` where there was none; any other error goes through."""
    FED[0] += 1
    try:
        read()
    except error as wrong:
        return str(wrong)
    return None


@QUICK
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), SETTINGS, max_size=6))
@example({"model": "m", "budget": float("nan"), "data": {"source": "rte"}, "time": float("inf")})
@example({"model": "m", "budget": 1, "data": {"source": "rte"}, "seed": 10**400})
def test_any_mapping_is_a_configuration_or_a_config_error(data):
    if said(ConfigError, lambda: StudyConfig.from_mapping(data)) is None:
        config = StudyConfig.from_mapping(data)
        assert StudyConfig.from_mapping(config.to_mapping()) == config


@QUICK
@given(YAML_LIKE)
@example("model: 2020-13-45")
@example("a: " * 3000)
@example("? [a]\n: b")
def test_any_file_is_a_mapping_or_a_config_error(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    wrong = said(ConfigError, lambda: read_yaml(path))
    assert "study.yaml" in wrong if wrong is not None else isinstance(read_yaml(path), dict)


@QUICK
@given(st.lists(st.one_of(st.text(max_size=12), YAML_LIKE.map(lambda text: f"a.b={text}")), max_size=3))
@example(["time=2020-13-45"])
@example(["a={b: 1, b: 2}"])
@example(["a=" + "[" * 3000])
@example(["a=!!python/object/apply:os.system [ls]"])
@example(["model=a", "model.b=c"])
@example(["a=? [x]\n: y"])
def test_any_assignment_is_laid_over_or_a_config_error(assignments):
    base = {"model": "m", "data": {"source": "rte"}, "budget": 1}
    assert said(ConfigError, lambda: StudyConfig.from_mapping(override(base, assignments))) != ""


@QUICK
@given(st.text(max_size=12) | JSON)
def test_any_duration_is_seconds_or_left_to_the_validator(value):
    parse_duration(value)


@QUICK
@given(JSON | st.text(max_size=30), st.sampled_from(["study.json", "summary.json", "plan.json", FILE]))
@example({"schema": 1, "config": [], "data": 1, "model": None, "versions": {}}, "study.json")
@example({"schema": 1, "evaluated": [[{}, {}]], "study": "x", "differences": []}, FILE)
@example({"schema": 1, "evaluated": 5, "study": "x", "differences": []}, FILE)
@example({"best": {"plan": 3}}, "summary.json")
def test_any_file_of_a_study_is_read_or_an_error_that_names_it(tmp_path, data, name):
    (tmp_path / "study.json").write_text('{"schema": 1, "config": {}, "data": {}, "model": {}, "versions": {}}')
    path = tmp_path / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    readers = {"study.json": read_header, "summary.json": read_summary, "plan.json": lambda p: read_plan(p / name)}
    for reader in (readers.get(name, Earlier.load), read_records):
        assert said(PeftscoutError, lambda reader=reader: reader(tmp_path)) != ""


@pytest.fixture(scope="module")
def journal(tmp_path_factory) -> bytes:
    return write(tmp_path_factory.mktemp("l") / "ledger.journal", 2)


@QUICK
@given(data=st.data())
def test_any_line_of_a_ledger_is_read_or_a_study_error_that_names_the_ledger(tmp_path, journal, data):
    """Lines are replaced by other JSON, by fragments of themselves, or have one value exchanged."""
    lines = journal.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    entry: dict[str, Any] = json.loads(lines[number])
    key = data.draw(st.sampled_from(sorted(entry)))
    changed = data.draw(
        st.one_of(
            JSON.map(lambda value: json.dumps(value).encode()),
            JSON.map(lambda value: json.dumps({**entry, key: value}).encode()),
            st.integers(0, len(lines[number])).map(lambda cut: lines[number][:cut]),
            st.just(json.dumps({k: v for k, v in entry.items() if k != key}).encode()),
        )
    )
    path = Path(tmp_path) / "ledger.journal"
    path.write_bytes(b"\n".join([*lines[:number], changed, *lines[number + 1 :]]) + b"\n")
    for opened in (Ledger.reading, Ledger.at):
        wrong = said(StudyError, lambda opened=opened: opened(path))
        if wrong is None:
            records = opened(path).records()
            assert all(r.outcome is None or r.outcome.score == (r.number + 1) / 10 for r in records)
        else:
            assert "ledger.journal" in wrong
