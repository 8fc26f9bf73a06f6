"""The life of a model in one run: staged, filled, promoted, rolled back and retired under traffic, with one fault.

Commands are those of `perseid models`. One that the live state did not answer is given again unless what it was to do
is in force, as an operator would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from deploy.models.documents import write_document
from deploy.models.gates import USERS_SHARE
from deploy.models.registry import Registry
from deploy.models.rollout import PREVIOUS_MS, Rollout
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.store import LiveStore, StoreUnavailableError
from tests.faults.children import Api, Worker
from tests.faults.models import judge
from tests.faults.models.asks import may_ask
from tests.faults.models.mutations import EARLY
from tests.faults.models.toys import REGISTRY, fill_registry, settings_of
from tests.faults.models.traffic import FIRST
from tests.faults.stage import Stage

STEPS = ("stage", "fill", "promote", "rollback", "retire")
_STEP_S = 3.0  # the rate of events is that by which the rest of a step's would be sent in so long
_FEED_S = 0.05
_AGAIN_S = 0.1
_BEFORE_S, _AFTER_S = 0.3, 1.2  # a fault comes so much before or after a command
_WORKERS = 2


class Life:
    """What happens in a run of one case; `fault` comes at a random moment of `step`."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.random = stage, stage.random
        self.names = fill_registry(stage.folder)
        self.registry = Registry(stage.folder / REGISTRY)
        self._fed, self._end = threading.Event(), 0.0

    # The course of events

    def run(self, step: str, fault: Callable[[Life], None]) -> None:
        """All steps one after the other, and at last another model that is staged and filled."""
        with self._traffic():
            for number, name in enumerate(STEPS):
                self._share_out(len(STEPS) - number)
                self._step(name, fault if name == step else None)
            self._share_out(0)
            self.command("stage", lambda at: at.stage(self.names.third), lambda now: now.challenger == self.names.third)
            self.wait_gates(self.names.third)

    def stage_again(self) -> None:
        """A staged model is taken back, events come, and it is staged again: nobody may have what it left."""
        with self._traffic():
            self._share_out(0)
            self._stage()
            self.wait_gates(self.names.second)
            self._retire()
            self._wait_unwritten()
            self.stage.wait_applied(len(self.stage.records) // 20)
            self._stage()
            self.stage.wait(lambda: all(map(self._writes_second, self.workers)), "all workers write it again")
            self.wait_gates(self.names.second)

    def _wait_unwritten(self) -> None:
        """Until all workers know that it is retired; who has just started may write it for a moment."""
        self.stage.wait(lambda: not any(map(self._writes_second, self.workers)), "no worker writes it any more")

    def _writes_second(self, worker: Worker) -> bool:
        return self.names.second in worker.status().get("models", ())

    @contextmanager
    def _traffic(self) -> Iterator[None]:
        """A deployment that has begun, and events as long as the block runs; the rest is sent then."""
        self.begin()
        feeding = threading.Thread(target=self._feed, name="feed", daemon=True)
        feeding.start()
        try:
            yield
        finally:
            self._fed.set()
            feeding.join()
        self.stage.traffic.limit = len(self.stage.records)

    def begin(self) -> None:
        """A deployment that serves `first`, had `former` before it, and knows its shop."""
        aliases = Aliases(self.names.first, "", self.names.former, time.time_ns() // 1_000_000 + PREVIOUS_MS)
        self.registry.set_aliases(Aliases(), aliases)
        self.ask(lambda store: change_aliases(store, Aliases(), aliases))
        for folder in map(self.registry.folder, aliases.versions):
            self.ask(partial(write_document, folder=folder))
        if self.stage.options.append_only:
            self.stage.live.setting("appendfsync", "always")
        for _ in range(_WORKERS):
            self.stage.start()
        self.stage.traffic.limit = max(self.stage.traffic.limit, FIRST)
        self.stage.wait(self.stage.settled, "the shop is there")
        self.wait_gates(self.names.first)
        judge.wait_complete(self.stage)  # whoever came before an item is encoded again
        may_ask(self.stage.folder).touch()

    def _feed(self) -> None:
        """Sends what is this step's ever more slowly, so that there is traffic however long it takes."""
        traffic, sent = self.stage.traffic, float(self.stage.traffic.limit)
        while not self._fed.wait(_FEED_S):
            sent += max(0.0, self._end - sent) * _FEED_S / _STEP_S
            traffic.limit = max(traffic.limit, int(sent))

    def _share_out(self, steps_left: int) -> None:
        """Gives the coming step its share of the events."""
        sent = self.stage.traffic.limit
        self._end = sent + (len(self.stage.records) - sent) / (steps_left + 1)

    def _step(self, name: str, fault: Callable[[Life], None] | None) -> None:
        begin = {"stage": self._stage, "promote": self._promote, "rollback": self._rollback, "retire": self._retire}
        command = begin.get(name, lambda: None)
        if fault is None:
            command()
            self.dwell(0.0 if self.stage.options.mutation == EARLY else _AFTER_S)
        else:
            with ThreadPoolExecutor(1) as beside:
                given = beside.submit(self._late, command)
                try:
                    fault(self)
                finally:
                    given.result()
        if name == "fill":
            self.wait_gates(self.names.second)
        if fault is not None or self.stage.options.mutation:
            self.stage.wrong += judge.wrong_vectors(self.stage)
        if name in ("promote", "rollback"):
            self.stage.wrong += judge.unfilled(self.stage, USERS_SHARE)
        if name == "retire":
            self._wait_unwritten()
            judge.wait_complete(self.stage)
            self.stage.wrong += judge.left_behind(self.stage)

    def _late(self, command: Callable[[], None]) -> None:
        self.dwell(_BEFORE_S)
        command()

    # Commands

    def _stage(self) -> None:
        self.command(
            "stage",
            lambda at: at.stage(self.names.second),
            lambda aliases: aliases.challenger == self.names.second,
        )

    def _promote(self) -> None:
        force = self.stage.options.mutation == EARLY
        self.command(
            "promote",
            lambda at: at.promote(self.names.second, force=force),
            lambda aliases: aliases.champion == self.names.second,
        )

    def _rollback(self) -> None:
        self.command("rollback", lambda at: at.rollback(), lambda aliases: aliases.champion == self.names.first)

    def _retire(self) -> None:
        self.command(
            "retire",
            lambda at: at.retire(self.names.second),
            lambda aliases: self.names.second not in aliases.versions,
        )

    def command(
        self, what: str, step: Callable[[Rollout], Coroutine[Any, Any, Any]], in_force: Callable[[Aliases], bool]
    ) -> None:
        """Gives one command until what it does is in force; a live state that is away is waited for."""

        async def give(store: LiveStore) -> bool:
            if not in_force(await read_aliases(store)):
                await step(Rollout(store, self.registry, embedders=settings_of(self.stage.folder).rules().embedders))
            return True

        self.stage.wait(lambda: self._given(give), what)

    def _given(self, give: Callable[[LiveStore], Coroutine[Any, Any, bool]]) -> bool:
        try:
            return bool(self.ask(give))
        except StoreUnavailableError:
            pass
        except ValueError as error:
            if "is not promoted" not in str(error):  # a process that has just started has to load the model first
                raise
        time.sleep(_AGAIN_S)
        return False

    # What a fault asks for

    def ask(self, question: Callable[[LiveStore], Any]) -> Any:
        """The live state's answer."""
        return self.stage.live.ask(question)

    def dwell(self, longest_s: float) -> None:
        """A random moment: the time of a command or a fault, not a wait for anything."""
        time.sleep(self.random.uniform(0, longest_s))

    def moment(self, step: str) -> None:
        """Waits for the moment of a fault: about the command's time, or while users are filled at a random share."""
        if step == "fill":
            self.wait_filled(self.random.uniform(0.02, 0.95))
        else:
            self.dwell(_BEFORE_S + _AFTER_S)

    def wait_filled(self, share: float) -> None:
        """Until so many of the users have vectors of the staged model."""
        version = self.names.second
        self.stage.wait(lambda: judge.filled(self.stage, version) >= share, f"{share:.0%} are filled")

    @property
    def workers(self) -> list[Worker]:
        """Those that live."""
        return [worker for worker in self.stage.workers if worker.alive]

    @property
    def apis(self) -> list[Api]:
        """Those that live."""
        return [api for api in self.stage.apis if api.alive]

    def wait_gates(self, version: str) -> None:
        """Until a model may be promoted."""
        if self.stage.options.mutation == EARLY and version == self.names.second:
            return
        judge.wait_gates(self.stage, version)
