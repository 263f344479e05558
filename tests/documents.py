"""What is in a document: its fenced blocks, commands, links, inline code. Used to hold documents to what exists.

A block under ``<!-- no-run: why -->`` is not run. Console blocks are those fenced as ``console``, ``bash``, ``sh`` or
``shell``.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import peftscout

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = {"console", "bash", "sh", "shell"}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: of the fence; empty when it names none.
        text: between the fences.
        line: of the opening fence, from 1.
        no_run: why it is not run; empty for a mark without a reason; ``None`` when it is run.
    """

    language: str
    text: str
    line: int
    no_run: str | None


def blocks(markdown: str) -> Iterator[Block]:
    """The fenced blocks of a document."""
    lines = iter(enumerate(markdown.splitlines(), start=1))
    before = ""
    for number, line in lines:
        if match := re.fullmatch(r"\s*(`{3,})\s*(\w*).*", line):
            body = []
            for _, inner in lines:
                if inner.strip() == match[1]:
                    break
                body.append(inner)
            marked = re.fullmatch(r"<!-- no-run:?\s*(.*?)\s*-->", before.strip())
            yield Block(match[2], "\n".join(body), number, marked and marked[1])
        if line.strip():
            before = line


def commands(block: Block) -> list[list[str]]:
    """The commands of a console block, as words; with prompts (``$ ``) only the prompted lines count."""
    joined = re.sub(r"\\\n\s*", " ", block.text).splitlines()
    prompted = [line[2:] for line in joined if line.startswith("$ ")]
    return [words for line in prompted or joined if (words := shlex.split(line, comments=True))]


def prose(markdown: str) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^(\s*`{3,}).*?^\s*`{3,}\s*$", "", markdown, flags=re.MULTILINE | re.DOTALL)


def indented_code(markdown: str) -> list[str]:
    """First lines of code that is set off by four blanks, where no test would find it."""
    return re.findall(r"(?<=\n\n)    .*", prose(markdown))


def inline_code(markdown: str) -> list[str]:
    """What stands between backticks in prose and tables."""
    return re.findall(r"`([^`\n]+)`", prose(markdown))


def links(markdown: str) -> list[str]:
    """Link and picture targets outside of fenced blocks."""
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)", prose(markdown))


def anchors(markdown: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+\s+(.*)$", prose(markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def unfinished(markdown: str) -> list[str]:
    """Lines that hold nothing but a word in capitals, or a note to oneself."""
    return re.findall(r"^(?:[A-Z]{3,}|.*\b(?:TODO|FIXME|TBD|XXX)\b.*)$", markdown, re.MULTILINE)


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


def targets(makefile: str) -> set[str]:
    """The targets of a Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
