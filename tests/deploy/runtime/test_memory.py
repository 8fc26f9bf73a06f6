"""Memory that only loading needed goes back, once a process is at rest, and nothing it still uses is lost."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest

from deploy.runtime.memory import REST_BEATS, RestWatch, give_back
from tests.bench.process_usage import memory_bytes


def test_rest_begins_once_and_again_only_after_something_changed() -> None:
    watch = RestWatch()
    assert [watch.look({"applied": 1}) for _ in range(REST_BEATS + 3)] == [*[False] * REST_BEATS, True, False, False]
    assert not watch.look({"applied": 2})
    assert [watch.look({"applied": 2}) for _ in range(REST_BEATS)] == [*[False] * (REST_BEATS - 1), True]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_freed_heap_and_unchanged_file_pages_go_back_and_what_is_read_again_is_as_before(tmp_path: Path) -> None:
    megabytes = 64
    path = tmp_path / "weights"
    path.write_bytes(b"\x07" * (megabytes << 20))
    held = [bytes(1_000) for _ in range(megabytes << 10)]  # from the heap: each is too small for a mapping of its own
    kept = held[::50]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as weights:
        assert weights[:: mmap.PAGESIZE].count(7) == len(weights) // mmap.PAGESIZE  # touches every page
        del held
        before = memory_bytes()
        give_back()
        after = memory_bytes()
        assert before["rss"] - after["rss"] > megabytes << 20
        assert set(weights[:: mmap.PAGESIZE]) == {7}
    assert set(kept) == {bytes(1_000)}
