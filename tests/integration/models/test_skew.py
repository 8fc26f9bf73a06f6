"""`perseid skew` on a running deployment: lists that two API processes order while everything changes."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy.jobs.retrain import served_artefact
from deploy.jobs.skew import SkewPlan, check_skew
from deploy.state_folder import attach
from index.query.list_sample import ITEMS_PART
from index.query.live_user import USER_PART
from tests.integration.live import Live, click
from tests.integration.models.asking import WORDS, small_model
from tests.support import commands
from tests.support.folders import START_S, item, write_folder
from tests.support.moved_lists import moved
from tests.support.simple_rankers import ranker_of

pytestmark = [pytest.mark.servers, pytest.mark.slow]

KINDS = ("view", "view", "view", "cart", "purchase", "dislike")
USERS, LISTS = 30, 300


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Thirty users, each with a favourite kind of thing, and two API processes of which all lists are sampled."""
    folder = tmp_path_factory.mktemp("skew")
    rows = [
        (f"u{user}", f"{WORDS[user % 4]}-{(user + step) % 6}", "view", START_S + step * 600 + user)
        for step in range(12)
        for user in range(USERS)
    ]
    items = [
        item(f"{word}-{n}", title=f"{word} number {n}", category=[word], brand=f"b{n % 3}", price=n + 70.5)
        for word in WORDS
        for n in range(6)
    ]
    weather = {"location": "oslo", "ts_ms": START_S * 1000, "weather": {"sky": "blue"}, "valid_until_ms": 2 * 10**12}
    data = write_folder(folder / "small", rows, items, context=[weather])
    found = Live(
        folder / "state",
        *("--data", str(data), "--model", str(small_model(folder))),
        "--speed",
        "1000",
        "--apis",
        "2",
        variables={"PERSEID_FEATURE_SHARE": "1"},
    )
    try:
        found.wait_ready(320)
        add_ranker(found, folder)
        yield found
    finally:
        found.stop()


def perseid(live: Live, *words: str, code: int = 0) -> str:
    done = commands.perseid(*words, "--state", str(live.state))
    assert done.status == code, done.out + done.err
    return done.out if code == 0 else done.out + done.err


def add_ranker(live: Live, folder: Path) -> None:
    """A ranker of one rule orders lists from now on."""
    version = str(live.get("/v1/status")["models"]["champion"])
    ranker = ranker_of(version, "price")
    ranker.save(folder / ranker.version)
    served = served_artefact(attach(os.environ, live.state))
    perseid(live, "models", "add", str(served))
    perseid(live, "models", "add-ranker", str(folder / ranker.version))
    live.until(lambda: live.recommend("u1")["ranked_by"] == ranker.version, 20, "the ranker orders lists")
    time.sleep(4)  # counts by kind are read from the next look on


def use(live: Live, rng: random.Random) -> None:
    """Lists are asked for while events come, prices change, and so does the weather.

    Prices stay in their band, a tag: a changed one acts when a window is encoded anew, which no position says.
    """
    names = [f"{word}-{n}" for word in WORDS for n in range(6)]
    with live.producer() as producer:
        for number in range(LISTS):
            for _ in range(3):
                user = f"u{rng.randrange(USERS)}"
                event = click(user, rng.choice(names), rng.choice(KINDS), location=rng.choice(("oslo", "rome")))
                producer.send(live.topic("clickstream"), orjson.dumps(event), key=user.encode())
            if number % 10 == 0:
                live.call("PATCH", f"/v1/items/{rng.choice(names)}", body={"price": rng.randrange(64, 127) + 0.5})
            if number % 50 == 0:
                now_ms = int(time.time() * 1000)
                record = {"location": "oslo", "ts_ms": now_ms, "valid_until_ms": now_ms + 10**9}
                live.call("POST", "/v1/context", body={**record, "weather": {"sky": rng.choice(("blue", "grey"))}})
            live.recommend(f"u{rng.randrange(USERS + 2)}", count=5, location=rng.choice(("oslo", "rome", None)))
        producer.flush()


def test_features_of_live_lists_are_those_of_a_replay_and_a_planted_position_is_found(sampled: Live) -> None:
    use(sampled, random.Random(1))

    def exposed() -> bool:
        return int(orjson.loads(perseid(sampled, "skew", "--json"))["lists"]) > 0.9 * LISTS

    sampled.until(exposed, 60, "nearly all lists are sampled: not those made while counts or items changed")
    found: dict[str, Any] = orjson.loads(perseid(sampled, "skew", "--json"))
    assert found["differing"] == 0 and found["unsettled"] == 0 and not found["left_out"], found
    settings = attach(os.environ, sampled.state)
    plan = SkewPlan(served_artefact(settings), most_lists=120)
    # Events of today lie beyond this timeline's buckets, and its model has learned no weather: mistakes of counts and
    # contexts are planted in tests/streams/replay and by the bench.
    for part in (USER_PART, ITEMS_PART):
        report = check_skew(plan, settings, altered=partial(moved, part=part, by=-1))
        assert report.differing, (part, report.to_dict())
