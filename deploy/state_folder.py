"""Finds the processes that a command talks to, by the environment or the state folder of a running `perseid up`.

`up` writes its addresses and passwords as `PERSEID_*` lines into `up.env` of its state folder, for its user alone;
`attach` reads them back. Variables of the environment win. A running `up` holds `up.lock`, which says what it does.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deploy.settings import PREFIX, Settings, load

FILE = "up.env"
_LOCK = "up.lock"
STOPPING, _STOPPED, _STARTING = "stopping", "stopped", "starting"


def write_addresses(state: Path, settings: Settings) -> Path:
    """Writes the settings for `attach` (and for a shell: `set -a; . FILE`), for this user's eyes only."""
    lines = "".join(f"{name}='{value}'\n" for name, value in settings.environment().items())
    return write_private(state / FILE, lines.encode())


def write_private(path: Path, content: bytes) -> Path:
    """A file for this user's eyes only, complete or not at all; returns its path."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return part.replace(path)


@contextmanager
def only_one(state: Path) -> Iterator[None]:
    """The state folder, made if it is not there, for us alone. Nothing is left of one that got nothing else."""
    is_new = not state.exists()
    state.mkdir(parents=True, exist_ok=True)
    with (state / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another `perseid up` runs with {state}; choose another folder by --state") from error
        note_phase(state, _STARTING)
        try:
            yield
        finally:
            note_phase(state, _STOPPED)
            if is_new and state.is_dir() and [path.name for path in state.iterdir()] == [_LOCK]:
                (state / _LOCK).unlink()
                state.rmdir()


def note_phase(state: Path, doing: str) -> None:
    """Notes what the `up` that has the state folder is doing, for whoever asks meanwhile or later."""
    with suppress(OSError):  # a full disk must not end it, nor a folder that somebody removed
        (state / _LOCK).write_text(doing)


def running_near(environ: Mapping[str, str]) -> Path | None:
    """The state folder of a `perseid up` that a command without --state may have meant.

    None where the environment names a Kafka, or none runs with the usual state folder.
    """
    state = load(environ).state
    return state if f"{PREFIX}KAFKA" not in environ and not _absence(state) else None


def attach(environ: Mapping[str, str], state: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `environ`, and below them those of the `perseid up` that runs with `state`.

    Raises ValueError when nothing runs with that state folder, or a setting is wrong.
    """
    if state is not None and (absence := _absence(state)):
        raise ValueError(absence)
    return load({**_noted(state), **_given(environ)}, **overrides)


def attach_files(environ: Mapping[str, str], state: Path | None = None) -> Settings:
    """As `attach`, for a command that needs the files of a state folder alone: nothing has to run, or ever have run."""
    place = {} if state is None else {f"{PREFIX}STATE": str(state)}
    return load({**place, **_noted(state), **_given(environ)})


def _noted(state: Path | None) -> dict[str, str]:
    """What an `up` wrote into the folder for whoever attaches; nothing if there was none."""
    lines = (state / FILE).read_text().splitlines() if state is not None and (state / FILE).is_file() else []
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(PREFIX)}


def _absence(state: Path) -> str:
    """Why no running `up` can be talked to by this state folder, and what to do; "" when one can."""
    nobody, remedy = f"no `perseid up` runs with {state}", f"start it with `perseid up --state {state}`"
    has_addresses, held = (state / FILE).is_file(), False
    try:
        with (state / _LOCK).open() as lock:
            doing, noted_s = lock.read(), os.fstat(lock.fileno()).st_mtime
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for some microseconds
    except FileNotFoundError:
        return "" if has_addresses else f"{nobody}, and none ever has; {remedy}"
    except BlockingIOError:
        held = True
    since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(noted_s))
    if held:
        wait = f"then {remedy}" if doing == STOPPING else "wait until it says where its API is"
        return "" if has_addresses else f"`perseid up` with {state} is {doing or _STARTING} {since}; {wait}"
    if doing == _STOPPED:
        return f"{nobody} {since}; {remedy}"
    # A build before this one says nothing.
    return f"{nobody}{doing and f': the last one was killed, it was {doing} {since}'}; {remedy}"
