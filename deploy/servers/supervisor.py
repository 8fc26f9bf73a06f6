"""Starts child processes that die with their parent, and supervises the roles of `perseid up`.

A guard (this file run as a script) ties the child's life to ours and becomes the child by exec. Linux sends the death
signal; elsewhere the guard stays and watches its parent. Nothing is restarted; the first role that ends by
itself is reported.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TAIL_BYTES = 16_384  # enough for a Python traceback of a deep stack
TAIL_LINES = 20
_SENTENCE = "perseid: "  # how the last error of a command of ours begins, see `deploy.cli`
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02  # a stop or a start is noticed within a fraction of what a person notices


class StartError(RuntimeError):
    """A child that ended early or did not become healthy in time; the message carries the end of its log."""


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, output appended to `log`; it gets `death_signal` when we die.

    `env` replaces the environment (None: inherited). `stdin` is written to the child's standard input, which is closed
    then. Must be called from the main thread, because Linux sends the death signal when the *thread* that started the
    child ends. Raises ValueError for an empty or unknown command, RuntimeError outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children must be started from the main thread: Linux kills them when their thread ends")
    program = shutil.which(argv[0]) if argv else None
    if program is None:
        raise ValueError(f"cannot start {list(argv)!r}: no such program; give the full path of an executable")
    log.parent.mkdir(parents=True, exist_ok=True)
    mode = "exec" if sys.platform == "linux" else "watch"
    guard = [sys.executable, "-I", "-S", os.path.abspath(__file__), mode, str(os.getpid()), str(int(death_signal))]
    with log.open("ab") as output:
        child = subprocess.Popen(
            [*guard, program, *argv[1:]],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            start_new_session=True,  # Ctrl-C in the terminal must reach us alone: we stop the children in order
        )
    if stdin is not None and child.stdin is not None:
        with child.stdin as pipe:
            pipe.write(stdin)
    return child


def importable(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a Python child that finds this project even where it is not installed."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH", "")]))}


def terminate(child: subprocess.Popen[bytes], grace_s: float) -> int:
    """SIGTERM, then SIGKILL to its whole session after `grace_s` seconds; returns the exit status. Safe to repeat."""
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
    return _await_end(child, grace_s)


def _await_end(child: subprocess.Popen[bytes], grace_s: float) -> int:
    try:
        return child.wait(grace_s)
    except subprocess.TimeoutExpired:
        return kill(child)


def kill(child: subprocess.Popen[bytes]) -> int:
    """SIGKILL to the child and everything in its session; returns its exit status (-9, or what it ended with)."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet its own session leader, or gone this instant
            child.kill()
    return child.wait()


def log_end(log: Path) -> int:
    """The byte at which a run's own lines begin: the log is appended to, what lies before is an earlier run's."""
    return log.stat().st_size if log.exists() else 0


def log_tail(log: Path, start: int = 0, lines: int = TAIL_LINES) -> str:
    """The last `lines` lines that `log` holds beyond byte `start`; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True, slots=True)
class Role:
    """What the supervisor starts: a name for messages, a command, its environment (None: ours) and its log file."""

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Crash:
    """A role that ended although nobody stopped it. `status` is its exit status, negative for a signal."""

    name: str
    status: int
    log: Path
    tail: str = field(repr=False)

    def __str__(self) -> str:
        how = f"was killed by signal {-self.status}" if self.status < 0 else f"ended with status {self.status}"
        said = [line for line in self.tail.splitlines() if line.startswith(_SENTENCE)]
        if said:
            return f"{self.name} {how}: {said[-1].removeprefix(_SENTENCE)} (log: {self.log})"
        last_words = f"; its last lines:\n{self.tail}" if self.tail else " and wrote nothing"
        return f"{self.name} {how} (log: {self.log}){last_words}"


@dataclass(frozen=True, slots=True)
class _Running:
    role: Role
    child: subprocess.Popen[bytes]
    log_start: int

    def tail(self) -> str:
        return log_tail(self.role.log, self.log_start)


class Supervisor:
    """Starts roles in order, watches them, stops them all at once. Use from the main thread."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._crash: Crash | None = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, role: Role) -> int:
        """Start one role and return its process id. Raises ValueError when the name is taken by a running role."""
        if role.name in self._running:
            raise ValueError(f"role {role.name!r} is running already; stop it first or choose another name")
        start = log_end(role.log)
        child = spawn(role.argv, log=role.log, env=role.env)
        self._running[role.name] = _Running(role, child, start)
        return child.pid

    def wait_ready(self, name: str, is_ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll `is_ready` until it is true. Raises StartError when any role ends first or `timeout_s` seconds pass."""
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if (crash := self.crash()) is not None:
                raise StartError(str(crash))
            if time.monotonic() > deadline:
                said = self._running[name].tail()
                last_words = f"its last lines:\n{said}" if said else "it wrote nothing"
                raise StartError(f"{name} was not ready within {timeout_s:g} s; {last_words}")
            time.sleep(_POLL_S)

    def crash(self) -> Crash | None:
        """The first role that ended by itself, None while all run.

        Roles that ended between two calls are told apart by their starting order: what others depend on starts first.
        """
        if self._crash is None:
            for name, running in self._running.items():
                if (status := running.child.poll()) is not None:
                    self._crash = Crash(name, status, running.role.log, running.tail())
                    break
        return self._crash

    def stop(self, grace_s: float = 10.0) -> dict[str, int]:
        """Stop all roles at once, by SIGTERM and after `grace_s` seconds by SIGKILL; returns the exit status of each.

        They use servers and not each other, so none has to be gone before another one, and some take seconds.
        """
        deadline, children = time.monotonic() + grace_s, {name: each.child for name, each in self._running.items()}
        for child in children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        statuses = {name: _await_end(child, max(0.0, deadline - time.monotonic())) for name, child in children.items()}
        self._running.clear()
        self._crash = None
        return statuses

    def stop_role(self, name: str, grace_s: float = 10.0) -> int:
        """Stop one role as `stop` does and forget it; its end is no crash. Raises ValueError for an unknown name."""
        if name not in self._running:
            raise ValueError(f"no role {name!r} is running; running: {', '.join(self._running) or 'none'}")
        return terminate(self._running.pop(name).child, grace_s)


def _become(parent_pid: int, death_signal: int, argv: list[str]) -> None:
    """Linux: ask the kernel for the signal, make sure that the parent did not die before that, turn into `argv`."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == parent_pid:
        os.execv(argv[0], argv)


def _watch(parent_pid: int, death_signal: int, argv: list[str]) -> int:
    """Elsewhere: stay between the two, pass SIGTERM and SIGINT on, send the death signal when the parent is gone."""
    child = subprocess.Popen(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    while child.poll() is None:
        if os.getppid() != parent_pid:
            child.send_signal(death_signal)
            return child.wait()
        time.sleep(0.2)  # an orphan may live this long
    return child.returncode


def _guard(mode: str, parent_pid: str, death_signal: str, *argv: str) -> int:
    if mode == "watch":
        return _watch(int(parent_pid), int(death_signal), list(argv))
    _become(int(parent_pid), int(death_signal), list(argv))
    return 1  # the parent had died already


if __name__ == "__main__":
    sys.exit(_guard(*sys.argv[1:]))
