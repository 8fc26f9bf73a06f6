"""Says of a disk that is full which folder lies on it and what to do, wherever state is written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# What libraries say that raise no OSError with a number: safetensors and redis-server, SQLite, NumPy.
_WORDS = ("No space left on device", "Disk quota exceeded", "disk is full", "Not enough free space")


@contextmanager
def room_in(*folders: Path) -> Iterator[None]:
    """For a block that writes into folders, which may not exist yet.

    Raises OSError with folder and remedy, in place of what a full disk raises, and at once where one is full.
    """
    for folder in folders:
        if free_bytes(folder) == 0:
            raise OSError(_message(folder))
    try:
        yield
    except Exception as error:
        if not folders or not _is_for_want_of_space(error):
            raise
        raise OSError(_message(min(folders, key=lambda folder: free_bytes(folder) or 0))) from error


def free_bytes(folder: Path) -> int | None:
    """What its disk has left for this user; None where the system does not say."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(nearest)
    return usage.free if usage.total else None


def _is_for_want_of_space(error: Exception) -> bool:
    number = error.errno if isinstance(error, OSError) else None
    return number in _NUMBERS or any(words in str(error) for words in _WORDS)


def _message(folder: Path) -> str:
    return f"no space left in {folder}: free some, then start again"
