"""A log that stays readable: alike messages are few, others and tracebacks all pass, and what was held is told."""

from __future__ import annotations

import logging
import sys

from deploy.runtime.log_limit import RepeatFilter


class Log:
    """A filter on a clock that the test moves, and what it let through."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.filter = RepeatFilter(lambda: self.now_s)
        self.lines: list[str] = []

    def say(self, template: str, *arguments: object, name: str = "client", error: bool = False) -> None:
        info = (ValueError, ValueError("x"), None) if error else None
        record = logging.LogRecord(name, logging.WARNING, __file__, 1, template, arguments, info)
        if self.filter.filter(record):
            self.lines.append(record.getMessage())


def test_of_alike_messages_a_few_pass_and_the_rest_are_counted() -> None:
    log = Log()
    for n in range(500):
        log.say("cannot connect to %d", n)
    assert log.lines == ["cannot connect to 0", "cannot connect to 1", "cannot connect to 2"]
    log.now_s = 10.0
    log.say("cannot connect to %d", 500)
    assert log.lines[-1] == "cannot connect to 500 (497 more like this before)"
    log.now_s = 20.0
    log.say("cannot connect to %d", 501)
    assert log.lines[-1] == "cannot connect to 501"


def test_other_messages_loggers_and_tracebacks_pass() -> None:
    log = Log()
    for n in range(20):
        log.say(f"message {n}")
        log.say("the same", name=f"logger-{n}")
        log.say("failed", error=True)
    assert len(log.lines) == 60


def test_a_handler_takes_the_filter() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RepeatFilter())
    record = logging.LogRecord("a", logging.INFO, __file__, 1, "%s", ("x",), None)
    assert handler.filter(record)
