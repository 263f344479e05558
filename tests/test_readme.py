"""The README holds word by word: its commands parse, its Python runs, its tables are complete.

What holds for every document is in ``test_documents.py``; what documents are made of, in ``documents.py``.
"""

from __future__ import annotations

import re
import shlex

import pytest

from documented_commands import WrongCommandError, parse_command
from documents import CONSOLE, ROOT, anchors, blocks, commands, indented_code, inline_code, links, misuse, targets
from documents import unfinished as unfinished_lines
from peftscout.space import presets
from peftscout.strategies import STRATEGIES

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

PYTHON_BLOCKS = [block for block in blocks(README) if block.language == "python"]
CONSOLE_BLOCKS = [block for block in blocks(README) if block.language in CONSOLE]
COMMANDS = [words for block in CONSOLE_BLOCKS for words in commands(block)]

# --- the README ------------------------------------------------------------------------------------------------------


def test_the_readme_shows_the_two_commands_and_python() -> None:
    assert ["make", "demo"] in COMMANDS
    assert ["make", "test"] in COMMANDS
    assert any("peftscout" in block.text for block in PYTHON_BLOCKS)
    assert any(words[:2] == ["peftscout", "search"] for words in COMMANDS)


def rows_of_table(markdown: str, heading: str) -> set[str]:
    """The code words in the first column of the table whose first heading is ``heading``."""
    table = re.search(rf"^\| {re.escape(heading)} .*\n\|[-| ]+\n((?:\|.*\n?)+)", markdown, re.MULTILINE)
    assert table, f"no table with {heading}"
    return {word for row in table[1].splitlines() for word in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_tables_name_every_strategy_and_every_space() -> None:
    assert rows_of_table(README, "`--strategy`") == set(STRATEGIES)
    assert rows_of_table(README, "`--space`") == set(presets())


# --- the checks can fail ---------------------------------------------------------------------------------------------

SAMPLE = """# A Title: with `code`
See [a](docs/a.md#part), ![b](b.png) and [c](#a-title-with-code).

```python
import peftscout
```

<!-- no-run: no model -->

```python
peftscout.search("m", "d", budget="1%", trails=3)
```

```console
$ make demo PYTHON=python3.12
output [no](link.md)
$ peftscout search m --budget 1% \\
    --data d  # a comment
```

```bash
# a comment
make nothing
```
"""


def test_blocks_are_found_with_their_language_line_and_mark() -> None:
    found = list(blocks(SAMPLE))
    assert [(b.language, b.line, b.no_run) for b in found] == [
        ("python", 4, None),
        ("python", 10, "no model"),
        ("console", 14, None),
        ("bash", 21, None),
    ]


def test_prompts_comments_and_continued_lines_are_understood() -> None:
    *_, console, bash = blocks(SAMPLE)
    assert commands(console) == [
        ["make", "demo", "PYTHON=python3.12"],
        ["peftscout", "search", "m", "--budget", "1%", "--data", "d"],
    ]
    assert commands(bash) == [["make", "nothing"]]


def test_links_are_found_outside_of_blocks_only() -> None:
    assert links(SAMPLE) == ["docs/a.md#part", "b.png", "#a-title-with-code"]
    assert "a-title-with-code" in anchors(SAMPLE)


def test_tables_and_what_is_unfinished_are_found() -> None:
    table = "| `--space` | what |\n|---|---|\n| `a`, `b` | `c` |\n| `d` | e |\n\n| `f` | g |\n"
    assert rows_of_table(table, "`--space`") == {"a", "b", "d"}
    assert unfinished_lines("A line\nTABLE\nA TODO here\nMODEL is a word\n") == ["TABLE", "A TODO here"]


def test_code_that_no_test_would_find_is_found() -> None:
    assert indented_code("text\n\n    python x.py\n\n```text\n\n    not this\n```\n") == ["    python x.py"]
    assert inline_code("`a b` and\n\n```text\n`c`\n```\n`d`") == ["a b", "d"]


def test_make_targets_are_read_from_the_makefile() -> None:
    assert {"demo", "test", "check", "format", "clean", "venv"} <= targets(MAKEFILE)
    assert "nothing" not in targets(MAKEFILE)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("peftscout.search('m', budget=1, trails=3)", ["peftscout.search(trails=)"]),
        ("peftscout.serch('m')", ["peftscout.serch"]),
        ("from peftscout import Plan, Plam", ["peftscout.Plam"]),
        ("r = peftscout.search('m', 'd', budget=1, trials=3, training={})", []),
    ],
)
def test_misuse_of_the_package_is_found(code: str, wrong: list[str]) -> None:
    assert misuse(code) == wrong


@pytest.mark.parametrize(
    "command",
    [
        "peftscout serch m",
        "peftscout search m --bugdet 1%",
        "peftscout search m --trials many",
        "peftscout search m --strategy magic",
        "peftscout search m --space everywhere",
        "peftscout search m --set training.batchsize=3",
        "peftscout export",
    ],
)
def test_a_command_that_the_command_line_refuses_is_found(command: str) -> None:
    with pytest.raises(WrongCommandError):
        parse_command(shlex.split(command))


def test_a_good_command_gives_its_values() -> None:
    values = parse_command(
        shlex.split("peftscout search m --budget 1% --data d --trials 4 --set training.batch_size=3")
    )
    assert (values["model"], values["budget"], values["trials"]) == ("m", "1%", 4)
    assert parse_command(["peftscout", "--version"])["version"] is True
