"""Starts `perseid retrain` every so often beside a running `perseid up`, and tells in a heartbeat what came of it.

One run at a time, as a child that leaves the processor to the shop. A run that fails ends nothing: the next one is due
at its time. `look` is called about once a second.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from deploy.jobs.verdict import STATE_FILE, RetrainOutcome
from deploy.local.role_commands import command, environment
from deploy.runtime.process import ask_redis, now_ms
from deploy.servers.supervisor import log_end, log_tail, spawn, terminate
from deploy.settings import Settings
from index.state.redis_routing import Command
from index.state.store import StoreUnavailableError

ROLE, FAILED = "retrain", "failed"
_NICE = "19"  # others come first whenever they want the processor
_MOST_SAID = 500  # characters, in a heartbeat that is written every second


@dataclass(frozen=True, slots=True)
class RetrainSchedule:
    """How often the served model is retrained, and whether a better one is served at once or only staged."""

    every_ms: int
    promote: bool = False
    threads: int = 1

    @property
    def command(self) -> tuple[str, ...]:
        """What is started each time."""
        step = "--promote" if self.promote else "--stage"
        return command("retrain", step, "--threads", str(self.threads), "--nice", _NICE)


class ScheduledRetraining:
    """Runs a schedule, beginning when its first interval is over. Use from the main thread.

    `clock_ms` is wall time.
    """

    def __init__(
        self,
        schedule: RetrainSchedule,
        settings: Settings,
        environ: Mapping[str, str],
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self._schedule, self._settings, self._clock_ms = schedule, settings, clock_ms
        self._environment = environment(settings, environ)
        self._log = settings.state / "logs" / f"{ROLE}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._began_ms = clock_ms()
        self._next_ms = self._began_ms + schedule.every_ms
        self._last: dict[str, Any] = {}
        host, pid = socket.gethostname(), os.getpid()
        self._who = {"role": ROLE, "pid": pid, "host": host, "started_ms": self._began_ms}
        self._name = f"{ROLE}-{host}-{pid}"

    def look(self) -> None:
        """Starts what is due, notes what has ended, and says so."""
        now = self._clock_ms()
        if self._child is not None and (status := self._child.poll()) is not None:
            self._child = None
            self._end(status, now)
        if self._child is None and now >= self._next_ms:
            self._start(now)
        self._tell()

    def stop(self) -> None:
        """Ends a run that is under way; what it wrote so far is removed."""
        if self._child is not None:
            terminate(self._child, grace_s=10.0)
            self._child = None

    def report(self) -> dict[str, Any]:
        """For the heartbeat: the phase, when the next run is due, and what came of the last one."""
        found: dict[str, Any] = {"phase": "waiting" if self._child is None else "retraining", "next_ms": self._next_ms}
        if self._child is not None:
            found["since_ms"] = self._began_ms
        return {**found, "last": self._last} if self._last else found

    def _start(self, now: int) -> None:
        self._began_ms = now
        self._plan(now)
        try:
            self._log_start = log_end(self._log)
            self._child = spawn(self._schedule.command, log=self._log, env=self._environment)
        except OSError as error:  # no room for a process or its log: the shop goes on without
            self._note(FAILED, str(error), now)

    def _plan(self, now: int) -> None:
        """The next time that has not passed."""
        every_ms = self._schedule.every_ms
        if now >= self._next_ms:
            self._next_ms += ((now - self._next_ms) // every_ms + 1) * every_ms

    def _end(self, status: int, now: int) -> None:
        """Notes the outcome; a time that passed meanwhile is left out."""
        said = log_tail(self._log, self._log_start, lines=1).removeprefix("perseid: ")[:_MOST_SAID]
        self._note(self._outcome(status), f"was killed by signal {-status}" if status < 0 else said, now)
        self._plan(now)

    def _note(self, outcome: str, said: str, now: int) -> None:
        self._last = {"outcome": outcome, "said": said, "began_ms": self._began_ms, "ended_ms": now}

    def _outcome(self, status: int) -> str:
        """What the exit status says, and among those with the same one what was noted."""
        if status == RetrainOutcome.NOTHING_NEW.exit_status:
            return RetrainOutcome.NOTHING_NEW
        if status not in {outcome.exit_status for outcome in RetrainOutcome}:
            return FAILED
        try:
            return str(orjson.loads((self._settings.state / STATE_FILE).read_bytes())["outcome"])
        except (OSError, ValueError, KeyError):
            return FAILED

    def _tell(self) -> None:
        key = self._settings.keys().roles()
        beat = orjson.dumps({**self._who, "beat_ms": self._clock_ms(), **self.report()})
        try:
            ask_redis(self._settings, [Command(key, ("HSET", key, self._name, beat))])
        except StoreUnavailableError:
            pass  # as of every process: the next beat tells
