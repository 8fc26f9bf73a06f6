"""Parts of the console by themselves: items, points of the status, latency, forms, sessions and static files."""

from __future__ import annotations

import asyncio
import doctest
import hashlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.console import api_client, api_latency, security, words
from deploy.console.api_client import ApiClient, ApiRefusalError
from deploy.console.api_latency import buckets_of
from deploy.console.catalogue import ItemMirror
from deploy.console.history import SERIES, StatusHistory
from deploy.console.screens.ask import request_of
from deploy.console.screens.dead_letters import DeadLetter
from deploy.console.screens.user import visits_of
from deploy.console.security import VisitorSessions
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord

ROOT = Path(__file__).resolve().parents[3]
STATIC = ROOT / "deploy" / "console" / "static"


@pytest.mark.parametrize("module", [api_client, api_latency, security, words], ids=lambda module: module.__name__)
def test_examples_of_docstrings_hold(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


# --- items --------------------------------------------------------------------------------------------------------


def item(item_id: str, title: str, *, embedder: str | None = "e", **catalogue: Any) -> ItemRecord:
    fields = {"title": title, **catalogue}
    return ItemRecord(item_id, 1, fields, None, (), embedder, None, None, None)


@given(st.lists(st.text("abc ", max_size=6), max_size=12), st.text("abc ", max_size=4))
def test_a_search_finds_what_a_look_at_every_item_finds(titles: list[str], text: str) -> None:
    mirror = ItemMirror(MemoryStore())
    mirror.apply([item(f"i{number}", title) for number, title in enumerate(titles)])
    found, total = mirror.search(text, "any", 100)
    expected = {f"i{n}" for n, title in enumerate(titles) if all(word in f"{title} i{n}" for word in text.split())}
    assert {each.item_id for each in found} == expected and total == len(expected)


def test_items_have_states_and_withdrawn_ones_are_forgotten() -> None:
    mirror = ItemMirror(MemoryStore())
    mirror.apply([item("a", "Lamp"), item("b", "LAMP two", available=False), item("c", "Chair", embedder=None)])
    assert mirror.counts() == {"any": 3, "listed": 1, "unavailable": 1, "waiting": 1}
    assert [each.item_id for each in mirror.search("lamp", "any", 9)[0]] == ["b", "a"]
    assert [each.item_id for each in mirror.search("lamp", "listed", 9)[0]] == ["a"]
    assert mirror.search("", "any", 2)[1] == 3
    mirror.apply([ItemRecord("a", 2, None, None, (), "e", None, None, None)])
    assert mirror.get("a") is None and mirror.title("a") == "a" and mirror.title("c") == "Chair"
    mirror.reset({"c"})
    assert len(mirror) == 1


CHANGE = st.tuples(st.sampled_from("abcde"), st.sampled_from(["listed", "unavailable", "waiting", "withdrawn"]))


@given(st.lists(st.one_of(CHANGE, st.frozensets(st.sampled_from("abcde"))), max_size=30))
def test_counts_and_the_latest_changes_are_those_of_a_look_at_every_item(
    steps: list[tuple[str, str] | frozenset[str]],
) -> None:
    mirror, states = ItemMirror(MemoryStore()), dict[str, str]()
    for step in steps:
        if isinstance(step, frozenset):
            mirror.reset(step)
            states = {item_id: state for item_id, state in states.items() if item_id in step}
            continue
        item_id, state = step
        states.pop(item_id, None)
        if state == "withdrawn":
            mirror.apply([ItemRecord(item_id, 2, None, None, (), "e", None, None, None)])
            continue
        states[item_id] = state  # at the end: it changed last
        embedder = None if state == "waiting" else "e"
        mirror.apply([item(item_id, "", embedder=embedder, available=state != "unavailable")])
    for state, count in mirror.counts().items():
        expected = [item_id for item_id, own in states.items() if state in ("any", own)][::-1]
        found, total = mirror.search("", state, 3)
        assert ([each.item_id for each in found], total, count) == (expected[:3], len(expected), len(expected))


# --- the status ---------------------------------------------------------------------------------------------------


def status(personal: int, **more: Any) -> dict[str, Any]:
    topics = {"clickstream": {"lag": 3}, "users": {"lag": 4}}
    return {
        "events_per_s": 5.0,
        "freshness_ms": {"p50": 1.0, "p99": 2.0},
        "topics": topics,
        **more,
        "counters": {"personal": personal},
    }


def test_points_have_rates_between_two_looks_and_none_below_zero() -> None:
    clock = iter([10.0, 12.0, 13.0])
    history = StatusHistory(ApiClient("http://127.0.0.1:1"), lambda: next(clock))
    for personal in (100, 120, 5):  # the last one after a restart
        history.take(status(personal))
    columns = history.columns()
    assert list(columns) == list(SERIES)
    assert columns["personal"] == [None, 10.0, 0.0] and columns["answers_per_s"] == [None, 10.0, 0.0]
    assert columns["lag"] == [7, 7, 7] and history.number == 3


def test_a_quarter_of_an_hour_is_kept() -> None:
    history = StatusHistory(ApiClient("http://127.0.0.1:1"))
    for _ in range(2_000):
        history.take(status(0))
    assert {len(column) for column in history.columns().values()} == {900}


def answering(*statuses: int) -> tuple[ApiClient, list[httpx.Request]]:
    """A client of an API that answers with these, one after the other."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(statuses[min(len(asked), len(statuses)) - 1], json=status(0))

    return ApiClient("http://api", "own-key", httpx.MockTransport(answer)), asked


def test_an_api_with_keys_is_not_open_and_is_asked_with_the_consoles_own() -> None:
    api, asked = answering(401, 200)
    history = StatusHistory(api)
    asyncio.run(history.look())
    assert not history.is_open and history.trouble == "" and history.number == 1
    assert [request.headers.get("x-api-key") for request in asked] == [None, "own-key"]


def test_an_api_that_is_away_is_said_and_asked_again() -> None:
    async def two_looks() -> StatusHistory:
        history = StatusHistory(ApiClient("http://127.0.0.1:1"))
        await history.look()
        assert "does not answer" in history.trouble and history.status is None
        await history.look()
        return history

    assert asyncio.run(two_looks()).number == 0


def test_what_the_api_refuses_comes_with_its_reasons() -> None:
    problem = {"detail": "1 of 1 record is refused", "errors": [{"field": "kind", "reason": "unknown"}]}
    transport = httpx.MockTransport(lambda _: httpx.Response(400, json=problem))

    async def call() -> None:
        await ApiClient("http://api", transport=transport).call("POST", "/v1/events", body={})

    with pytest.raises(ApiRefusalError, match="refused") as caught:
        asyncio.run(call())
    assert caught.value.errors == problem["errors"] and caught.value.status == 400


def test_buckets_are_those_of_lists_alone() -> None:
    line = 'perseid_api_request_seconds_bucket{{method="{}",route="{}",status="200",le="{}"}} {}\n'
    text = "# TYPE perseid_api_request_seconds histogram\n" + "".join(
        line.format(*row)
        for row in (
            ("GET", "/v1/recommendations/{user_id}", "0.001", 3),
            ("POST", "/v1/recommendations", "0.001", 4),
            ("GET", "/v1/status", "0.001", 100),
            ("POST", "/v1/recommendations", "+Inf", 9),
        )
    )
    assert buckets_of(text) == {0.001: 7.0, float("inf"): 9.0}


# --- forms --------------------------------------------------------------------------------------------------------


def wanted(**fields: str) -> dict[str, str]:
    names = ("count", "slot", "location", "weather", "category", "most", "filter", "include_seen")
    return {**dict.fromkeys(names, ""), **fields}


def test_a_form_becomes_a_request() -> None:
    usual = {"count": 10, "slot": None, "location": None, "include_seen": False, "model": None}
    assert request_of(wanted()) == usual
    found = request_of(wanted(category="Fans", most="20", filter='{"field": "brand", "in": ["a"]}', weather="rain"))
    category, price, brand = found["filter"]["and"]
    assert category == {"field": "category", "in": ["Fans"]} and price == {"field": "price", "lte": 20.0}
    assert brand == {"field": "brand", "in": ["a"]} and found["context"]["weather"]["condition"] == "rain"
    for bad in ({"count": "x"}, {"most": "cheap"}, {"filter": "{"}):
        with pytest.raises(ValueError):
            request_of(wanted(**bad))


def test_dead_letters_of_one_fault_are_one_group() -> None:
    def gist(reason: str) -> str:
        return DeadLetter(0, 0, "clickstream", reason, "ts_ms", "", 0, 0, "", True, "").gist

    assert gist("1795993853 looks like seconds") == gist("17.5 looks like seconds") == "… looks like seconds"
    assert gist("expected view, got 'veiw'") == gist("expected view, got 'x y'")
    assert gist("m2 is no unit") == "m2 is no unit"


def test_visits_end_with_a_long_pause() -> None:
    minutes = [100, 95, 60, 59, 0]
    found = visits_of([{"ts_ms": minute * 60_000} for minute in minutes])
    assert [[event["ts_ms"] // 60_000 for event in visit] for visit in found] == [[100, 95], [60, 59], [0]]
    assert visits_of([]) == []


# --- sessions -----------------------------------------------------------------------------------------------------


def test_a_session_ends_after_its_time_and_many_do_not_fill_memory() -> None:
    now = [0.0]
    sessions = VisitorSessions(lambda: now[0])
    first = sessions.sign_in("key")
    assert sessions.key(first) == "key" and sessions.key("another") == ""
    now[0] = 12 * 3600 + 1
    assert sessions.key(first) == ""
    many = [sessions.sign_in(f"key {number}") for number in range(1_500)]
    assert sessions.key(many[0]) == "" and sessions.key(many[-1]) == "key 1499"


def test_tokens_belong_to_one_session_of_one_process() -> None:
    one, other = VisitorSessions(), VisitorSessions()
    session = one.new()
    assert one.is_token(session, one.token(session))
    assert not one.is_token(session, one.token(one.new())) and not other.is_token(session, one.token(session))
    assert not one.is_token("", one.token("")) and not one.is_token(session, "schlüssel")
    for cookie in (None, "", "x", "0" * 31, "0" * 32 + "\n", "../" + "0" * 32):
        assert one.known(cookie) == ""
    assert one.known(session) == session


# --- files --------------------------------------------------------------------------------------------------------


def test_scripts_that_are_not_ours_are_those_that_are_named_with_their_licences() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \|.*\]\(([^)]+)\) \| ([0-9a-f]{64}) \|$", (STATIC / "vendor/README.md").read_text(), re.M
    )
    assert len(rows) == 3
    for name, licence, digest in rows:
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest
        assert (STATIC / "vendor" / licence).stat().st_size > 300
    named = {"README.md", *(row[0] for row in rows), *(row[1] for row in rows)}
    assert {path.name for path in (STATIC / "vendor").iterdir()} == named


def test_an_installation_has_every_template_and_static_file(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for folder in ("templates", "static"):
        here, there = ROOT / "deploy/console" / folder, tmp_path / "deploy/console" / folder
        names = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
        assert len(names) > 4
        assert {path.relative_to(there) for path in there.rglob("*") if path.is_file()} == names
