"""The user's word on roles: regex -> role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peftscout.errors import ArchitectureError, nearest

ATTENTION_ROLES = ("q", "k", "v", "qkv", "kv", "o")
FFN_ROLES = ("gate", "gate_up", "up", "down")
PARTS = ("attention", "cross_attention", "ffn", "shared_ffn")
"""The parts of a block that hold projections, in the order in which they are listed."""

SKIP = "skip"
"""The override that keeps a projection out of the sites."""

_QUALIFIED = [f"{part}.{role}" for part in PARTS[:2] for role in ATTENTION_ROLES]
_QUALIFIED += [f"{part}.{role}" for part in PARTS[2:] for role in FFN_ROLES]
_KNOWN = (*ATTENTION_ROLES, *FFN_ROLES, SKIP, *_QUALIFIED)


@dataclass(frozen=True, slots=True)
class Overrides:
    """Rules matched in full on the path inside the block (``mlp.side_proj``) or on the path in the model.

    The first rule that matches counts, and it counts more than anything found by `roles.assign`.
    """

    rules: tuple[tuple[re.Pattern[str], str], ...] = ()

    @classmethod
    def parse(cls, roles: Mapping[str, str] | None) -> Overrides:
        """Read ``{regex: role}``; a role is a bare one, one with its part (``cross_attention.q``), or ``skip``.

        Raises:
            ArchitectureError: on a regex that does not compile or an unknown role.
        """
        rules = []
        for pattern, role in (roles or {}).items():
            if role not in _KNOWN:
                raise ArchitectureError(
                    f"roles[{pattern!r}]: unknown role {role!r}{nearest(role, _KNOWN)}; "
                    f"the roles are {', '.join(_KNOWN)}"
                )
            try:
                rules.append((re.compile(pattern), role))
            except re.error as error:
                raise ArchitectureError(f"roles[{pattern!r}]: not a regular expression: {error}") from None
        return cls(tuple(rules))

    def role(self, block: str, path: str) -> str | None:
        """Return the role given to ``path`` inside the block at ``block``; ``None`` when no rule matches."""
        return next((role for rule, role in self.rules if _matches(rule, block, path)), None)

    def is_attention(self, block: str, path: str) -> bool:
        """Whether the user gave ``path`` inside the block at ``block`` a role of attention."""
        role = self.role(block, path)
        return role is not None and role.rpartition(".")[2] in ATTENTION_ROLES

    def unused(self, paths: Sequence[tuple[str, str]]) -> list[str]:
        """Return the patterns that match none of the (block, path inside it)."""
        return [r.pattern for r, _ in self.rules if not any(_matches(r, block, path) for block, path in paths)]


def _matches(rule: re.Pattern[str], block: str, path: str) -> bool:
    return bool(rule.fullmatch(path) or rule.fullmatch(f"{block}.{path}"))
