"""Spaces as YAML: the presets that come with peftscout, and files of the user in the same form. Strict.

::

    name: my-space                   # optional; the name of the file without it
    description: what it is          # optional
    source: where it comes from      # optional
    rules:
      - op: lora
        sites: ["*.attention.{q,v}", "layers.{6..11}.ffn.*"]
        except: ["*.0.*"]            # sites to leave alone             (optional)
        sizes: [1, 2, 4, 8]          # or: any (every size that fits), or instead: halvings_of: width
        size_tie: site               # site | layer | all | a name      (optional)
        switch: none                 # none | layer | all | a name      (optional)
        optional: false              # may match nothing                (optional)

`peftscout.space.rules.Rule` says what each key means.
"""

from __future__ import annotations

from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from peftscout.cost import OPS, SIZELESS
from peftscout.errors import SpaceError, nearest
from peftscout.plan import Sites
from peftscout.space.rules import Rule, Sizes, resolve
from peftscout.space.space import Space
from peftscout.strict_yaml import LinedMapping, read_strictly

_SPACE_KEYS = ("name", "description", "source", "rules")
_RULE_KEYS = ("op", "sites", "except", "sizes", "halvings_of", "size_tie", "switch", "optional")


def load_space(name_or_path: str | Path, sites: Sites) -> Space:
    """Return the space of a preset or of a YAML file, resolved on a model with ``sites``.

    Anything that ends in ``.yaml`` or ``.yml`` or holds a ``/`` is a path, everything else the name of a preset.

    Raises:
        SpaceError: when there is no such preset or file, it is malformed (with file and line), or it does not apply to
            the model.
    """
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SpaceError(f"space {str(path)!r} cannot be read: {error}") from None
        return parse_space(text, sites, source=str(path), default_name=path.stem)
    text = _preset_text(str(name_or_path))
    return parse_space(text, sites, source=f"{name_or_path}.yaml", default_name=str(name_or_path))


def presets() -> dict[str, str]:
    """Return the presets that come with peftscout: description by name, in alphabetical order."""
    names = sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))
    return {name: str(_document(_preset_text(name), name).get("description", "")) for name in names}


def parse_space(text: str, sites: Sites, source: str = "space", default_name: str = "space") -> Space:
    """Return the space written in ``text``, resolved on a model with ``sites``; ``source`` is named in messages.

    Raises:
        SpaceError: see `load_space`.
    """
    document = _document(text, source)
    name = _text(document, "name", source) if "name" in document else default_name
    return resolve(name, [_rule(entry, source, document) for entry in document["rules"]], sites)


def _folder() -> Any:
    return resources.files("peftscout") / "spaces"


def _preset_text(name: str) -> str:
    known = sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))
    if name not in known:
        raise SpaceError(
            f"no space preset {name!r}{nearest(name, known)}; presets: {', '.join(known)}; "
            "or give the path of a .yaml file"
        )
    return str((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


# -- reading: every mapping knows its lines ------------------------------------------------------------------------


def _document(text: str, source: str) -> LinedMapping:
    """Read and check the outer mapping."""
    document = read_strictly(text, source, SpaceError)
    if not isinstance(document, LinedMapping):
        raise SpaceError(f"{source}: expected 'name:' and 'rules:', found {_kind(document)}")
    _check_keys(document, _SPACE_KEYS, source)
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules:
        _refuse(document, "rules", source, f"'rules' must be a list of at least one rule, not {_kind(rules)}")
    return document


def _rule(entry: object, source: str, document: LinedMapping) -> Rule:
    """Read one entry of ``rules``."""
    if not isinstance(entry, LinedMapping):
        _refuse(document, "rules", source, f"a rule has the keys {', '.join(_RULE_KEYS)}; found {_kind(entry)}")
    _check_keys(entry, _RULE_KEYS, source)
    for key in ("op", "sites"):
        if key not in entry:
            _refuse(entry, key, source, f"a rule needs the key {key!r}")
    op = _text(entry, "op", source)
    if op not in OPS:
        _refuse(entry, "op", source, f"unknown op {op!r}{nearest(op, OPS)}; the ops are {', '.join(OPS)}")
    optional = entry.get("optional", False)
    if not isinstance(optional, bool):
        _refuse(entry, "optional", source, f"'optional' is true or false, not {optional!r}")
    return Rule(
        op=op,
        patterns=_patterns(entry, "sites", source),
        sizes=_sizes(entry, op, source),
        size_tie=_text(entry, "size_tie", source) if "size_tie" in entry else "site",
        switch=_text(entry, "switch", source) if "switch" in entry else "none",
        excepted=_patterns(entry, "except", source) if "except" in entry else (),
        optional=optional,
        where=f"{source}:{entry.line}",
    )


def _patterns(entry: LinedMapping, key: str, source: str) -> tuple[str, ...]:
    patterns = entry[key]
    if not isinstance(patterns, list) or not patterns or not all(isinstance(p, str) and p for p in patterns):
        _refuse(entry, key, source, f'{key!r} must be a list of patterns such as "*.attention.{{q,v}}"')
    return tuple(patterns)


def _sizes(entry: LinedMapping, op: str, source: str) -> Sizes:
    """Read ``sizes`` or ``halvings_of``, of which ops with a size need exactly one."""
    given = [key for key in ("sizes", "halvings_of") if key in entry]
    if op in SIZELESS:
        if given:
            _refuse(entry, given[0], source, f"{op} has no size: leave {given[0]!r} out")
        return (1,)
    if len(given) != 1:
        _refuse(entry, "halvings_of", source, f"{op} needs either 'sizes' or 'halvings_of: width'")
    if given == ["halvings_of"]:
        if entry["halvings_of"] != "width":
            _refuse(entry, "halvings_of", source, f"'halvings_of' can only be 'width', not {entry['halvings_of']!r}")
        return "halvings_of_width"
    sizes = entry["sizes"]
    if sizes == "any":
        return "any"
    whole = isinstance(sizes, list) and all(type(size) is int and size >= 1 for size in sizes)
    if not whole or not sizes or any(a >= b for a, b in pairwise(sizes)):
        _refuse(entry, "sizes", source, f"'sizes' must be whole numbers from 1, ascending, or 'any'; not {sizes!r}")
    return tuple(sizes)


def _text(mapping: LinedMapping, key: str, source: str) -> str:
    value = mapping[key]
    if not isinstance(value, str) or not value:
        _refuse(mapping, key, source, f"{key!r} must be text, not {value!r}")
    return str(value)


def _check_keys(mapping: LinedMapping, known: tuple[str, ...], source: str) -> None:
    for key in mapping:
        if key not in known:
            _refuse(mapping, key, source, f"unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")


def _refuse(mapping: LinedMapping, key: str, source: str, message: str) -> NoReturn:
    raise SpaceError(f"{source}:{mapping.line_of(key)}: {message}")


def _kind(value: object) -> str:
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return "text"
        case None:
            return "nothing"
        case _:
            return repr(value)
