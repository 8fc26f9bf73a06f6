"""Collects what the processes that a failed test has started wrote into their logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_MOST_LOGS = 12  # the latest written ones
_MOST_LINES = 25
_folders: list[Path] = []


def watch(folder: Path) -> None:
    """Logs below this folder belong to this run."""
    _folders.append(folder)


def sections(since_s: float) -> list[tuple[str, str]]:
    """(title, last lines) of each log that was written to since then (seconds since the epoch), the latest last."""
    written = [(at, path) for at, path in _logs() if at >= since_s - 1]
    return [(f"log of a process: {path}", _tail(path)) for _, path in sorted(written)[-_MOST_LOGS:]]


def _logs() -> Iterator[tuple[float, Path]]:
    for folder in _folders:
        for path in folder.rglob("*.log"):
            try:
                yield path.stat().st_mtime, path
            except OSError:
                continue  # removed meanwhile


def _tail(path: Path) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_MOST_LINES:])
    except OSError as error:
        return str(error)
