from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from peftscout.training import activation_cache
from peftscout.training.activation_cache import ActivationCache
from peftscout.training.activation_file import Entry, Indices, Layout

LENGTHS: Indices = np.array([[3], [1], [4], [2], [6]], dtype=np.int64)
ENTRY_BYTES = Layout("0" * 64, LENGTHS, 8, torch.float32, torch.float32).size


def key(n: int) -> str:
    return f"{n:064x}"[::-1]


def hidden(n: int) -> Tensor:
    """Activations that tell one entry from another."""
    return torch.arange(5 * 6 * 8, dtype=torch.float32).view(5, 6, 8) + 1000 * n


def batches(n: int, computed: list[int] | None = None) -> Iterator[tuple[Indices, Tensor]]:
    for rows in ([1, 3], [0, 2], [4]):
        if computed is not None:
            computed.extend(rows)
        yield np.array(rows), hidden(n)[rows]


def build(cache: ActivationCache, n: int, computed: list[int] | None = None) -> Entry | str:
    return cache.build(key(n), LENGTHS, batches(n, computed))


def assert_right(entry: Entry | str | None, n: int) -> None:
    assert isinstance(entry, Entry), entry
    out = entry.batch(range(5), 6)
    for row, (length,) in enumerate(LENGTHS):
        assert torch.equal(out[row, :length], hidden(n)[row, :length])
        assert not out[row, length:].any()


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.fixture
def cache(tmp_path: Path) -> ActivationCache:
    return ActivationCache(tmp_path / "cache", 10 * ENTRY_BYTES)


def test_what_is_built_is_found_again(cache: ActivationCache) -> None:
    assert cache.entry(key(1)) is None
    assert_right(build(cache, 1), 1)
    assert_right(cache.entry(key(1)), 1)
    assert cache.entry(key(2)) is None


def test_another_process_finds_it_too(cache: ActivationCache, tmp_path: Path) -> None:
    build(cache, 1)
    assert_right(ActivationCache(tmp_path / "cache", 0).entry(key(1)), 1)


def test_what_is_there_is_not_computed_again(cache: ActivationCache) -> None:
    computed: list[int] = []
    build(cache, 1, computed)
    assert sorted(computed) == [0, 1, 2, 3, 4]
    assert_right(build(cache, 1, computed), 1)
    assert len(computed) == 5


def test_only_files_that_belong_there_are_left(cache: ActivationCache, tmp_path: Path) -> None:
    build(cache, 1)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["1.lock", f"{key(1)}.safetensors"]


def test_activations_may_be_stored_in_half_the_space(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path, 10 * ENTRY_BYTES)
    small = (LENGTHS / 3).astype(np.int64) + 1
    values = torch.full((5, 4, 8), 1 / 3)
    entry = cache.build(key(1), small, iter([(np.arange(5), values)]), store_as=torch.float16)
    assert isinstance(entry, Entry)
    assert entry.activations.dtype == torch.float16
    out = entry.batch([0], 2)
    assert out.dtype == torch.float32
    assert 0 < (out[0, 0] - 1 / 3).abs().max() < 1e-3


def test_left_padded_activations_are_taken_from_the_right(cache: ActivationCache) -> None:
    entry = cache.build(key(1), LENGTHS, batches(1), left_padded=True)
    assert isinstance(entry, Entry)
    assert torch.equal(entry.batch([1], 2, left_padded=True)[0, 1], hidden(1)[1, -1])


# --- the limit -------------------------------------------------------------------------------------------------------


def test_the_longest_unused_entry_makes_room(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path, 3 * ENTRY_BYTES)
    for n in (1, 2, 3):
        build(cache, n)
        os.utime(tmp_path / f"{key(n)}.safetensors", (n, n))
    assert_right(cache.entry(key(1)), 1)  # used now
    assert_right(build(cache, 4), 4)
    assert entries(tmp_path) == sorted(f"{key(n)}.safetensors" for n in (1, 3, 4))
    os.utime(tmp_path / f"{key(4)}.safetensors", (4, 4))
    build(cache, 5)
    assert entries(tmp_path) == sorted(f"{key(n)}.safetensors" for n in (1, 4, 5))


def test_the_folder_never_takes_more_than_the_limit(tmp_path: Path) -> None:
    limit = int(2.5 * ENTRY_BYTES)
    cache = ActivationCache(tmp_path, limit)
    for n in range(1, 8):
        assert_right(build(cache, n), n)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit
        assert len(entries(tmp_path)) <= 2
    assert len(entries(tmp_path)) == 2


def test_a_smaller_limit_is_kept_from_the_next_entry_on(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        build(ActivationCache(tmp_path, 10 * ENTRY_BYTES), n)
    build(ActivationCache(tmp_path, ENTRY_BYTES), 4)
    assert entries(tmp_path) == [f"{key(4)}.safetensors"]


@pytest.mark.parametrize("limit", [0, 500])
def test_an_entry_above_the_limit_is_not_stored_and_says_so(tmp_path: Path, limit: int) -> None:
    computed: list[int] = []
    reason = build(ActivationCache(tmp_path, limit), 1, computed)
    assert isinstance(reason, str)
    assert "MB of activations exceed the cache limit of 0.0 MB" in reason
    assert computed == [1, 3]  # the first batch tells how wide they are
    assert entries(tmp_path) == []


def test_an_entry_above_the_limit_evicts_nothing(tmp_path: Path) -> None:
    build(ActivationCache(tmp_path, 10 * ENTRY_BYTES), 1)
    build(ActivationCache(tmp_path, 500), 2)
    assert_right(ActivationCache(tmp_path, 500).entry(key(1)), 1)


def test_an_evicted_entry_stays_readable_to_a_trial_that_has_it(tmp_path: Path) -> None:
    cache = ActivationCache(tmp_path, ENTRY_BYTES)
    first = build(cache, 1)
    build(cache, 2)
    assert cache.entry(key(1)) is None
    assert_right(first, 1)


def test_files_of_others_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"x" * 10 * ENTRY_BYTES)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10 * ENTRY_BYTES)
    cache = ActivationCache(tmp_path, 2 * ENTRY_BYTES)
    build(cache, 1)
    build(cache, 2)
    assert {"notes.txt", "model.safetensors", f"{key(1)}.safetensors"} <= {path.name for path in tmp_path.iterdir()}


# --- damaged and foreign files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 50, -1])
def test_a_truncated_file_is_computed_again(
    cache: ActivationCache, tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    build(cache, 1)
    path = tmp_path / "cache" / f"{key(1)}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert cache.entry(key(1)) is None
    assert "damaged, its activations are computed again" in caplog.text
    assert not path.exists()
    assert_right(build(cache, 1), 1)


def test_the_file_of_another_entry_is_not_read(cache: ActivationCache, tmp_path: Path) -> None:
    build(cache, 1)
    (tmp_path / "cache" / f"{key(1)}.safetensors").rename(tmp_path / "cache" / f"{key(2)}.safetensors")
    assert_right(build(cache, 2), 2)


def test_a_foreign_file_under_our_name_is_not_read(cache: ActivationCache, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "cache" / f"{key(1)}.safetensors")
    assert cache.entry(key(1)) is None
    assert_right(build(cache, 1), 1)


def test_a_folder_in_the_place_of_a_file_costs_the_cache_and_no_more(cache: ActivationCache, tmp_path: Path) -> None:
    (tmp_path / "cache" / f"{key(1)}.safetensors" / "x").mkdir(parents=True)
    assert cache.entry(key(1)) is None
    assert isinstance(build(cache, 1), str)


def test_a_file_in_the_place_of_the_folder_costs_the_cache_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("x")
    cache = ActivationCache(tmp_path / "cache", 10 * ENTRY_BYTES)
    assert cache.entry(key(1)) is None
    reason = build(cache, 1)
    assert isinstance(reason, str)
    assert reason.startswith("the activations could not be computed or stored: FileExistsError")


def test_a_full_disk_costs_the_cache_and_no_more(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(activation_cache.os, "fsync", full)
    reason = build(cache, 1)
    assert isinstance(reason, str)
    assert "No space left" in reason
    assert list((tmp_path / "cache").glob(f"{key(1)}*")) == []


def test_a_model_that_fails_is_a_reason_and_leaves_nothing(cache: ActivationCache, tmp_path: Path) -> None:
    def failing() -> Iterator[tuple[Indices, Tensor]]:
        yield from list(batches(1))[:2]
        raise torch.OutOfMemoryError("no memory")

    reason = cache.build(key(1), LENGTHS, failing())
    assert reason == "the activations could not be computed or stored: OutOfMemoryError: no memory"
    assert list((tmp_path / "cache").glob(f"{key(1)}*")) == []
    assert_right(build(cache, 1), 1)


def test_an_interruption_is_not_swallowed_and_leaves_nothing(cache: ActivationCache, tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[Indices, Tensor]]:
        yield from list(batches(1))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build(key(1), LENGTHS, interrupted())
    assert list((tmp_path / "cache").glob(f"{key(1)}*")) == []


# --- two builders ----------------------------------------------------------------------------------------------------


def test_who_comes_second_waits_and_computes_nothing(cache: ActivationCache) -> None:
    started, go_on = threading.Event(), threading.Event()
    found: dict[str, Entry | str] = {}
    computed: list[int] = []

    def slow() -> Iterator[tuple[Indices, Tensor]]:
        started.set()
        assert go_on.wait(30)
        yield from batches(1)

    first = threading.Thread(target=lambda: found.update(first=cache.build(key(1), LENGTHS, slow())))
    second = threading.Thread(target=lambda: found.update(second=build(cache, 1, computed)))
    first.start()
    assert started.wait(30)
    second.start()
    time.sleep(0.1)
    assert "second" not in found
    go_on.set()
    first.join(30)
    second.join(30)
    assert_right(found["first"], 1)
    assert_right(found["second"], 1)
    assert computed == []


def test_who_waits_in_vain_trains_without(
    cache: ActivationCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_cache, "PATIENCE", 0.05)
    (tmp_path / "cache").mkdir()
    with FileLock(tmp_path / "cache" / "1.lock"):
        reason = build(cache, 1)
    assert isinstance(reason, str)
    assert reason.startswith("another process has been computing the same activations")


def test_the_leftover_of_a_living_builder_is_left_alone(cache: ActivationCache, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    living, dead = (folder / f"{digit * 64}.unfinished" for digit in "ab")
    living.touch()
    dead.touch()
    with FileLock(folder / "a.lock"):
        assert_right(build(cache, 1), 1)
        assert living.exists()
        assert not dead.exists()


# --- killed builders -------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path

import numpy as np
import torch

from peftscout.training.activation_cache import ActivationCache


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def batches(moment):
    for n, rows in enumerate(([1, 3], [0, 2], [4])):
        if moment == f"batch {n}":
            die()
        yield np.array(rows), torch.full((len(rows), 6, 8), -1.0)


def build(moment):
    if moment == "flushed":
        os.fsync = die
    elif moment == "synced":
        Path.replace = die
    elif moment == "renamed":
        rename = Path.replace
        Path.replace = lambda *args: (rename(*args), die())
    cache = ActivationCache(Path(sys.argv[1]) / moment, 10**6)
    cache.build("1" + "0" * 63, np.array([[3], [1], [4], [2], [6]]), batches(moment))


for moment in sys.argv[2:]:
    if (child := os.fork()) == 0:
        build(moment)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
MOMENTS = ("batch 0", "batch 2", "flushed", "synced", "renamed")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which a builder of an entry full of -1 killed itself, by the moment when."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", KILLED, str(folder), *MOMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL.value)] * len(MOMENTS), done.stderr
    return {moment: folder / moment for moment in MOMENTS}


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS[:-1])
def test_what_a_killed_builder_left_is_never_read(killed: dict[str, Path], moment: str) -> None:
    folder = killed[moment]
    cache = ActivationCache(folder, 10 * ENTRY_BYTES)
    assert entries(folder) == []
    assert cache.entry(key(1)) is None
    assert len(list(folder.glob("*.unfinished"))) == (moment != "batch 0")
    assert_right(build(cache, 2), 2)  # another entry sweeps up
    assert list(folder.glob("*.unfinished")) == []
    assert_right(build(cache, 1), 1)
    assert len(entries(folder)) == 2


@needs_fork
@pytest.mark.slow
def test_a_file_that_has_its_name_is_complete(killed: dict[str, Path]) -> None:
    entry = ActivationCache(killed["renamed"], 0).entry(key(1))
    assert isinstance(entry, Entry)
    assert (entry.activations == -1).all()
    assert len(entry.activations) == 16
