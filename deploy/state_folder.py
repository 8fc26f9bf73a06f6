"""Finds the processes that a command talks to, by the environment or the state folder of a running `perseid up`.

`up` writes its addresses and passwords as `PERSEID_*` lines into `up.env` of its state folder, readable by its user
only; `attach` reads them back. Variables of the environment win over the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.settings import PREFIX, Settings, load

FILE = "up.env"


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


def running_near(environ: Mapping[str, str]) -> Path | None:
    """The state folder of a `perseid up` that a command without --state may have meant.

    None where the environment names a Kafka, or none runs with the usual state folder.
    """
    state = load(environ).state
    return state if f"{PREFIX}KAFKA" not in environ and (state / FILE).is_file() else None


def attach(environ: Mapping[str, str], state: Path | None = None, **overrides: Any) -> Settings:
    """Settings from `environ`, and below them those of the `perseid up` that runs with `state`.

    Raises ValueError when nothing runs with that state folder, or a setting is wrong.
    """
    found: dict[str, str] = {}
    if state is not None:
        try:
            lines = (state / FILE).read_text().splitlines()
        except FileNotFoundError as error:
            raise ValueError(f"no {FILE} in {state}: no `perseid up` runs with this state folder") from error
        for line in lines:
            name, _, value = line.partition("=")
            found[name] = value.strip("'")
    given = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    return load({**found, **given}, **overrides)
