"""A staged model of a running `perseid up` with two API processes: a shadow, then an experiment and its results."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from deploy.settings import load
from streams.events import EXPOSURES
from streams.kafka.topic_reader import TopicReader
from tests.integration.live import Live, click
from tests.integration.models.asking import COUNT, Asking, perseid_models, small_shop
from tests.support.saved_models import varied

pytestmark = [pytest.mark.servers, pytest.mark.slow]

USERS = [f"u{number}" for number in range(30)] + [f"guest-{number}" for number in range(270)]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two API processes, and a second model that ranks each request, too, and has passed its gates."""
    place = Path(tmp_path_factory.mktemp("live"))
    found = Live(place / "state", *small_shop(place), "--speed", "1000", "--apis", "2")
    try:
        found.wait_ready(320)
        served = Path(found.settings()["PERSEID_MODEL"]).parent / models(found)["champion"]
        second = perseid_models(found.state, "add", str(varied(served, place / "made"))).strip()
        perseid_models(found.state, "stage", second, "--shadow", "100%")
        yield found
    finally:
        found.stop()


def models(live: Live) -> dict[str, Any]:
    return dict(live.get("/v1/status")["models"])


def status(live: Live) -> str:
    """What the command shows, whether gates are passed or not."""
    shown = json.loads(perseid_models(live.state, "status", "--json", code=None))
    return "\n".join(shown["lines"])


def exposures(live: Live, *answers: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The records by recommendation id, once those of all these answers are there."""
    wanted = {answer["recommendation_id"] for each in answers for shown in each.values() for answer in shown}
    settings, deadline = load({}, state=live.state, **_given(live)), time.monotonic() + 60
    while True:
        with TopicReader(settings.kafka_config(), [EXPOSURES], embedded=True) as reader:
            records = [json.loads(record.value or b"{}") for record in reader.records()]
        found = {record["recommendation_id"]: record for record in records}
        if wanted <= found.keys():
            return found
        assert time.monotonic() < deadline, f"{len(wanted - found.keys())} lists are not exposed"


def _given(live: Live) -> dict[str, str]:
    known = live.settings()
    return {"kafka": known["PERSEID_KAFKA"], "topic_prefix": known["PERSEID_TOPIC_PREFIX"]}


def ask_everywhere(live: Live) -> dict[str, list[dict[str, Any]]]:
    """Each user's answers, one of each API process."""
    answers = defaultdict(list)
    for url in live.urls:
        with live._pin(url):
            for user in USERS:
                answers[user].append(live.get(f"/v1/recommendations/{user}", count=COUNT))
    assert {len(answer["items"]) for found in answers.values() for answer in found} == {COUNT}
    return answers


def test_a_shadow_ranks_what_both_processes_have_answered_and_is_a_gate(tried: Live) -> None:
    tried.until(lambda: models(tried)["challenger"] in models(tried)["loaded"], 60, "the challenger is loaded")
    champion, challenger = models(tried)["champion"], models(tried)["challenger"]
    assert "WAIT shadowed requests: " in status(tried)
    answers = ask_everywhere(tried)
    assert {answer["model"] for found in answers.values() for answer in found} == {champion}
    tried.until(
        lambda: models(tried)["shadow"]["requests"] + models(tried)["shadow"]["dropped"] >= 2 * len(USERS), 30, "all"
    )
    found = models(tried)["shadow"]
    assert (found["model"], found["failed"], found["short"]) == (challenger, 0, 0)
    assert 0 < found["overlap_at_10"] <= 1 and found["requests"] >= 200
    said = status(tried)  # whether p99 is within the budget is a matter of who else is busy here
    assert "shadowed requests: 200 of 200" in said and "shadow     100 % of requests, " in said
    assert "shorter" not in said and "failed" not in said
    perseid_models(tried.state, "shadow", "off")
    tried.until(lambda: models(tried)["shadow"] is None, 5, "no request is ranked twice")


def test_an_experiment_splits_users_alike_in_both_processes_and_ends_without_a_short_list(tried: Live) -> None:
    tried.until(lambda: models(tried)["challenger"] in models(tried)["loaded"], 60, "the challenger is loaded")
    champion, challenger = models(tried)["champion"], models(tried)["challenger"]
    assert "is no share" in perseid_models(tried.state, "experiment", f"{challenger}=half", code=1)
    with Asking(lambda number: tried.recommend(f"u{number % 30}", count=COUNT)) as asking:
        name = perseid_models(tried.state, "experiment", f"{challenger}=50%").split()[1].rstrip(":")
        assert f"experiment {name} is running" in perseid_models(tried.state, "experiment", f"{challenger}=20%", code=1)
        tried.until(lambda: (models(tried)["experiment"] or {}).get("id") == name, 5, "both processes know of it")
        answers = ask_everywhere(tried)
        arms = {user: {answer["model"] for answer in found} for user, found in answers.items()}
        assert all(len(found) == 1 for found in arms.values()), "the same model in both processes"
        chosen = [user for user in USERS if arms[user] == {challenger}]
        assert abs(len(chosen) - len(USERS) / 2) < 5 * sqrt(len(USERS) / 4)
        act_on(tried, answers, set(chosen))
        exposures(tried, answers)  # all of them are in Kafka: results count lists of the one who only asks, too
        found = results(tried)
        perseid_models(tried.state, "experiment", "off")
        tried.until(lambda: models(tried)["experiment"] is None, 5, "both processes know that it is over")
        again = ask_everywhere(tried)
        assert {answer["model"] for found in again.values() for answer in found} == {champion}
    assert not asking.errors, asking.errors[:3]
    assert {len(answer["items"]) for answer in asking.answers} == {COUNT}
    check(found, chosen)
    named = exposures(tried, answers, again)
    for user, shown in answers.items():
        wanted = (name, "challenger" if user in chosen else "champion")
        for answer in shown:
            record = named[answer["recommendation_id"]]
            assert (record["experiment"], record["arm"], record["model"]) == (*wanted, answer["model"])
    assert not any("arm" in named[a["recommendation_id"]] for shown in again.values() for a in shown)


def act_on(live: Live, answers: dict[str, list[dict[str, Any]]], chosen: set[str]) -> None:
    """Users of the challenger's arm click in both lists and half of them buy, others in every third list."""
    events = []
    for number, (user, shown) in enumerate(answers.items()):
        for at, answer in enumerate(shown):
            if user in chosen or (number + at) % 3 == 0:
                kind = "purchase" if at == 0 and number % 2 else "view"
                named = {"recommendation_id": answer["recommendation_id"]}
                events.append(click(user, answer["items"][at]["item_id"], kind, **named))
    live.call("POST", "/v1/events", body=events)


def results(live: Live) -> dict[str, Any]:
    return dict(json.loads(perseid_models(live.state, "experiment", "--results", "--json")))


def check(found: dict[str, Any], chosen: list[str]) -> None:
    champion, challenger = found["arms"]["champion"], found["arms"]["challenger"]
    assert challenger["users"] == len(chosen) and champion["users"] == len(USERS) - len(chosen)
    assert challenger["stands_in"] == 0 and found["crossed"] == 0 and found["malformed"] == 0
    assert challenger["clicked"] == 2 * len(chosen) and challenger["bought"] == challenger["buyers"] > 0
    assert found["sample_ratio"]["passed"] and found["sample_ratio"]["p"] > 1e-6
    clicks = found["differences"]["click_through"]  # of all lists, also of those of somebody who only asks
    assert clicks["p"] < 0.001 and clicks["interval"][0] > 0


def test_an_experiment_ends_with_what_was_staged(tried: Live) -> None:
    champion, challenger = models(tried)["champion"], models(tried)["challenger"]
    perseid_models(tried.state, "experiment", f"{challenger}=50%", "--force")
    tried.until(lambda: models(tried)["experiment"] is not None, 5, "both processes know of it")
    with Asking(lambda number: tried.recommend(f"u{number % 30}", count=COUNT)) as asking:
        perseid_models(tried.state, "unstage")
        tried.until(lambda: models(tried)["experiment"] is None, 5, "both processes know that it is over")
        answers = ask_everywhere(tried)
    assert {answer["model"] for found in answers.values() for answer in found} == {champion}
    assert not asking.errors and {len(answer["items"]) for answer in asking.answers} == {COUNT}
    assert "answers 50 % of users" in perseid_models(tried.state, "experiment")
