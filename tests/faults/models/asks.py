"""Asks an API process for lists while things break, and says afterwards which answers were wrong.

Every answer is a line in a file of its process, so that a kill loses none. A user who has no more events is answered
the same numbers under a model whenever it is asked, and these are worked out without any stream.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from numpy.typing import NDArray

from deploy.runtime.process import running
from index.state.store import LiveStore
from tests.faults.models.traffic import ASKED, OTHERS, SLEEPERS
from tests.faults.process_files import ProcessFiles

COUNT = 10  # items of every list
_PAUSE_S = 0.08
_TOLERANCE = 5e-3  # of a cosine whose user vector is stored in fp16
_ROWS = {"next": 0, "general": 1}
_OK = 200
_PERSONAL = ("personal", "stale")


def may_ask(folder: Path) -> Path:
    """Is there once the shop is, and answers are to be right."""
    return folder / "ask"


@asynccontextmanager
async def asked(app: FastAPI, store: LiveStore, files: ProcessFiles) -> AsyncIterator[None]:
    """Sends the heartbeats of an API process, and asks it without a pause longer than the one between two questions."""

    def report() -> dict[str, Any]:
        return {"models": app.state.services.keeper.report()}

    logging.getLogger("httpx").setLevel(logging.WARNING)  # else it tells of every call
    task = asyncio.create_task(_ask(app, files))
    try:
        async with running(store, "api", report):
            yield
    finally:
        task.cancel()


async def _ask(app: FastAPI, files: ProcessFiles) -> None:
    rng, path = random.Random(files.name), files.folder / f"{files.name}-{os.getpid()}.answers"
    while not may_ask(files.folder).exists():
        await asyncio.sleep(_PAUSE_S)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://api", timeout=30.0) as client:
        with path.open("ab", buffering=0) as file:
            while True:
                user = rng.choice(rng.choice((ASKED, SLEEPERS, OTHERS)))
                asks = {"count": str(COUNT), "explain": "true", "include_seen": "true", "slot": rng.choice([*_ROWS])}
                answer = await client.get(f"/v1/recommendations/{user}", params=asks)
                file.write(orjson.dumps({"user": user, "status": answer.status_code, "body": answer.json()}) + b"\n")
                await asyncio.sleep(_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Known:
    """What a model gives: vectors of the users who are asked for [2, d], and of the items that never change [d]."""

    users: Mapping[str, NDArray[np.float32]]
    items: Mapping[str, NDArray[np.float32]]

    def differs(self, user: str, item: Mapping[str, Any]) -> bool:
        """Whether an item of a list was scored by other numbers than these."""
        if user not in self.users or item["item_id"] not in self.items:
            return False
        cosine = float(self.users[user][_ROWS[item["slot"]]] @ self.items[item["item_id"]])
        return abs(cosine - float(item["explain"].get("cosine", 0.0))) > _TOLERANCE

    def fits(self, user: str, items: Iterable[Mapping[str, Any]]) -> bool:
        """Whether a list may have been scored by the vectors of this user."""
        return not any(self.differs(user, item) for item in items)


def wrong_answers(folder: Path, models: Mapping[str, Known]) -> tuple[list[str], int]:
    """What was wrong with the answers of a run's API processes, by model version; and how many answers there were."""
    wrong, count = list[str](), 0
    for path in sorted(folder.glob("*.answers")):
        answers = [orjson.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]  # the last may be cut off
        wrong += [f"{path.stem}: {said}" for said in _wrong(answers, models)]
        count += sum(answer["status"] == _OK for answer in answers)
    return wrong or ([] if count else ["nothing was answered"]), count


def _wrong(answers: Iterable[Mapping[str, Any]], models: Mapping[str, Known]) -> Iterator[str]:
    ready = False
    for answer in answers:
        body, status = answer["body"], answer["status"]
        if status != _OK:
            if ready:
                yield f"refuses with {status} after it had answered: {body.get('detail')}"
            continue
        ready = True
        if said := _fault(answer["user"], body, models):
            yield f"{answer['user']} by {body['model']}, {body['served_by']}: {said}"


def _fault(user: str, body: Mapping[str, Any], models: Mapping[str, Known]) -> str:
    items: Sequence[Mapping[str, Any]] = body["items"]
    if len({item["item_id"] for item in items}) != COUNT:
        return f"{len(items)} items, not {COUNT}"
    if body["served_by"] not in _PERSONAL:
        return ""
    known = models.get(body["model"])
    if known is None:
        return "a model that nobody staged"
    others = [item["item_id"] for item in items if known.differs(user, item)]
    if not others:
        return ""
    whose = [
        f"{name} by {version}" for version, other in models.items() for name in other.users if other.fits(name, items)
    ]
    said = f"those of {', '.join(whose)}" if whose else "nobody's"
    return f"scores are not this model's but {said}: {[(i['item_id'], i['slot'], i['explain']) for i in items]}"
