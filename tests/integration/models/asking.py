"""Somebody who asks all the time, and a shop small enough to know all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.commands import perseid
from tests.support.folders import START_S, item, write_folder
from tests.support.saved_models import saved_model

COUNT = 5
MINILM = "minilm-l6-v2"
LEARNED_MS = (START_S + 9 * 600) * 1000  # where three quarters of the small shop have happened
WORDS = ("lamp", "chair", "kettle", "novel")


class Asking:
    """Asks for a list by a number that grows, one after the other, until it is enough; OSError is noted."""

    def __init__(self, ask: Callable[[int], dict[str, Any]]) -> None:
        self._ask, self._stop = ask, threading.Event()
        self.answers: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(0.01):
            number += 1
            try:
                self.answers.append(self._ask(number))
            except OSError as error:
                self.errors.append(repr(error))


def small_shop(place: Path) -> list[str]:
    """Options of `up` for a folder with thirty users, each of whom has a favourite kind of thing, and a model."""
    rows = [
        (f"u{user}", f"{WORDS[user % 4]}-{(user + step) % 6}", "view", START_S + step * 600 + user)
        for step in range(12)
        for user in range(30)
    ]
    items = [item(f"{word}-{n}", title=f"{word} number {n}", category=[word]) for word in WORDS for n in range(6)]
    return ["--data", str(write_folder(place / "small", rows, items)), "--model", str(small_model(place))]


def small_model(place: Path, before_ms: int = LEARNED_MS) -> Path:
    """A random model that a data folder can be played with: its texts are MiniLM's, and it knows what is before."""
    return saved_model(place / "first", embedder=MINILM, sizes={"d_text": 384}, before_ms=before_ms)


def perseid_models(state: Path, *words: str, code: int | None = 0) -> str:
    """What `perseid models` prints; it has to end with `code`, unless that is None."""
    done = perseid("models", *words, "--state", str(state))
    assert code in (None, done.status), done.out + done.err
    return done.out + done.err
