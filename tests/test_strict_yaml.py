import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftscout.errors import ConfigError, SpaceError
from peftscout.strict_yaml import LinedMapping, read_strictly


def test_mappings_know_their_lines():
    document = read_strictly("a: 1\nb:\n  c: [2]\n", "f.yaml", SpaceError)
    assert document == {"a": 1, "b": {"c": [2]}}
    assert isinstance(document["b"], LinedMapping)
    assert (document.line, document.line_of("b"), document["b"].line_of("c")) == (1, 2, 3)
    assert document["b"].line_of("not there") == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"f.yaml:3: the key 'a' is there twice"),
        ("a:\n  1: x\n", r"f.yaml:2: the key 1 is not text"),
        ("a: [1\n", r"f.yaml:2: "),
        ("a: !!python/object/apply:os.getcwd []\n", r"f.yaml:1: could not determine a constructor"),
        ("a: \x00\n", r"f.yaml"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line_in_the_error_of_the_caller(text, message):
    for error in (SpaceError, ConfigError):
        with pytest.raises(error, match=message):
            read_strictly(text, "f.yaml", error)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_but_never_crashes(text):
    said = ""
    try:
        read_strictly(text, "f.yaml", ConfigError)
    except ConfigError as error:
        said = str(error)
    assert not said or said.startswith("f.yaml")
