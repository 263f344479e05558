from __future__ import annotations

import numpy as np
import pytest

from peftscout.errors import StudyError
from peftscout.training import kept_search
from peftscout.training.kept_search import KeptSearch

STATES = [({"a": np.full(3, n)}, {"n": n}, [{"x": i} for i in range(n)]) for n in range(5)]


def save(kept: KeptSearch, *numbers: int) -> None:
    for n in numbers:
        kept.save(*STATES[n])


def number_of(found) -> int:
    """Which of the states this is, whole."""
    arrays, facts, events = found
    n = facts["n"]
    assert (arrays["a"].tolist(), facts, events) == ([n] * 3, {"n": n}, STATES[n][2])
    return n


def test_what_was_kept_is_read_back_and_of_the_states_before_one_is_there(tmp_path):
    kept = KeptSearch(tmp_path / "search")
    assert kept.load() is None
    save(kept, 1, 2)
    arrays = {"a": np.arange(4), "none": np.zeros((0, 2), dtype=bool), "scalar": np.array(7)}
    kept.save(arrays, {"n": 3}, [{"x": 1}, {"x": 2}])
    for reader in (kept, KeptSearch(tmp_path / "search")):
        found, facts, events = reader.load()
        assert all(np.array_equal(found[name], a) and found[name].shape == a.shape for name, a in arrays.items())
        assert (facts, events) == ({"n": 3}, [{"x": 1}, {"x": 2}])
    states = {f"state-{n}.{suffix}" for n in (2, 3) for suffix in ("json", "safetensors")}
    assert {p.name for p in kept.folder.iterdir()} == {"kept.json", "kept-before.json", "events.jsonl", *states}


def test_who_goes_on_with_a_search_saves_after_what_there_is(tmp_path):
    save(KeptSearch(tmp_path), 1, 2)
    save(KeptSearch(tmp_path), 3)
    assert number_of(KeptSearch(tmp_path).load()) == 3
    assert {p.name for p in tmp_path.glob("state-*.json")} == {"state-2.json", "state-3.json"}


@pytest.mark.parametrize("at", range(1, 7))
def test_a_save_that_is_cut_short_anywhere_leaves_the_state_before(tmp_path, monkeypatch, at):
    """Two flushed files of the state, the log, the two markers; after the last of them it is the new state."""
    kept, done = KeptSearch(tmp_path), 0
    save(kept, 1, 2)
    flush = kept_search._flush

    def cut(path):
        nonlocal done
        done += 1
        if done == at:
            path.write_bytes(path.read_bytes()[:-1])
            raise KeyboardInterrupt
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(kept_search, "_flush", cut)
        if at < 6:
            with pytest.raises(KeyboardInterrupt):
                save(kept, 3)
        else:
            save(kept, 3)
    again = KeptSearch(tmp_path)
    assert number_of(again.load()) == (2 if at < 6 else 3)
    save(again, 4)
    assert number_of(KeptSearch(tmp_path).load()) == 4


@pytest.mark.parametrize("harm", ["cut", "gone"])
@pytest.mark.parametrize("file", ["kept.json", "state-3.safetensors", "state-3.json"])
def test_where_the_last_state_is_damaged_it_goes_on_from_the_one_before_and_says_so(tmp_path, file, harm):
    save(KeptSearch(tmp_path), 1, 2, 3)
    (tmp_path / file).unlink() if harm == "gone" else (tmp_path / file).write_text("{")
    told: list[str] = []
    kept = KeptSearch(tmp_path, told.append)
    assert number_of(kept.load()) == 2
    assert len(told) == 1
    assert file in told[0]
    assert "it goes on from what was saved before" in told[0]
    save(kept, 3)
    assert number_of(KeptSearch(tmp_path, pytest.fail).load()) == 3
    save(kept, 4)
    assert number_of(KeptSearch(tmp_path, pytest.fail).load()) == 4


@pytest.mark.parametrize(
    "damage",
    [
        ("kept.json", "kept-before.json"),
        ("state-3.json", "state-2.safetensors"),
        ("events.jsonl",),
        ("kept.json", "state-2.json"),
    ],
)
def test_where_both_are_damaged_nothing_is_read(tmp_path, damage):
    save(KeptSearch(tmp_path), 1, 2, 3)
    for file in damage:
        (tmp_path / file).write_text("{")
    with pytest.raises(StudyError, match="cannot be read .*; remove the folder to search anew"):
        KeptSearch(tmp_path, pytest.fail).load()


@pytest.mark.parametrize("damage", ["kept.json", "state-1.safetensors", "state-1.json"])
def test_damage_to_the_only_state_is_an_error_that_names_the_folder(tmp_path, damage):
    save(KeptSearch(tmp_path), 1)
    (tmp_path / damage).write_text("{")
    with pytest.raises(StudyError, match=rf"{tmp_path}.*remove the folder"):
        KeptSearch(tmp_path).load()


def test_a_log_that_is_ahead_of_its_state_does_not_matter(tmp_path):
    save(KeptSearch(tmp_path), 1, 2)
    with (tmp_path / "events.jsonl").open("a") as log:
        log.write('{"x": 99}\n')
    assert number_of(KeptSearch(tmp_path, pytest.fail).load()) == 2
