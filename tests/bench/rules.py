"""How soon a rule reaches answers: acknowledged by Kafka → first answer that obeys it and names its version.

All roles run as processes of `perseid up --no-traffic`, on real Kafka and Redis unless told otherwise. Each probe
publishes a rule that pins another item to the first place, or removes the rule, and asks until the answer says so;
an answer that names a version and does not obey it counts as wrong. Clicks of others arrive meanwhile.

    python -m tests.bench.rules [--on kafka|embedded] [--state DIR] [--rate 100] [--probes 200]
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

from tests.bench.deployed import WARM_UP_S, Load, all_users, parser, setting, started
from tests.bench.probe import Probe
from tests.bench.report import Row, result, show
from tests.integration.live import Live

GOALS = {"p99": 100.0}  # ms
LATE_S = 5.0
SCENARIO = "home"
_REPEAT = dict.fromkeys(("view", "cart", "purchase", "like", "dislike", "remove"), "allowed")  # pins win over all else


def bench(live: Live, rate: float, probes: int) -> list[Row]:
    """Percentiles over the probes, of rules that are set and of such that are removed."""
    users, probe, rng, wrong = all_users(live), Probe(live), random.Random(0), 0
    items = [item["item_id"] for item in probe.get("/v1/recommendations/nobody?count=200")["items"]]
    set_ms, removed_ms = list[float](), list[float]()
    with Load(live, users, items, rate):
        time.sleep(WARM_UP_S)
        for number in range(probes):
            user = rng.choice(users)
            own = probe.get(f"/v1/recommendations/{user}?count=50&include_seen=true")["items"]
            pinned = rng.choice(own)["item_id"]  # sold where the user is
            body: dict[str, Any] = {"scenario": SCENARIO, "pins": [{"item": pinned, "place": 1}], "repeat": _REPEAT}
            body |= {"ts_ms": int(time.time() * 1000)}
            sent = probe.send("rules", SCENARIO, body if number % 3 < 2 else None)
            answer, took_ms = until_known(probe, user, sent.offset if number % 3 < 2 else None, sent.at_s)
            (set_ms if number % 3 < 2 else removed_ms).append(took_ms)
            wrong += number % 3 < 2 and (answer is None or answer["items"][0]["item_id"] != pinned)
            time.sleep(rng.random() * 0.02)
    rows = []
    for name, found in (("set", set_ms), ("removed", removed_ms)):
        for share in (50, 95, 99):
            value = float(np.percentile(found, share))
            rows.append(result(f"{name}_p{share}", value, "ms", GOALS.get(f"p{share}"), at_most=True))
    return [*rows, result("samples", probes, "probes"), result("wrong", int(wrong), "probes", 0, at_most=True)]


def until_known(probe: Probe, user: str, version: int | None, since_s: float) -> tuple[dict[str, Any] | None, float]:
    """The first answer under this version (None: under no rule), and how long after `since_s`; infinite when late."""
    while time.perf_counter() - since_s < LATE_S:
        answer = probe.get(f"/v1/recommendations/{user}?count=5&scenario={SCENARIO}")
        if answer.get("rules", {}).get("version") == version:
            return answer, (time.perf_counter() - since_s) * 1000
    return None, float("inf")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rate", type=float, default=100.0, help="clicks a second beside the probes")
    options.add_argument("--probes", type=int, default=200)
    given = options.parse_args()
    with started(given.on, given.state) as live:
        results = bench(live, given.rate, given.probes)
    show("rules", results, setting(given.on))


if __name__ == "__main__":
    main()
