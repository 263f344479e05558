"""Two processes with gloo train one plan as one process does with the same batches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from one_of_several import trained

from tiny_task import save_tiny_writer, write_texts

SCRIPT = Path(__file__).with_name("one_of_several.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_two(model: Path, data: Path, kind: str) -> dict:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(model), str(data), kind],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return json.loads(next(line for line in said[0][0].splitlines() if line.startswith("FOUND"))[len("FOUND") :])


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path):
    """On texts, whose loss is a mean over tokens: the parts of the two have different weights."""
    model, data = save_tiny_writer(tmp_path / "model", "llama"), tmp_path / "data"
    write_texts(data, "prompts", train=60, validation=20)
    alone, together = trained(str(model), str(data), "causal_lm"), by_two(model, data, "causal_lm")
    assert alone["state"] == together["state"] == "done"
    assert together["score"] == pytest.approx(alone["score"], rel=1e-4)
    for (step, loss, _), (same, other, _) in zip(alone["curve"], together["curve"], strict=True):
        assert (step, loss) == (same, pytest.approx(other, rel=1e-4))
    assert together["sums"] == pytest.approx(alone["sums"], rel=1e-3)
