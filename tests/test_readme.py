"""The README holds word by word: its commands parse, its Python runs, its targets and links exist.

A Python block under ``<!-- no-run -->`` needs a model or minutes: it is compiled, and its use of peftscout is checked.
Console blocks are those fenced as ``console``, ``bash``, ``sh`` or ``shell``.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import peftscout
from documented_commands import WrongCommandError, parse_command
from peftscout.space import presets
from peftscout.strategies import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NO_RUN = "<!-- no-run -->"


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    no_run: bool


def blocks(markdown: str) -> Iterator[Block]:
    """The fenced blocks of a document, with the line of their fence and whether ``no-run`` stands right above."""
    lines = iter(enumerate(markdown.splitlines(), start=1))
    before = ""
    for number, line in lines:
        if match := re.fullmatch(r"\s*(`{3,})\s*(\w*).*", line):
            body = []
            for _, inner in lines:
                if inner.strip() == match[1]:
                    break
                body.append(inner)
            yield Block(match[2], "\n".join(body), number, before.strip() == NO_RUN)
        if line.strip():
            before = line


def commands(block: Block) -> list[list[str]]:
    """The commands of a console block, as words; with prompts (``$ ``) only the prompted lines count."""
    joined = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    prompted = [line[2:] for line in joined if line.startswith("$ ")]
    return [words for line in prompted or joined if (words := shlex.split(line, comments=True))]


def targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def links(markdown: str) -> list[str]:
    """Link and picture targets outside of fenced blocks."""
    prose = re.sub(r"^(\s*`{3,}).*?^\s*`{3,}\s*$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)", prose)


def anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+\s+(.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def misuse(code: str) -> list[str]:
    """Names of ``peftscout`` that do not exist and keywords that its functions do not take."""
    options = set(peftscout.StudyConfig.model_fields)
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "peftscout":
            wrong += [f"peftscout.{node.attr}"] if node.attr not in {*peftscout.__all__, "__version__"} else []
        if isinstance(node, ast.ImportFrom) and node.module == "peftscout":
            wrong += [f"peftscout.{name.name}" for name in node.names if name.name not in peftscout.__all__]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"peftscout.search", "peftscout.apply"}:
            function = getattr(peftscout, ast.unparse(node.func).partition(".")[2])
            known = options | set(inspect.signature(function).parameters)
            wrong += [f"{ast.unparse(node.func)}({k.arg}=)" for k in node.keywords if k.arg and k.arg not in known]
    return wrong


PYTHON_BLOCKS = [block for block in blocks(README) if block.language == "python"]
CONSOLE_BLOCKS = [block for block in blocks(README) if block.language in {"console", "bash", "sh", "shell"}]
COMMANDS = [words for block in CONSOLE_BLOCKS for words in commands(block)]

# --- the README ------------------------------------------------------------------------------------------------------


def test_the_readme_shows_the_two_commands_and_python() -> None:
    assert ["make", "demo"] in COMMANDS
    assert ["make", "test"] in COMMANDS
    assert any("peftscout" in block.text for block in PYTHON_BLOCKS)
    assert any(words[:2] == ["peftscout", "search"] for words in COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_the_readme_exists(words: list[str]) -> None:
    match words:
        case ["peftscout", *_]:
            parse_command(words)
        case ["make", *rest]:
            named = {word for word in rest if "=" not in word}
            assert named <= targets(MAKEFILE), f"the Makefile has no {named - targets(MAKEFILE)}"
        case _:
            assert words[0] in {"pip", "python", "git", "cd"}, f"{words[0]}: not a command that a newcomer has"


@pytest.mark.parametrize("block", PYTHON_BLOCKS, ids=lambda block: f"line-{block.line}")
def test_every_python_block_of_the_readme_compiles_and_uses_what_exists(block: Block) -> None:
    compile(block.text, f"README.md:{block.line}", "exec")
    assert misuse(block.text) == []


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in PYTHON_BLOCKS if not b.no_run], ids=lambda block: f"line-{block.line}")
def test_every_python_block_of_the_readme_runs(block: Block, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", block.text]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", [link for link in links(README) if "://" not in link])
def test_every_link_of_the_readme_leads_somewhere(target: str) -> None:
    path, _, anchor = target.partition("#")
    file = ROOT / path if path else ROOT / "README.md"
    assert file.exists(), f"{path} does not exist"
    if anchor:
        assert anchor in anchors(file.read_text(encoding="utf-8"))


def rows_of_table(markdown: str, heading: str) -> set[str]:
    """The code words in the first column of the table whose first heading is ``heading``."""
    table = re.search(rf"^\| {re.escape(heading)} .*\n\|[-| ]+\n((?:\|.*\n?)+)", markdown, re.MULTILINE)
    assert table, f"no table with {heading}"
    return {word for row in table[1].splitlines() for word in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_tables_name_every_strategy_and_every_space() -> None:
    assert rows_of_table(README, "`--strategy`") == set(STRATEGIES)
    assert rows_of_table(README, "`--space`") == set(presets())


def unfinished(markdown: str) -> list[str]:
    """Lines that hold nothing but a word in capitals, or a note to oneself."""
    return re.findall(r"^(?:[A-Z]{3,}|.*\b(?:TODO|FIXME|TBD|XXX)\b.*)$", markdown, re.MULTILINE)


def test_nothing_is_left_to_fill_in() -> None:
    assert unfinished(README) == []


# --- the checks can fail ---------------------------------------------------------------------------------------------

SAMPLE = """# A Title: with `code`
See [a](docs/a.md#part), ![b](b.png) and [c](#a-title-with-code).

```python
import peftscout
```

<!-- no-run -->

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
        ("python", 4, False),
        ("python", 10, True),
        ("console", 14, False),
        ("bash", 21, False),
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
    assert unfinished("A line\nTABLE\nA TODO here\nMODEL is a word\n") == ["TABLE", "A TODO here"]


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
