"""Reads the sources as a house: every module, what it imports, and what it reaches through others."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One imported module, by its absolute dotted name."""

    target: str
    line: int

    def reaches(self, *packages: str) -> bool:
        return any(self.target == package or self.target.startswith(package + ".") for package in packages)


@dataclass(frozen=True)
class Module:
    """One source file of the house."""

    name: str
    source: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def lines(self) -> int:
        return len(self.source.splitlines())

    @property
    def room(self) -> str:
        """First part of the name below the package: ``tuner`` of ``peftscout.tuner.layer``."""
        return self.name.partition(".")[2].partition(".")[0]

    def within(self, *rooms: str) -> bool:
        return self.room in rooms

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        """Every import, those inside functions and literal ``import_module`` calls too; not those for typing only."""
        typing_only = {id(inner) for node in ast.walk(self.tree) if _is_type_checking(node) for inner in ast.walk(node)}
        found = []
        for node in ast.walk(self.tree):
            if id(node) not in typing_only:
                found += [Import(target, node.lineno) for target in self._targets(node)]  # type: ignore[attr-defined]
        return tuple(found)

    def _targets(self, node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = self._absolute(module, level)
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(args=[ast.Constant(value=str() as target), *_]) if called(node) in {
                "importlib.import_module",
                "import_module",
                "__import__",
            }:
                yield target

    def _absolute(self, module: str | None, level: int) -> str:
        if level == 0:
            return module or ""
        parts = self.name.split(".")
        package = parts[: len(parts) - level + (1 if self.is_package else 0)]
        return ".".join([*package, *([module] if module else [])])


House = Mapping[str, Module]
"""Every module by its dotted name."""


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def called(node: ast.Call) -> str:
    """Dotted name of what is called, or ``""`` when it is not a plain name."""
    return ast.unparse(node.func) if isinstance(node.func, ast.Name | ast.Attribute) else ""


def calls(module: Module) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield node, called(node)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def at(module: Module, line: int, what: str) -> str:
    return f"{module.name}:{line}: {what}"


def neighbours(house: House, module: Module) -> Iterator[Module]:
    """The modules of the house that ``module`` imports, and the packages around them below the root."""
    for found in module.imports:
        parts = found.target.split(".")
        for end in range(2, len(parts) + 1):
            name = ".".join(parts[:end])
            if name in house and name != module.name:
                yield house[name]


def reached(house: House, start: Module) -> Iterator[tuple[Module, str]]:
    """``start`` and every module of the house it knows, directly or through others, with the way there."""
    seen, queue = {start.name}, [(start, start.name)]
    while queue:
        module, way = queue.pop(0)
        yield module, way
        for neighbour in neighbours(house, module):
            if neighbour.name not in seen:
                seen.add(neighbour.name)
                queue.append((neighbour, f"{way} -> {neighbour.name}"))


def knows(house: House, modules: Iterable[Module], *forbidden: str) -> list[str]:
    """One breach for each of ``modules`` that imports a ``forbidden`` package, itself or through the house."""
    return [
        f"{way}:{found.line}: imports {found.target}"
        for start in modules
        for module, way in reached(house, start)
        for found in module.imports
        if found.reaches(*forbidden)
    ]


def read_house(source: Path) -> dict[str, Module]:
    house = {}
    for path in sorted((source / "peftscout").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        house[name] = Module(name, path.read_text(encoding="utf-8"), is_package)
    return house
