"""States that trials start from: found by content, refused when they are not what was saved."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftscout.errors import StudyError
from peftscout.training.initial_states import InitialStates

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([0.5], dtype=torch.bfloat16)}


@pytest.fixture(params=["on disk", "in memory"])
def states(request, tmp_path):
    return InitialStates(tmp_path / "initial" if request.param == "on disk" else None)


def test_a_state_comes_back_as_it_was_saved(states):
    back = states.load(states.save(STATE))
    assert set(back) == set(STATE)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in STATE.items())


def test_equal_states_have_one_name_and_others_have_others(states):
    name = states.save(STATE)
    assert states.save({n: STATE[n].clone() for n in ("a", "b")}) == name
    others = (STATE | {"b": STATE["b"] + 1}, STATE | {"b": STATE["b"].reshape(3, 2)}, {"b": STATE["b"]})
    assert name not in {states.save(other) for other in others}


def test_what_is_saved_does_not_follow_later_changes(states):
    state = {"a": torch.zeros(2)}
    name = states.save(state)
    state["a"] += 1
    assert torch.equal(states.load(name)["a"], torch.zeros(2))


def test_an_unknown_name_is_refused(states):
    with pytest.raises(StudyError, match=r"initial state 0123456789abcdef: missing or damaged.*resume the study"):
        states.load("0123456789abcdef")


@pytest.mark.parametrize("damage", ["cut", "changed", "garbage"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    states = InitialStates(tmp_path)
    name = states.save(STATE)
    path = tmp_path / f"{name}.safetensors"
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-3])
        case "changed":
            save_file({**load_file(path), "b": torch.zeros(2, 3)}, path)
        case _:
            path.write_bytes(b"not tensors")
    with pytest.raises(StudyError, match="missing or damaged"):
        states.load(name)


def test_no_unfinished_file_stays_behind(tmp_path):
    name = InitialStates(tmp_path).save(STATE)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.safetensors"]
