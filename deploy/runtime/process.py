"""Does what all our processes share, which is logging, opening the live state, heartbeats, and ending on a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import orjson
from redis.exceptions import RedisError

from deploy.runtime.log_limit import RepeatFilter
from deploy.runtime.memory import RestWatch, give_back
from deploy.runtime.stack_dump import show_stacks_on_signal
from deploy.settings import Settings, public_address
from index.state.redis_routing import Command, nodes
from index.state.redis_store import RedisStore
from index.state.store import LiveStore, StoreUnavailableError
from index.state.tasks import end_tasks

_BEAT_S = 1.0
_FIRST_PAUSE_S, _MOST_PAUSE_S = 0.1, 2.0  # between two attempts while the live state is away; each is twice the last
T = TypeVar("T")
log = logging.getLogger(__name__)
_FORMAT = "%(asctime)s %(levelname).1s %(name)s %(message)s"


def log_to_stderr(settings: Settings) -> None:
    """Sets up logging and says once with whom this process talks, without passwords. SIGUSR1 shows its stacks."""
    show_stacks_on_signal()
    logging.basicConfig(level=settings.log_level.upper(), format=_FORMAT, force=True)
    logging.getLogger().handlers[0].addFilter(RepeatFilter())
    logging.getLogger("elastic_transport").setLevel(logging.ERROR)  # else it tells of every call
    kafka, redis = (public_address(address.get_secret_value()) for address in (settings.kafka, settings.redis))
    logging.getLogger("perseid.deploy").info("process %d, kafka %s, redis %s", os.getpid(), kafka, redis)


def limit_threads(count: int) -> None:
    """Bounds the threads of numerical libraries that are loaded from now on; call it before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(count)


def freeze_gc() -> None:
    """Leaves all that is loaded by now out of later garbage collections, of which one takes 0.1 s and more.

    What an earlier call left out and nobody uses any more is freed.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def settle() -> None:
    """After much was loaded: `freeze_gc`, and memory given back."""
    freeze_gc()
    give_back()


def settle_once() -> Callable[[], None]:
    """`settle` for the first load. After later ones, which meet requests, nothing is collected: they would wait.

    What was loaded since is then left out of collections, and what is let go has to be free of cycles.
    """
    loads = count()
    return lambda: gc.freeze() if next(loads) else settle()


def open_store(settings: Settings, **options: Any) -> RedisStore:
    """The live state of this deployment; `options` are those of `RedisStore`."""
    redis = settings.redis.get_secret_value()
    return RedisStore(redis, settings.keys(), cluster=settings.redis_cluster, ca_file=settings.redis_ca, **options)


async def until_answered(what: str, call: Callable[[], Awaitable[T]]) -> T:
    """What `call` gives; while the live state is away or takes no writes it is called again, and `what` waits in the
    log. For what a role does before its own loops, which repeat.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except StoreUnavailableError as error:
            log.warning("cannot %s yet, it is tried again: %s", what, error)
        await asyncio.sleep(pause_s)
        pause_s = min(_MOST_PAUSE_S, 2 * pause_s)


def ask_redis(settings: Settings, commands: Sequence[Command], timeout_s: float = 1.0) -> list[Any]:
    """Answers to a few commands from outside any event loop. Raises StoreUnavailableError when there are none."""

    async def ask() -> list[Any]:
        redis, ca_file = settings.redis.get_secret_value(), settings.redis_ca
        found = nodes(redis, cluster=settings.redis_cluster, timeout_s=timeout_s, retries=0, ca_file=ca_file)
        try:
            return await found.run(commands)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error
        finally:
            await found.close()

    return asyncio.run(ask())


def run_until_done(main: Coroutine[Any, Any, None]) -> None:
    """Runs a process's main coroutine; unlike `asyncio.run` it does not wait for tasks that refuse to be cancelled."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(main)


async def _nothing() -> None: ...


@asynccontextmanager
async def running(
    store: LiveStore,
    role: str,
    describe: Callable[[], dict[str, Any]],
    at_rest: Callable[[], Awaitable[None]] = _nothing,
) -> AsyncIterator[None]:
    """Sends heartbeats with what `describe` says as long as the block runs.

    When that has not changed for some beats the process is at rest: `at_rest` is called, and memory given back.
    """
    task = asyncio.create_task(_beat(store, role, describe, at_rest))
    try:
        yield
    finally:
        await end_tasks([task])


async def _beat(
    store: LiveStore, role: str, describe: Callable[[], dict[str, Any]], at_rest: Callable[[], Awaitable[None]]
) -> None:
    """Writes this process's heartbeat, under a name of its own in the deployment, for ever."""
    who = {"role": role, "pid": os.getpid(), "host": socket.gethostname(), "started_ms": now_ms()}
    name, rest = f"{role}-{who['host']}-{who['pid']}", RestWatch()
    while True:
        described = describe()
        try:
            await store.write(store.keys.roles(), {name: orjson.dumps({**who, "beat_ms": now_ms(), **described})})
        except StoreUnavailableError:
            pass
        if rest.look(described):
            await at_rest()
            await asyncio.to_thread(give_back)
        await asyncio.sleep(_BEAT_S)


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends us like Ctrl-C: in order, children included. A script's shell starts us with SIGINT ignored."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_processor(niceness: int) -> None:
    """Others come first from now on, more so the higher the number, to 19.

    Linux may share the processor among sessions, and then what is said of a process counts within its own only.
    """
    os.nice(niceness)
    with suppress(OSError):  # there are no such shares
        Path("/proc/self/autogroup").write_text(str(niceness))


def on_signals(stop: Callable[[], None]) -> None:
    """Calls `stop` on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def now_ms() -> int:
    """Wall time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
