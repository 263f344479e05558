"""Every document holds word by word: its Python runs, its commands parse, its YAML loads, its links lead somewhere.

The Python of a page runs from top to bottom in a folder with what its words stand for: ``MODEL`` and ``DATA``, a
``LLAMA`` with ``PROMPTS``, a finished ``STUDY`` and its exported adapter ``OUT``. Commands are parsed and not run,
except for those of the quickstart.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import peftscout
from documented_commands import WrongCommandError, parse_command
from documents import (
    CONSOLE,
    ROOT,
    Block,
    anchors,
    blocks,
    commands,
    indented_code,
    inline_code,
    links,
    misuse,
    targets,
    unfinished,
)
from peftscout.config import StudyConfig, override
from peftscout.demo import build_task
from peftscout.space import load_space
from peftscout.strategies.design_spaces import parse_design_space
from tiny_task import save_tiny_model, save_tiny_writer, write_task, write_texts

DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
BLOCKS = [(page, block) for page, text in DOCUMENTS.items() for block in blocks(text)]
COMMANDS = [(page, words) for page, block in BLOCKS if block.language in CONSOLE for words in commands(block)]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
QUICKSTART = "docs/quickstart.md"
OTHERS = {"source", "cd", "git", "export", "tensorboard", "optuna-dashboard", "pre-commit", "pytest"}
"""Commands in documents that are not ours to check."""


def place(value: object) -> str | None:
    """A readable id of a test."""
    if isinstance(value, Block):
        return f"line-{value.line}"
    return " ".join(value)[:60] if isinstance(value, list) else None


# --- Python ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def readers_folder(tmp_path_factory) -> Path:
    """What the words in capitals stand for, in miniature."""
    folder = tmp_path_factory.mktemp("reader")
    save_tiny_model(folder / "MODEL")
    write_task(folder / "DATA", train=80, validation=20)
    save_tiny_writer(folder / "LLAMA", "llama")
    write_texts(folder / "PROMPTS", "prompts", train=40, validation=10)
    result = peftscout.search(
        folder / "MODEL", folder / "DATA", budget="5%", study=folder / "STUDY", trials=3, steps=3, export="lora",
        final={"seeds": 2, "lr_scales": [1.0]}, progress=False,
    )  # fmt: skip
    result.export(folder / "OUT")
    return folder


@pytest.fixture
def reader(readers_folder, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, to be in."""
    shutil.copytree(readers_folder, tmp_path / "reader")
    monkeypatch.chdir(tmp_path / "reader")
    return tmp_path / "reader"


def run(page: str, block: Block, names: dict[str, Any]) -> None:
    """Run a Python block; a traceback names the page and its line."""
    exec(compile("\n" * block.line + block.text, page, "exec"), names)


RUNS = {page: [b for p, b in BLOCKS if p == page and b.language == "python" and b.no_run is None] for page in DOCUMENTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page, found in RUNS.items() if found and page not in ("README.md", QUICKSTART)]
)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, reader: Path) -> None:
    names: dict[str, Any] = {"__name__": Path(page).stem}
    for found in [b for p, b in BLOCKS if p == page and b.no_run is None]:
        if found.language == "yaml":
            named = yaml.safe_load(found.text).get("name", "config")
            (reader / f"{named}.yaml").write_text(found.text, encoding="utf-8")
        elif found.language == "python":
            run(page, found, names)


DEMO_ROWS = {"train_rows": 600, "validation_rows": 200}


@pytest.fixture(scope="session")
def demo_task(tmp_path_factory) -> Path:
    """The demo's task, which takes seconds to build, in the size that the documents ask for."""
    return build_task(tmp_path_factory.mktemp("task"), **DEMO_ROWS)


@pytest.fixture
def demo(tmp_path, monkeypatch, demo_task) -> Path:
    """A folder to be in, where the demo's model is a small one of the same make, so that minutes become seconds.

    It is wide enough for the budgets that are written for the real one, which `test_demo` runs.
    """

    def build(folder: str, **rows: int) -> Path:
        assert rows == DEMO_ROWS
        return Path(shutil.copytree(demo_task, folder))

    model = save_tiny_model(tmp_path / "small", hidden_size=128, intermediate_size=512)
    monkeypatch.setattr("peftscout.demo.model_path", lambda: model)
    monkeypatch.setattr("peftscout.demo.build_task", build)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path / "empty"


@pytest.mark.slow
def test_the_readme_searches_the_demo_and_exports(demo: Path, capsys) -> None:
    search, _ = RUNS["README.md"]
    run("README.md", search, {})
    assert "parameters" in capsys.readouterr().out
    assert (demo / "peftscout-demo" / "my-adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_readme_loads_a_stock_adapter(reader: Path) -> None:
    _, loads = RUNS["README.md"]
    names: dict[str, Any] = {}
    run("README.md", loads, names)
    assert str(names["model"].peft_config["default"].peft_type).endswith("LORA")


@pytest.mark.slow
def test_the_quickstart_does_what_it_says_in_an_empty_folder(demo: Path, monkeypatch, capsys) -> None:
    from peftscout.cli import main

    names: dict[str, Any] = {"__name__": "quickstart"}
    ran = []
    for block in [b for page, b in BLOCKS if page == QUICKSTART]:
        if block.language == "python":
            run(QUICKSTART, block, names)
        for words in commands(block) if block.language in CONSOLE else ():
            if words[0] == "peftscout":
                monkeypatch.setattr(sys, "argv", words)
                with pytest.raises(SystemExit) as left:
                    main()
                assert left.value.code == 0, capsys.readouterr().err
                ran.append(words[1])
    assert ran == ["inspect", "search", "search", "status", "report", "export"]
    assert (demo / "study" / "report.html").is_file()
    assert set(names["labels"]) & set(capsys.readouterr().out.split()), "the label is printed"


@pytest.mark.parametrize(("page", "block"), [(p, b) for p, b in BLOCKS if b.language == "python"], ids=place)
def test_python_blocks_compile_and_use_what_exists(page: str, block: Block) -> None:
    compile(block.text, f"{page}:{block.line}", "exec")
    assert misuse(block.text) == []


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=place)
def test_blocks_say_what_they_are_and_why_they_are_not_run(page: str, block: Block) -> None:
    assert block.language in {"python", "yaml", "text", *CONSOLE}, f"{page}:{block.line}"
    assert block.no_run != "", f"{page}:{block.line}: say why, <!-- no-run: why -->"


def test_few_blocks_are_not_run() -> None:
    assert len([block for _, block in BLOCKS if block.no_run is not None]) <= 2


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "block"), [(p, b) for p, b in BLOCKS if b.language == "yaml"], ids=place)
def test_yaml_blocks_are_spaces_designs_or_configurations(page: str, block: Block, readers_folder, tmp_path) -> None:
    data = yaml.safe_load(block.text)
    if "rules" in data:
        (tmp_path / "space.yaml").write_text(block.text, encoding="utf-8")
        load_space(tmp_path / "space.yaml", peftscout.map_model(readers_folder / "MODEL").sites)
    elif "axes" in data:
        parse_design_space(block.text)
    else:
        StudyConfig.from_mapping(data)


# --- commands and options --------------------------------------------------------------------------------------------


def check_command(words: list[str]) -> None:
    """Raise an AssertionError when a command would be refused by what it calls."""
    words = words[next(n for n, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]
    match words:
        case ["peftscout", *_]:
            parse_command(words)
        case ["make", *rest]:
            unknown = {word for word in rest if "=" not in word} - targets(MAKEFILE)
            assert not unknown, f"the Makefile has no {unknown}"
        case ["python", script, *rest] if script.endswith(".py"):
            assert (ROOT / script).is_file(), f"{script} does not exist"
            source = (ROOT / script).read_text(encoding="utf-8")
            for option in [word for word in rest if word.startswith("--")]:
                assert f'"{option}"' in source, f"{script} has no {option}"
        case ["python", "-m", module, *_]:
            assert (ROOT / "src" / module.replace(".", "/")).exists(), f"no module {module}"
        case ["pip", "install", *rest]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for extra in re.findall(r"peftscout\[([\w,]+)\]", " ".join(rest)):
                assert set(extra.split(",")) <= set(extras["optional-dependencies"]), f"no extra {extra}"
        case _:
            assert words[0] in OTHERS, f"{words[0]}: not a command that a newcomer has"


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=place)
def test_every_command_of_every_document_exists(page: str, words: list[str]) -> None:
    check_command(words)


@pytest.mark.parametrize(
    "wrong",
    [
        "peftscout serch MODEL",
        "make nothing",
        "python benchmarks/nothing.py",
        "OMP_NUM_THREADS=1 python benchmarks/bo_synthetic.py --no-such-option",
        "python -m peftscout.nothing",
        "pip install peftscout[nothing]",
        "curl example.org",
    ],
)
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, WrongCommandError)):
        check_command(wrong.split())


def options_of_the_command_line() -> set[str]:
    from peftscout.cli import app

    group: Any = typer.main.get_command(app)
    return {option for command in group.commands.values() for found in command.params for option in found.opts}


def options_of_the_benchmarks() -> set[str]:
    scripts = (path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    return {option for text in scripts for option in re.findall(r'"(--[\w-]+)"', text)}


OPTIONS_OF_PIP = {"--no-deps", "--force-reinstall"}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_every_option_that_is_named_in_prose_exists(page: str) -> None:
    named = {option for code in inline_code(DOCUMENTS[page]) for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code)}
    known = options_of_the_command_line() | options_of_the_benchmarks() | OPTIONS_OF_PIP | {"--version", "--help"}
    assert named - known == set()


@pytest.mark.parametrize("page", DOCUMENTS)
def test_every_setting_that_is_named_in_prose_exists(page: str) -> None:
    base = {"model": "m", "budget": "1%", "data": {"source": "d"}}
    for code in inline_code(DOCUMENTS[page]):
        for setting in re.findall(r"--set ([a-z_.]+=[^\s`]+)", code):
            StudyConfig.from_mapping(override(base, [setting]))


# --- links and what is unfinished ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "target"),
    [(page, link) for page, text in DOCUMENTS.items() for link in links(text) if "://" not in link],
)
def test_every_link_leads_somewhere(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f"{page}: {path} does not exist"
    if anchor:
        assert anchor in anchors(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", DOCUMENTS)
def test_nothing_is_left_to_fill_in_and_no_code_hides_from_these_tests(page: str) -> None:
    assert unfinished(DOCUMENTS[page]) == []
    assert re.findall(r"<!--(?! no-run)", DOCUMENTS[page]) == []
    assert indented_code(DOCUMENTS[page]) == []


def test_the_examples_are_valid_python_that_uses_what_exists() -> None:
    for script in sorted((ROOT / "examples").glob("*.py")):
        text = script.read_text(encoding="utf-8")
        ast.parse(text)
        assert misuse(text) == []
