"""A worker without a model: it speaks the protocol and does what the label of a request says. Started as a program."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def outcome_of(job: dict[str, Any], state: str = "done", cost: int | None = None, message: str = "") -> dict[str, Any]:
    """The score is the seed / 1000: every request has its own."""
    cost = job["request"]["cost"] if cost is None else cost
    score = job["request"]["seed"] / 1000 if state == "done" else None
    return {
        "state": state, "cost": cost, "score": score, "metrics": {},
        "seconds": 0.0, "steps": 1, "passes": 1.0, "tokens": 0, "real_tokens": 0, "peak_memory": 0, "curve": [],
        "message": message,
    }  # fmt: skip


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Return the outcome, or die on the way: what is to happen is the label, ``once`` the first time only."""
    label, folder = job["request"]["label"], Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder.parent / f"happened-{job['number']}"
    if label.startswith("once ") and marker.exists():
        label = ""
    marker.touch()
    match label.removeprefix("once "):
        case "exit":
            os._exit(0)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage":
            sys.stdout.write("\x00 not json {\n")
            sys.stdout.flush()
            time.sleep(60)
        case "nan":
            sys.stdout.write(json.dumps({"kind": "outcome", "attempt": job["attempt"],
                                         "outcome": outcome_of(job) | {"score": float("nan")}}) + "\n")  # fmt: skip
            sys.stdout.flush()
            time.sleep(60)
        case "wrong cost":
            return outcome_of(job, cost=7_777_777)
        case "hangs":
            time.sleep(60)
        case "no memory":
            return outcome_of(job, "out_of_memory", message="CUDA out of memory")
        case "half fits" if job["micro_batches"] == 1:
            return outcome_of(job, "out_of_memory", message="CUDA out of memory")
        case "raises":
            return outcome_of(job, "failed", message="RuntimeError: on purpose")
        case words if words.startswith("sleeps "):
            time.sleep(float(words.removeprefix("sleeps ")))
    staging = folder / f"attempt-{job['attempt']}"
    staging.mkdir(parents=True)
    (staging / "made").write_text(f"{job['number']} {job['micro_batches']} {job['tries']}")
    return outcome_of(job)


def main() -> None:
    start = json.loads(sys.stdin.readline())
    match start["header"].get("behaviour"):
        case "cannot start":
            sys.stderr.write("no such thing as libfake.so\n")
            os._exit(1)
        case "refuses":
            say({"kind": "refused", "reason": "data: other rows"})
            return
    say({"kind": "note", "text": "hello"})
    say({"kind": "ready", "together": start["header"].get("together", 1)})
    for line in sys.stdin:
        jobs = json.loads(line)["jobs"]
        for job, outcome in [(job, do(job)) for job in jobs]:
            say({"kind": "outcome", "attempt": job["attempt"], "outcome": outcome})


if __name__ == "__main__":
    main()
