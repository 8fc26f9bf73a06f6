"""Whether the features of lists under load are those that a replay of the log makes, and whether a mistake is found.

Two workers and two API processes on real Kafka and Redis serve a generated shop, whose lists a ranker of one rule
orders; the exposures of all carry their features. Views, carts, purchases and dislikes at two locations come in an
open loop, items change their price within its band and go out of stock, and the weather changes, while lists are asked
for. Then `perseid skew`, a process of its own, makes them again from Kafka. At last some lists are compared as if each
part had been read one position earlier.

    python -m tests.bench.skew [--state DIR] [--rate 200] [--queries 75] [--lists 10000] [--planted 500]
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from deploy.jobs.retrain import served_artefact
from deploy.jobs.skew import SkewPlan, check_skew
from deploy.settings import Settings
from deploy.state_folder import attach
from encoder.device import use_threads
from index.query.list_sample import PARTS
from tests.bench.deployed import WARM_UP_S, Load, parser, started
from tests.bench.open_loop import Load as QueryLoad
from tests.bench.open_loop import Report, generator, get_request
from tests.bench.report import Row, result, show
from tests.bench.rollover import ModelWatch, applied, perseid
from tests.integration.live import ROOT, Live, click
from tests.support.moved_lists import moved
from tests.support.simple_rankers import ranker_of

_KINDS = ("view",) * 6 + ("cart", "purchase", "like", "dislike")
_PLACES = ("oslo", "rome", "")
_CHANGES_S, _WEATHER_EVERY = 0.5, 10  # seconds between two changes of items; so many of them to one of the weather
_SPARE = 1.15  # lists asked for over those wanted: some are made while counts or items change, and carry nothing
_LOOKS_S = 5.0  # API processes look for a ranker and for counts every three seconds
_SKEW_S = 1200.0
_COUNT = 10


class Clicks(Load):
    """Events of several kinds at several places."""

    def event(self, rng: random.Random) -> dict[str, Any]:
        user, item, kind = rng.choice(self.users), rng.choice(self.items), rng.choice(_KINDS)
        return click(user, item, kind, location=rng.choice(_PLACES[:2]))


class Changes:
    """Changes items and the weather, as a shop's own systems do."""

    def __init__(self, live: Live, items: Sequence[str]) -> None:
        self._live, self._items = live, items
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True)
        self.items = self.weather = 0

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        rng = random.Random(2)
        while not self._stop.wait(_CHANGES_S):
            with suppress(OSError):  # also 503, under overload
                self._item(rng)
                if self.items % _WEATHER_EVERY == 0:
                    self._weather(rng)

    def _item(self, rng: random.Random) -> None:
        item = rng.choice(self._items)
        price = float(self._live.get(f"/v1/items/{item}")["catalogue"]["price"])
        band = 2.0 ** math.floor(math.log2(price))
        change = {"price": round(band * rng.uniform(1.05, 1.95), 2), "available": rng.random() < 0.9}
        self._live.call("PATCH", f"/v1/items/{item}", body=change)
        self.items += 1

    def _weather(self, rng: random.Random) -> None:
        now_ms = int(time.time() * 1000)
        record = {"location": rng.choice(_PLACES[:2]), "ts_ms": now_ms, "valid_until_ms": now_ms + 3_600_000}
        weather = {"heat_wave": rng.random() < 0.5, "temperature": rng.uniform(-5, 35)}
        self._live.call("POST", "/v1/context", body={**record, "weather": weather})
        self.weather += 1


def ranked(live: Live, folder: Path) -> None:
    """A ranker orders the lists from now on."""
    served = served_artefact(attach(os.environ, live.state))
    version = perseid(live.state, "add", str(served))
    ranker = ranker_of(version, "price")
    ranker.save(folder / ranker.version)
    perseid(live.state, "add-ranker", str(folder / ranker.version))
    live.until(lambda: live.get("/v1/recommendations/anybody")["ranked_by"] == ranker.version, 30, "lists are ranked")
    time.sleep(_LOOKS_S)


def used(live: Live, rate: float, queries: float, lists: int) -> tuple[Report, Clicks, Changes]:
    """Lists under load."""
    with ModelWatch(live) as watch:
        users, items = watch.users(), watch.items()
    rng = random.Random(0)
    asked = [*rng.sample(users, len(users)), *(f"stranger-{number}" for number in range(len(users) // 20))]
    rng.shuffle(asked)
    paths = [
        f"/v1/recommendations/{user}?count={_COUNT}" + (f"&location={place}" if place else "")
        for user in asked
        for place in (rng.choice(_PLACES),)
    ]
    ports = [int(url.rpartition(":")[2]) for url in live.urls]
    seconds = _SPARE * lists / queries
    load = QueryLoad("127.0.0.1", ports, [*map(get_request, paths)], queries, seconds, WARM_UP_S)
    clicks, changes = Clicks(live, users, items, rate), Changes(live, items)
    with generator() as begin, clicks, changes:
        report = begin(load)()
    applied(live)
    return report, clicks, changes


def replayed(live: Live, lists: int) -> tuple[dict[str, Any], float]:
    """What `perseid skew` says, and how long it took."""
    command = [sys.executable, "-m", "deploy.cli", "skew", "--json", "--lists", str(lists), "--state", str(live.state)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=_SKEW_S, check=False)
    if not done.stdout:
        raise ValueError(f"`perseid skew` ended with {done.returncode}")
    found: dict[str, Any] = orjson.loads(done.stdout)
    assert (done.returncode == 0) == (found["differing"] == 0), done.returncode
    return found, time.perf_counter() - began


def found_of(settings: Settings, lists: int) -> dict[str, int]:
    """By part, of how many lists it is seen that the part was read a position earlier."""
    plan, found = SkewPlan(served_artefact(settings), most_lists=lists), {}
    for part in PARTS:
        report = check_skew(plan, settings, altered=partial(moved, part=part, by=-1))
        found[part] = report.differing
        print(f"{part}: {report.differing} of {report.compared}, {dict(report.features)}", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rate", type=float, default=200.0, help="events a second")
    options.add_argument("--queries", type=float, default=75.0, help="lists a second")
    options.add_argument("--lists", type=int, default=10_000, help="lists to compare")
    options.add_argument("--planted", type=int, default=500, help="lists to compare with a planted position, by part")
    given = options.parse_args(arguments)
    use_threads(1)
    share = {"PERSEID_FEATURE_SHARE": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="perseid-bench-") as name,
        started(given.on, given.state, two=True, variables=share) as live,
    ):
        ranked(live, Path(name))
        report, clicks, changes = used(live, given.rate, given.queries, given.lists)
        found, seconds = replayed(live, given.lists)
        print(orjson.dumps(found).decode(), file=sys.stderr)
        planted = found_of(attach(os.environ, live.state), given.planted)
    rows: list[Row] = [
        result("lists", found["lists"], "lists", given.lists),
        result("lists_differing", found["differing"], "lists", 0, at_most=True),
        result("lists_unsettled", found["unsettled"], "lists"),
        result("candidates", found["items"] / found["lists"], "items a list"),
        *(result(f"planted_{part}", count, "lists", 1) for part, count in planted.items()),
        result("replay", seconds, "s"),
        result("events_sent", clicks.sent / (report.seconds + WARM_UP_S), "1/s"),
        result("late_p99", float(np.quantile(clicks.late_s, 0.99)) * 1e3, "ms"),
        result("items_changed", changes.items, "changes"),
        result("weather_changed", changes.weather, "changes"),
        result("query_p50", report.percentile(50), "ms"),
        result("query_p99", report.percentile(99), "ms"),
        result("answered", report.statuses[200] / report.sent, "share"),
    ]
    for row in rows:
        print(f"{row['name']:24} {row['value']:12.4g} {row['unit']}", file=sys.stderr)
    show("skew", rows, f"two workers, two API processes; {given.rate:g} events/s and {given.queries:g} lists/s")


if __name__ == "__main__":
    main()
