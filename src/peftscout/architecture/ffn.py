"""Assign the roles of an FFN by width.

``up`` and ``gate`` leave the hidden width, ``down`` returns to it. ``out > in`` would not do: a shared expert may be
narrower than the hidden states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from peftscout.architecture.overrides import FFN_ROLES

Shapes = Mapping[str, tuple[int, int]]
"""Path of a projection inside its block -> (in, out), in order of declaration."""

_GATE_LEAF = re.compile(r"gate|wi_0|w1|linear_v")
_UP_PATH = re.compile(r"up|wi|fc_?(1|in)|lin(ear)?_?1|intermediate|h_to_4h")
_DOWN_PATH = re.compile(r"down|wo|w2|fc_?(2|out)|lin(ear)?_?2|output|4h_to_h")


def ffn_roles(shapes: Shapes, given: Mapping[str, str], hidden: int) -> dict[str, str]:
    """Return the role of each projection, or in its place the reason why it has none.

    Args:
        shapes: what lies outside attention.
        given: roles that the user gave; they stand.
        hidden: width of the hidden states.
    """
    roles = _one_ffn(shapes, given, hidden)
    if _complete(roles):
        return roles
    parents = dict.fromkeys(path.rpartition(".")[0] for path in shapes)
    groups = {p: {path: shape for path, shape in shapes.items() if path.rpartition(".")[0] == p} for p in parents}
    solved = {parent: _one_ffn(group, given, hidden) for parent, group in groups.items()}
    complete = [parent for parent, own in solved.items() if _complete(own)]
    if len(complete) != 1:
        return roles
    outside = f"it is outside attention and outside the FFN ({complete[0] or 'the block itself'})"
    return {path: solved[complete[0]].get(path) or given.get(path, outside) for path in shapes}


def _complete(roles: Mapping[str, str]) -> bool:
    return set(roles.values()) <= set(FFN_ROLES)


def _one_ffn(shapes: Shapes, given: Mapping[str, str], hidden: int) -> dict[str, str]:
    """Do as `ffn_roles` does, taking all of ``shapes`` for one FFN."""
    roles = {path: given.get(path) or _role_by_width(path, shapes, hidden) for path in shapes}
    downs = [path for path, role in roles.items() if role == "down"]
    if len(downs) != 1:
        why = f"it is one of {len(downs)} that lead back to the hidden width" if downs else "none leads back"
        return {path: given.get(path, why) for path in roles}
    inner = shapes[downs[0]][0]
    ups = [path for path, role in roles.items() if role in ("up", "gate", "gate_up")]
    if len(ups) == 1 and ups[0] not in given:
        return {**roles, ups[0]: "gate_up" if shapes[ups[0]][1] == 2 * inner else "up"}
    if len(ups) > 2 or (len(ups) == 2 and {roles[path] for path in ups} != {"gate", "up"}):
        why = f"it is one of {len(ups)} that leave the hidden width: which is the gate?"
        return {**roles, **{path: given.get(path, why) for path in ups}}
    return roles


def _role_by_width(path: str, shapes: Shapes, hidden: int) -> str:
    """Return ``up``, ``gate`` or ``down`` by the side that has the hidden width, or the reason why it is none."""
    enters, leaves = (width == hidden for width in shapes[path])
    leaf = path.rpartition(".")[2]
    if enters and leaves:  # the FFN is as wide as the hidden states: the name decides, then the order
        up = next(iter(shapes)) == path or _UP_PATH.search(path) or _GATE_LEAF.search(leaf)
        enters = bool(up) and not _DOWN_PATH.search(path)
    if enters:
        return "gate" if _GATE_LEAF.search(leaf) else "up"
    return "down" if leaves else f"it neither enters nor leaves at the hidden width {hidden}"
