"""Several processes that evaluate one job together, each with a part of every batch: one leads, the others follow.

The leader is the worker that a search knows. It starts the others, tells them what it is told, and answers for all.
None of them goes on without the others: when one ends, the leader does, and with it whoever is left.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread

import torch

from peftscout.executors.messages import Message

GRACE = 5.0
"""Seconds that a follower waits before it leaves after a failure: a leader that failed alike answers first."""


class Followers:
    """The other processes of a group; this process is made its leader by variables that accelerate reads.

    Args:
        processes: of the group, the leader included.
        gone: exit code of the leader when a follower has ended.
    """

    def __init__(self, processes: int, gone: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if not torch.cuda.is_available():
            shared["ACCELERATE_USE_CPU"] = "true"  # or accelerate takes each process for the only one
        self._processes = [self._started(rank, shared) for rank in range(1, processes)]
        for process in self._processes:
            Thread(target=_leave_with, args=(process, gone), daemon=True).start()
        os.environ |= shared | _ranks(0)

    @staticmethod
    def _started(rank: int, shared: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            sys.orig_argv,
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno(),
            env=os.environ | shared | _ranks(rank),
        )

    def tell(self, message: Message) -> None:
        """Send a message to all; when one of them is dead its end is noticed elsewhere."""
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.write(message.line())
                process.stdin.flush()


def follows() -> bool:
    """Whether this process follows another one."""
    return os.environ.get("RANK", "0") != "0"


def _ranks(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _leave_with(process: subprocess.Popen[bytes], code: int) -> None:
    process.wait()
    os._exit(code)
