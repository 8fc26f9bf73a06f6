"""Gives memory that only starting or loading needed back to the system, when a process has come to rest.

Assumes Linux with glibc; elsewhere nothing happens. What a later call needs after all is mapped again from the page
cache, some milliseconds in all.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REST_BEATS = 20  # heartbeats without a change of what a process counts
_LIBRARY = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-.[ps] \S+ \S+ [1-9]\d* +\S*\.so[.\d]*$")
_MADV_DONTNEED = 4


class RestWatch:
    """Tells when a process comes to rest, which is once after each time in which something changed."""

    def __init__(self) -> None:
        self._last: object = None
        self._still = 0

    def look(self, counted: object) -> bool:
        """Whether this look, with what the process has `counted` so far, is the one at which rest begins."""
        self._still = self._still + 1 if counted == self._last else 0
        self._last = counted
        return self._still == REST_BEATS


def give_back() -> None:
    """Returns free heap memory, and unmaps pages of libraries that nobody has changed."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
    for start, stop in _unchanged(Path("/proc/self/smaps").read_text().splitlines()):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)


def _unchanged(smaps: list[str]) -> Iterator[tuple[int, int]]:
    """Mappings of libraries that cannot be written to and hold no page of our own: all of it can be read again.

    Libraries stay where they are, while the place of another file may be somebody's heap a moment later. The relocated
    tables of a library are read-only too, but such pages of our own would be lost.
    """
    found: tuple[int, int] | None = None
    for line in smaps:
        if line.startswith("Anonymous:"):
            if found is not None and line.split()[1] == "0":
                yield found
        elif (mapping := _LIBRARY.match(line)) is not None:
            found = int(mapping[1], 16), int(mapping[2], 16)
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            found = None
