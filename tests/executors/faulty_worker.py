"""A real worker in which trainings go wrong, the n-th one as the n-th word of ``$FAULTS`` says. A program."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import torch

from peftscout.executors.worker import main
from peftscout.training.evaluator import Evaluator

WHOLE_BATCHES_FIT = 8
"""Rows of a pass above which the fake accelerator has no memory."""

train = Evaluator._train


def faulty(self: Evaluator, *args: Any) -> Any:
    counted = Path(os.environ["FAULTS_COUNTED"])
    with counted.open("a") as file:
        file.write(".")
    faults = os.environ["FAULTS"].split(",")
    n = len(counted.read_text()) - 1
    match faults[n] if n < len(faults) else "":
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise RuntimeError("on purpose")
        case "no room":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "no memory":
            raise MemoryError
        case "little memory" if self.settings.batch_size // self.settings.micro_batches > WHOLE_BATCHES_FIT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    return train(self, *args)


Evaluator._train = faulty  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
