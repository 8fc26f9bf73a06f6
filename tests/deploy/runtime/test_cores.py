import os

import pytest

from deploy.runtime.cores import thread_count, usable_cores


@pytest.mark.parametrize(("given", "expected"), [("1", 1), ("3,2", 3), (" 2 ", 2)])
def test_threads_are_as_asked_else_as_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert thread_count(None) == expected
    assert thread_count(7) == 7


@pytest.mark.parametrize("given", [None, "", "0", "-1", "many"])
def test_else_one_for_each_core_that_may_be_used(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert thread_count(None) == usable_cores() == len(os.sched_getaffinity(0))
