"""A small file system of its own that a test can fill; a test is skipped where the system allows none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """Everything in `folder` shares a few megabytes."""

    folder: Path

    def fill(self) -> None:
        """Leaves no room at all."""
        try:
            with (self.folder / "ballast").open("ab", buffering=0) as file:
                for size in (65_536, 1):
                    while True:
                        try:
                            file.write(b"x" * size)
                        except OSError:
                            break
        finally:
            assert self.free == 0

    def clear(self) -> None:
        """Makes room again."""
        (self.folder / "ballast").unlink(missing_ok=True)

    @property
    def free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize


@contextmanager
def small_disk(folder: Path, size: str = "4m") -> Iterator[SmallDisk]:
    """A disk of `size` below `folder` for the time of the block."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        place.rmdir()
        pytest.skip("this user may mount no file system")
    try:
        yield SmallDisk(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
