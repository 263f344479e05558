"""Peak memory of a stretch of work."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from types import TracebackType

import torch

_RESET_PEAK = "5"
"""Linux: written to ``clear_refs``, it resets the peak resident set size of the process."""


class PeakMemory:
    """Context manager; ``peak`` is in bytes afterwards.

    On an accelerator: the most that was allocated inside the block. On a CPU: the largest resident set of the process
    inside the block (where the system cannot reset that mark: since the process began).
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _reset_resident_peak()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.peak = torch.cuda.max_memory_allocated() if self._cuda else _resident_peak()


def _reset_resident_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return


def _resident_peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
