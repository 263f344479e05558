"""Design spaces as YAML: the presets that come with peftscout, and files of the user in the same form. Strict.

::

    name: my-space                          # optional; the name of the file without it
    about: what it is                       # optional
    extends: chen2023-s0                    # optional: take from there what is not said here
    groups: 4
    numbering: one_axis                     # or per_stack                                       (optional)
    methods:                                # simplest first
      lora: {op: lora, sites: ["*.attention.{q,v,kv}*"]}
      bitfit: {op: bias, sites: ["*"], biased_only: true, otherwise: ["*.attention.*", "*.ffn.*"]}
    axes:                                   # options of each axis, simplest first
      grouping: [uniform, spindle, {name: hourglass, relations: "> = <", shares: [3, 1, 1, 3]}]
      allocation: [uniform, increasing, {name: steep, slopes: [0.6, 0.9]}]
      tunable: ends_and_singles             # or every_subset, or lists: [[G1, G2, G3, G4], [G4]]
      methods:
        each_group: every_subset            # or lists: [[lora], [lora, bitfit]]
        G4: [[lora]]                        # instead of each_group, for this one
    order: [grouping, allocation, tunable, methods.G1, methods.G2, methods.G3, methods.G4]    # optional

``ends_and_singles`` are the sets of the paper: all groups, then the runs of groups from either end, then single groups.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from peftscout.errors import SpaceError, nearest
from peftscout.strategies.design_spaces.axes import DesignSpace
from peftscout.strategies.design_spaces.document import KEYS, Document, build, check_keys, expect_mapping, refuse
from peftscout.strict_yaml import read_strictly


def load_design_space(name_or_path: str | Path, groups: int | None = None) -> DesignSpace:
    """Return the design space of a preset or of a YAML file.

    Anything that ends in ``.yaml`` or ``.yml`` or holds a ``/`` is a path, everything else the name of a preset.

    Args:
        name_or_path: which one.
        groups: number of groups instead of the written one. Named groupings that need more are left out; options that
            name a group must fit.

    Raises:
        SpaceError: when there is no such preset or file, or it is malformed; the message names the key.
    """
    return build(_resolved(name_or_path, ()), str(name_or_path), groups)


def parse_design_space(text: str, source: str = "design space") -> DesignSpace:
    """Return the design space written in ``text``; ``source`` is named in messages.

    Raises:
        SpaceError: see `load_design_space`.
    """
    return build(_extended(_read(text, source), source, (source,)), source)


def presets() -> dict[str, str]:
    """Return what comes with peftscout: what it is, by name."""
    return {name: str(_read(_preset_text(name), name).get("about", "")) for name in _preset_names()}


def to_yaml(space: DesignSpace) -> str:
    """Return ``space`` in the form that `load_design_space` reads."""
    methods = {
        m.name: {"op": m.op, "sites": list(m.sites)}
        | ({"biased_only": True} if m.biased_only else {})
        | ({"otherwise": list(m.otherwise)} if m.otherwise else {})
        | ({"weight": m.weight} if m.weight != 1 else {})
        for m in space.methods_defined
    }
    document = {
        "name": space.name,
        "about": space.about,
        "groups": space.groups,
        "numbering": space.numbering,
        "methods": methods,
        "axes": {
            "grouping": [
                {"name": p.label, "relations": " ".join(p.relations), "shares": list(p.shares)} for p in space.grouping
            ],
            "allocation": [{"name": a.label, "slopes": [a.low, a.high]} for a in space.allocation],
            "tunable": [[f"G{g + 1}" for g in t.groups] for t in space.tunable],
            "methods": {f"G{g + 1}": [list(s.names) for s in sets] for g, sets in enumerate(space.methods)},
        },
        "order": list(space.order),
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _read(text: str, source: str) -> Document:
    document = read_strictly(text, source, SpaceError)
    if not isinstance(document, dict):
        raise SpaceError(f"{source}: expected a mapping with {', '.join(KEYS)}, found {type(document).__name__}")
    check_keys(document, KEYS, source, "")
    return document


def _preset_names() -> list[str]:
    return sorted(f.name.removesuffix(".yaml") for f in _folder().iterdir() if f.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("peftscout.strategies.design_spaces") / "presets"


def _preset_text(name: str) -> str:
    if name not in _preset_names():
        known = _preset_names()
        raise SpaceError(
            f"no design space {name!r}{nearest(name, known)}; presets: {', '.join(known)}; or give the path of a file"
        )
    return str((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))


def _resolved(name_or_path: str | Path, seen: tuple[str, ...]) -> Document:
    """Return the document of a preset or file with everything it extends filled in."""
    source, path = str(name_or_path), Path(name_or_path)
    if source in seen:
        raise SpaceError(f"{seen[-1]}: extends {source}, which extends it")
    if isinstance(name_or_path, Path) or _is_path(source):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise SpaceError(f"design space {source!r} cannot be read: {error}") from None
    else:
        text = _preset_text(source)
    return _extended({"name": path.stem if path.suffix else source, **_read(text, source)}, source, (*seen, source))


def _is_path(name: str) -> bool:
    path = Path(name)
    return path.suffix in (".yaml", ".yml") or len(path.parts) > 1


def _extended(document: Document, source: str, seen: tuple[str, ...]) -> Document:
    """Return ``document`` laid over what it extends: ``methods`` and ``axes`` key by key, the rest as a whole."""
    if "extends" not in document:
        return document
    if not isinstance(document["extends"], str):
        refuse(source, "extends", f"the name of a preset or a path, not {document['extends']!r}")
    extended = document["extends"]
    if _is_path(extended) and _is_path(source):
        extended = str(Path(source).parent / extended)
    base = _resolved(extended, seen)
    inner = {k: {**base.get(k, {}), **expect_mapping(document.get(k, {}), source, k)} for k in ("methods", "axes")}
    return {**base, **document, **inner}
