"""What every test shares: one thread a worker, no hub, hypothesis settings, and where real data and models lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before any test imports torch: a worker with two threads would fight the other worker for the two cores.
for name, value in {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_COLOR": "1",
}.items():
    os.environ.setdefault(name, value)

# A deadline would measure the machine. Fixed examples in continuous integration: a red run can be run again.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real tasks (``sst2/train.jsonl`` and so on), which is not part of the repository."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Folder of small real models (``stories260k-llama``), which is not part of the repository."""
    return _shared("models")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/{name} beside the repository, which is not there")
    return folder


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The packaged MiniLM encoder, its weights checked."""
    from peftscout.demo import model_path
    from peftscout.errors import PeftscoutError

    try:
        return model_path()
    except PeftscoutError as error:
        pytest.skip(str(error))
