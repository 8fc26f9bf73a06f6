"""Who asks by a state folder is told whether an `up` runs there, what it is doing, and what to do when none does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deploy.settings import load
from deploy.state_folder import STOPPING, attach, note_phase, only_one, running_near, write_addresses

SETTINGS = load({"PERSEID_KAFKA": "localhost:1"})
NOTED_S = 1_760_000_000
NOTED = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOTED_S))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(".perseid")


def refusal(state: Path) -> str:
    with pytest.raises(ValueError) as caught:
        attach({}, state)
    assert running_near({}) is None
    return str(caught.value)


def noted_at(state: Path) -> None:
    os.utime(state / "up.lock", (NOTED_S, NOTED_S))


def test_where_none_ever_ran_one_is_to_be_started(state: Path) -> None:
    text = "no `perseid up` runs with .perseid, and none ever has; start it with `perseid up --state .perseid`"
    assert refusal(state) == text
    state.mkdir()
    assert refusal(state) == text


def test_one_that_still_starts_says_what_it_is_doing(state: Path) -> None:
    with only_one(state):
        assert refusal(state).startswith("`perseid up` with .perseid is starting since ")
        note_phase(state, "training a model on shop-0")
        noted_at(state)
        assert refusal(state) == (
            f"`perseid up` with .perseid is training a model on shop-0 since {NOTED}; "
            "wait until it says where its API is"
        )
        write_addresses(state, SETTINGS)
        note_phase(state, "running")
        assert attach({}, state) == SETTINGS and running_near({}) == state


def test_one_that_starts_again_is_not_called_stopped(state: Path) -> None:
    state.mkdir()
    for _ in range(2):
        with only_one(state):
            assert refusal(state).startswith("`perseid up` with .perseid is starting since ")


def test_one_that_is_being_stopped_is_to_be_started_anew(state: Path) -> None:
    with only_one(state):
        note_phase(state, STOPPING)
        noted_at(state)
        assert refusal(state) == (
            f"`perseid up` with .perseid is stopping since {NOTED}; then start it with `perseid up --state .perseid`"
        )


def test_one_that_was_stopped_or_killed_says_since_when(state: Path) -> None:
    state.mkdir()
    with only_one(state):
        pass
    noted_at(state)
    remedy = "start it with `perseid up --state .perseid`"
    assert refusal(state) == f"no `perseid up` runs with .perseid since {NOTED}; {remedy}"
    write_addresses(state, SETTINGS)  # left by one that was killed
    note_phase(state, "running")
    noted_at(state)
    killed = f"the last one was killed, it was running since {NOTED}"
    assert refusal(state) == f"no `perseid up` runs with .perseid: {killed}; {remedy}"
    note_phase(state, "")  # by a build that noted nothing
    assert refusal(state) == f"no `perseid up` runs with .perseid; {remedy}"


def test_a_second_one_is_refused_and_leaves_what_the_first_one_noted(state: Path) -> None:
    with only_one(state):
        note_phase(state, "training a model")
        with pytest.raises(ValueError, match="another `perseid up` runs with"), only_one(state):
            pass
        assert "is training a model since" in refusal(state)
    assert not state.exists(), "nothing is left of a start that made nothing"


def test_a_folder_that_was_removed_meanwhile_does_not_hide_why_it_ended(state: Path) -> None:
    with pytest.raises(RuntimeError, match="the reason"), only_one(state):
        (state / "up.lock").unlink()
        state.rmdir()
        raise RuntimeError("the reason")
