"""Runs commands in the test's own process, which has loaded already what each new process would load for seconds."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from deploy.cli import run


class Ran(NamedTuple):
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str


def perseid(*words: str) -> Ran:
    """A command as `perseid WORDS`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = run(words)
    return Ran(status, out.getvalue(), err.getvalue())
