"""The course of a search that was interrupted: what was asked after how many outcomes, and in which order they came.

A strategy is a deterministic function of what it is asked and told, in order. With several evaluations at once that
order is a matter of chance, so the ledger keeps it, and whoever continues a search goes the same way to where it ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

from peftscout.ledger import Record


class Replay:
    """What is left to be gone again. Empty for a new search, and for one that was recorded before there were workers.

    Args:
        records: of the ledger.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        asked = [record for record in records if record.told is not None]
        self._asked = deque((record.told, record.request.key) for record in sorted(asked, key=lambda r: r.number))
        ended = [record for record in asked if record.outcome is not None and record.finished is not None]
        self._ended = deque(record.request.key for record in sorted(ended, key=lambda r: r.finished or 0))

    def room(self, told: int, awaited: bool) -> int | None:
        """Return how much was asked for after ``told`` outcomes; ``None``: the record, and so the replay, ends here.

        ``awaited`` says whether any outcome is; without one nothing else can follow.
        """
        if self._asked:
            at_once = 0
            for then, _ in self._asked:
                if then != told:
                    break
                at_once += 1
            if at_once or (awaited and self._ended):
                return at_once
            self.abandon()
        return 0 if self._ended and awaited else None

    def asked(self, key: str) -> None:
        """Take note of what is asked now; where it is not what was asked then, the ways part."""
        if self._asked and self._asked[0][1] == key:
            self._asked.popleft()
        else:
            self.abandon()

    def next(self, awaited: Container[str]) -> str | None:
        """Return the key of what ended next, of those ``awaited``; ``None`` when the record ends here."""
        key = next((key for key in self._ended if key in awaited), None)
        if key is not None:
            self._ended.remove(key)
        return key

    def abandon(self) -> None:
        """Go on without."""
        self._asked.clear()
        self._ended.clear()
