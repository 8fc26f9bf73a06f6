"""Looks at each part of an installation, in parallel and in bounded time, and says what may be wrong with it.

Assumes settings that parse. A check changes nothing; one that cannot look says why. Addresses are shown without
passwords.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from deploy.doctor.elasticsearch import check_elasticsearch
from deploy.doctor.finding import Finding
from deploy.doctor.kafka import check_kafka
from deploy.doctor.machine import check_api, check_folder, check_native, check_packages, check_python
from deploy.doctor.models import check_model, check_ranker, check_registry, check_text
from deploy.doctor.redis import check_redis
from deploy.settings import Settings

Check = Callable[[Settings], list[Finding]]

CHECKS: dict[str, Check] = {
    "python": check_python,
    "packages": check_packages,
    "native": check_native,
    "kafka": check_kafka,
    "redis": check_redis,
    "elasticsearch": check_elasticsearch,
    "model": check_model,
    "registry": check_registry,
    "ranker": check_ranker,
    "embedder": check_text,
    "folder": check_folder,
    "api": check_api,
}
_LIMIT_S = 15.0  # for all; each has shorter limits of its own, this one is for name servers and dead file systems


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which one depends on the other."""
    deadline = time.monotonic() + _LIMIT_S
    under_way = {name: _start(check, settings) for name, check in CHECKS.items()}
    findings = []
    for name, future in under_way.items():
        try:
            findings += future.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            remedy = "look at the network, its name servers, and mounted folders"
            findings.append(Finding(name).wrong(f"no answer within {_LIMIT_S:g} s", remedy))
    return findings


def _start(check: Check, settings: Settings) -> Future[list[Finding]]:
    """Runs a check in a thread that nobody waits for at the end: it may hang where no timeout reaches."""
    future: Future[list[Finding]] = Future()

    def run() -> None:
        try:
            future.set_result(check(settings))
        except BaseException as error:
            future.set_exception(error)  # raised where the result is asked for

    threading.Thread(target=run, name=check.__name__, daemon=True).start()
    return future
