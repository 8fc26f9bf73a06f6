"""The console over a whole small deployment: who may see and change what, and what every page holds to."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvicorn

from deploy.console.pages import SCREENS, Console
from deploy.console.security import COOKIE, POLICY
from deploy.console.server import ConsoleServer, open_console
from deploy.runtime.process import open_store
from deploy.runtime.producer import EventProducer
from deploy.servers.ports import free_port
from deploy.setting_values import kinds_text
from deploy.settings import load
from streams.events import CLICKSTREAM
from tests.compatibility.world import PARTITIONS, RULES
from tests.support.counted_results import TODAY, day, write_counts
from tests.support.running_api import PREFIX, RunningDeployment, running_deployment

pytestmark = pytest.mark.servers

ADMIN, READ = "k-admin-0123456789", "k-read-0123456789"
KEYS = {ADMIN: frozenset({"read", "write", "admin"}), READ: frozenset({"read"})}
PATHS = [path for path, _ in SCREENS]
HOSTILE = "<script>alert(1)</script>"
Deployment = RunningDeployment


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with API keys."""
    with running_deployment(tmp_path_factory.mktemp("guarded"), KEYS) as found:
        yield found


class Visitor(httpx.Client):
    """A browser, as far as httpx is one."""

    console: Console


@contextmanager
def visiting(deployment: Deployment, tmp_path: Path, **more: str) -> Iterator[Visitor]:
    """A visitor in front of a console of the deployment, which runs in a thread."""
    variables = {
        "PERSEID_KAFKA": deployment.kafka,
        "PERSEID_REDIS": deployment.redis,
        "PERSEID_PREFIX": PREFIX,
        "PERSEID_PARTITIONS": str(PARTITIONS),
        "PERSEID_KINDS": kinds_text(RULES.kinds),
        "PERSEID_CONSOLE_API": deployment.api,
        "PERSEID_STATE": str(tmp_path),
        **more,
    }
    settings, port, running = load(variables), free_port(), Future[tuple[ConsoleServer, Console]]()

    async def serve() -> None:
        store = open_store(settings)
        app = open_console(settings, store)
        server = ConsoleServer(uvicorn.Config(app, port=port, log_config=None, access_log=False))
        running.set_result((server, app.state.console))
        await server.serve()
        await store.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), name="console")
    thread.start()
    server, console = running.result(20)
    try:
        with Visitor(base_url=f"http://127.0.0.1:{port}", timeout=30) as visitor:
            visitor.console = console
            until(lambda: server.started and console.items.is_loaded)
            yield visitor
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


def until(check: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def token(client: Visitor, path: str = "/sign-in") -> str:
    """The token of a page, whose cookie the client keeps."""
    found = re.search(r'"X-CSRF-Token": "([0-9a-f]{64})"', client.get(path).text)
    assert found is not None
    return found[1]


def sign_in(client: Visitor, key: str) -> httpx.Response:
    return client.post("/sign-in", data={"csrf": token(client), "key": key})


def an_event(client: Visitor, user: str, **more: str) -> httpx.Response:
    fields = {"csrf": token(client), "user": user, "item": "i3", "kind": "view", "before": "", **more}
    return client.post("/visit/click", data=fields)


def events_of(deployment: Deployment, user: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{deployment.api}/v1/users/{user}", headers={"X-API-Key": ADMIN})
    events: list[dict[str, Any]] = answer.json()["events"]
    return events


def a_user() -> str:
    return f"visitor-{uuid.uuid4().hex[:8]}"


# --- who may do what ----------------------------------------------------------------------------------------------


def test_without_any_key_every_screen_asks_for_one(guarded: Deployment, tmp_path: Path) -> None:
    with visiting(guarded, tmp_path) as client:
        for path in [*PATHS, "/pulse", "/events/stream", "/now/columns", "/dead-letters/one?partition=0&offset=0"]:
            answer = client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in"), path
        part = client.get("/now/tables", headers={"HX-Request": "true"})
        assert "A key is needed" in part.text and "clickstream" not in part.text


def test_with_a_key_of_its_own_it_is_read_only_for_everybody(guarded: Deployment, tmp_path: Path) -> None:
    with visiting(guarded, tmp_path, PERSEID_CONSOLE_API_KEY=ADMIN) as client:
        for path in PATHS:
            answer = client.get(path)
            assert answer.status_code == 200 and "read-only" in answer.text, path
            assert ADMIN not in answer.text
        user = a_user()
        answer = an_event(client, user)
        assert answer.status_code == 403 and "Read-only" in answer.text
        assert events_of(guarded, user) == []
        page = client.get("/", params={"user": "u0"}).text
        assert page.count("disabled") >= page.count('action="/visit/click"') > 0


def test_a_key_of_scope_admin_may_change_things_until_signed_out(guarded: Deployment, tmp_path: Path) -> None:
    with visiting(guarded, tmp_path) as client:
        before = client.cookies.get(COOKIE)
        answer = sign_in(client, ADMIN)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert client.cookies[COOKIE] != before, "who knew the session before gains nothing"
        assert {"httponly", "samesite=lax"} <= {
            each.strip().lower() for each in answer.headers["set-cookie"].split(";")
        }
        user = a_user()
        changed = an_event(client, user)
        assert changed.status_code == 200 and "from the click to the list that knows it" in changed.text
        assert [event["item_id"] for event in events_of(guarded, user)] == ["i3"]
        assert ADMIN not in changed.text and ADMIN not in client.get("/").text
        client.post("/sign-out", data={"csrf": token(client, "/")})
        assert client.get("/").status_code == 303


@pytest.mark.parametrize("key", ["", "k-nobody-012345678", READ, "schlüssel", "a\nb"])
def test_another_key_signs_nobody_in(guarded: Deployment, tmp_path: Path, key: str) -> None:
    with visiting(guarded, tmp_path) as client:
        answer = sign_in(client, key)
        assert answer.status_code == 403 and "does not know this key" in answer.text
        assert client.get("/").status_code == 303


def test_a_form_of_another_page_changes_nothing(guarded: Deployment, tmp_path: Path) -> None:
    with visiting(guarded, tmp_path) as client:
        sign_in(client, ADMIN)
        user, good = a_user(), token(client, "/")
        fields = {"user": user, "item": "i3", "kind": "view"}
        for sent, headers in (
            ({}, {}),
            ({"csrf": "0" * 64}, {}),
            ({"csrf": client.console.sessions.token("f" * 32)}, {}),
            ({"csrf": good}, {"Origin": "http://evil.example"}),
            ({"csrf": good}, {"Origin": "null"}),
        ):
            answer = client.post("/visit/click", data={**fields, **sent}, headers=headers)
            assert answer.status_code == 403, (sent, headers)
        with httpx.Client(base_url=client.base_url) as stranger:  # has the token, and not the cookie
            assert stranger.post("/visit/click", data={**fields, "csrf": good}).status_code == 403
        assert events_of(guarded, user) == []


def test_only_known_names_of_hosts_are_answered(guarded: Deployment, tmp_path: Path) -> None:
    with visiting(guarded, tmp_path, PERSEID_CONSOLE_HOSTS="shop.example, b.example") as client:
        for host in ("localhost:8600", "127.0.0.1", "[::1]:80", "SHOP.example", "b.example:443"):
            assert client.get("/sign-in", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:8600"):
            answer = client.get("/sign-in", headers={"Host": host})
            assert answer.status_code == 421 and "PERSEID_CONSOLE_HOSTS" in answer.text, host
        assert client.get("/healthz", headers={"Host": "10.0.0.7:8600"}).status_code == 200


def test_signing_in_leads_nowhere_else(guarded: Deployment, tmp_path: Path) -> None:
    with visiting(guarded, tmp_path) as client:
        fields = {"csrf": token(client), "key": ADMIN, "next": "//evil.example"}
        answer = client.post("/sign-in?next=https://evil.example", data=fields)
        assert answer.headers["location"] == "/"


# --- what every page holds to -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(guarded: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """A visitor who has signed in."""
    with visiting(guarded, tmp_path_factory.mktemp("reader")) as client:
        sign_in(client, ADMIN)
        yield client


PAGES = [
    *PATHS,
    "/sign-in",
    "/?user=u0",
    "/ask?user=u0&beside=list: general",
    "/why?user=u0&item=i1",
    "/user?user=u0",
    "/item?item=i1",
    "/results?by=slot&by=day",
    "/nowhere",
]


def test_why_not_names_the_rule_or_the_place(reader: Visitor) -> None:
    def asked(**fields: str) -> str:
        text = reader.get("/why", params={"user": "u0", **fields}).text
        return " ".join(re.sub("<[^>]+>", " ", text.partition('id="answer"')[2]).split())

    assert "1 rule removes it: unknown" in asked(item="unheard of")
    seen = asked(item="i1", category="other")
    assert "2 rules remove it: filter : filter.in does not let it pass seen :" in seen
    assert "It is on the list, at place" in asked(item="i5", count="12")
    lacking = asked(item="i9", count="1")
    assert "Nothing removes it. It is at place" in lacking or "It is on the list" in lacking
    assert "the filter is no JSON" in asked(item="i1", filter="{")
    assert "a whole number from 1 to 200" in asked(item="i1", count="201")


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_nothing_inline_and_nothing_from_elsewhere(reader: Visitor, path: str) -> None:
    answer = reader.get(path)
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert re.findall(r"<script(?![^>]*\ssrc=\"/static/)", answer.text) == []
    assert re.findall(r"\sstyle=|<style|\son\w+=|javascript:|hx-on", answer.text) == []
    assert re.findall(r"(?:src|href|action|hx-get|hx-post)=\"(?!/|#)[^\"]*", answer.text) == []
    assert answer.text.count("<h1>") == 1 or answer.status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/?user={}",
        "/ask?user={}",
        "/why?user={0}&item={0}",
        "/user?user={}",
        "/catalogue?text={}",
        "/context?location={}",
        "/rules?scenario={}",
    ],
)
def test_what_others_wrote_is_shown_and_never_run(reader: Visitor, path: str) -> None:
    text = reader.get(path.format(HOSTILE)).text
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


@pytest.mark.parametrize(
    "path",
    [
        "/item?item=no-such-item",
        "/results?since=yesterday",
        "/events/record?topic=nothing",
        "/events/change",
        "/ask?user=u0&count=x",
    ],
)
def test_what_is_wrong_is_said(reader: Visitor, path: str) -> None:
    answer = reader.get(path)
    assert answer.status_code in (200, 400, 404, 503) and 'role="alert"' in answer.text


def test_results_stand_by_what_is_asked_with_the_arms_of_an_experiment(reader: Visitor, guarded: Deployment) -> None:
    def shown(**query: Any) -> str:
        text = reader.get("/results", params=query).text.partition('id="results"')[2]
        return " ".join(re.sub("<[^>]+>", " ", text).split())

    assert "No list of these days has been counted" in shown() and "perseid attribution" in shown()

    async def write() -> None:
        store = open_store(load({"PERSEID_REDIS": guarded.redis, "PERSEID_PREFIX": PREFIX}))
        await write_counts(store)
        await store.close()

    asyncio.run(write())
    days = {"since": day(TODAY - 6), "until": day(TODAY)}
    rows = shown(**days)
    assert "7 records not in yet." in rows and "lists 32 clicked lists 6.25 %" in rows
    assert "home trending 8 25.00 % 5 0 0.00 % 0.00" in rows and "– recommendations 24 0.00 % 0 1 4.17 % 12.99" in rows
    assert "Experiment e1" in rows and "challenger 4" in rows and "3 user days" in rows
    assert "next 40 12.50 % 5" in shown(**days, by="slot")
    assert "r1 m1 8" in shown(**days, by=["model", "stage", "none"])


def test_a_form_that_is_too_large_is_refused(reader: Visitor) -> None:
    answer = reader.post("/context/set", content=b"record=" + b"x" * (3 << 20))
    assert answer.status_code == 413
    many = "&".join(f"f{number}=1" for number in range(100))
    assert reader.post("/context/set", content=many).status_code == 413


# --- screens that change something --------------------------------------------------------------------------------


def send(deployment: Deployment, topic: str, key: str, value: bytes) -> None:
    settings = load({"PERSEID_KAFKA": deployment.kafka})
    producer = EventProducer(settings.kafka_config())
    future = producer.enqueue(topic, key.encode(), value)
    assert future is not None
    future.result(10)
    producer.close()


def test_a_dead_letter_is_sent_again_when_it_is_put_right(reader: Visitor, guarded: Deployment) -> None:
    user = a_user()
    event = {"event_id": user, "user_id": user, "item_id": "i2", "kind": "veiw", "ts_ms": time.time_ns() // 1_000_000}
    send(guarded, CLICKSTREAM, user, orjson.dumps(event))
    found: list[Any] = []

    def is_there() -> bool:
        found[:] = reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == user)
        return bool(found)

    until(is_there)
    record = found[0].record
    place = {"partition": str(record.partition), "offset": str(record.offset)}
    assert "veiw" in reader.get("/dead-letters/one", params=place).text
    fields = {"csrf": token(reader, "/"), "topic": CLICKSTREAM, **place}
    refused = reader.post("/dead-letters/send", data={**fields, "value": orjson.dumps(event).decode()})
    assert refused.status_code == 400 and "kind" in refused.text
    for value in ("{", "[]", "null"):
        assert reader.post("/dead-letters/send", data={**fields, "value": value}).status_code == 400
    value = orjson.dumps({**event, "kind": "view"}).decode()
    assert "Sent again" in reader.post("/dead-letters/send", data={**fields, "value": value}).text
    until(lambda: [each["kind"] for each in events_of(guarded, user)] == ["view"])
    assert "sent again" in reader.get("/dead-letters").text


def test_reasons_and_values_of_dead_letters_are_shown_and_never_run(reader: Visitor, guarded: Deployment) -> None:
    user = a_user()
    event = {"event_id": HOSTILE, "user_id": user, "item_id": HOSTILE, "kind": HOSTILE, "ts_ms": 1_790_000_000_000}
    send(guarded, CLICKSTREAM, user, orjson.dumps(event))
    until(lambda: reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == user) != [])
    (seen,) = reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == user)
    place = {"partition": str(seen.record.partition), "offset": str(seen.record.offset)}
    for path in ("/dead-letters", "/events"):
        text = reader.get(path).text
        assert "<script>alert" not in text and "&lt;script&gt;alert" in text, path
    text = reader.get("/dead-letters/one", params=place).text
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_a_long_dead_letter_is_read_from_kafka_again(reader: Visitor, guarded: Deployment) -> None:
    user = a_user()
    event = {"event_id": user, "user_id": user, "item_id": "i2", "kind": "veiw", "note": "n" * 60_000 + "END"}
    send(guarded, CLICKSTREAM, user, orjson.dumps(event))
    until(lambda: reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == user) != [])
    (seen,) = reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == user)
    assert seen.is_cut
    place = {"partition": str(seen.record.partition), "offset": str(seen.record.offset)}
    assert "END" in reader.get("/dead-letters/one", params=place).text


def test_an_item_is_hidden_and_shown_again(reader: Visitor) -> None:
    fields = {"csrf": token(reader, "/"), "item": "i5"}
    hidden = reader.post("/catalogue/available", data={**fields, "available": "no"})
    assert "Show again" in hidden.text
    assert "i5" in reader.get("/catalogue", params={"state": "unavailable"}).text
    assert "Hide" in reader.post("/catalogue/available", data={**fields, "available": "yes"}).text


def test_a_user_is_forgotten_when_the_id_was_typed_again(reader: Visitor, guarded: Deployment) -> None:
    user = a_user()
    an_event(reader, user)
    fields = {"csrf": token(reader, "/"), "user": user}
    assert reader.post("/user/forget", data={**fields, "again": "somebody"}).status_code == 400
    assert len(events_of(guarded, user)) == 1
    assert "is forgotten" in reader.post("/user/forget", data={**fields, "again": user}).text
    until(lambda: events_of(guarded, user) == [])


def test_weather_is_set_and_put_back(reader: Visitor) -> None:
    fields = {"csrf": token(reader, "/"), "user": "u0", "location": "oslo"}
    assert "from the weather to the list" in reader.post("/visit/weather", data={**fields, "weather": "rain"}).text
    assert "rain" in reader.get("/context").text
    assert reader.post("/visit/weather", data={**fields, "weather": "before"}).status_code == 200
    until(lambda: "9.0" not in reader.get("/context", params={"location": "oslo"}).text.partition("Latest records")[0])
    assert reader.post("/visit/weather", data={**fields, "weather": "hail"}).status_code == 400


def test_a_rule_is_previewed_published_undone_and_removed(reader: Visitor) -> None:
    scenario, rule = a_user(), {"caps": {"subclass": 1}, "exclude": ["<b>"], "other": 1}
    fields = {
        "csrf": token(reader, "/rules"),
        "scenario": scenario,
        "rule": orjson.dumps(rule).decode(),
        "users": "u0 x",
    }

    def versions() -> list[int]:
        page = reader.get("/rules", params={"scenario": scenario}).text
        row = rf'{scenario}</a></td><td>yes</td><td class="n">([0-9]+)'
        return [int(found) for found in re.findall(row, page)]

    preview = reader.post("/rules/preview", data={**fields, "users": "u0 x a b c d"}).text
    assert "Unknown fields are left out: other" in preview and "at most: d not" in preview
    assert "Preview for u0" in preview and "Preview for x" in preview and "no rule is in force" in preview
    assert versions() == []
    said = reader.post("/rules/publish", data=fields).text
    assert f"Published: {scenario} is at version" in said and "left out: other" in said
    until(lambda: len(versions()) == 1)
    page = reader.get("/rules", params={"scenario": scenario}).text
    assert "caps, exclude" in page and "&lt;b&gt;" in page and "Remove" in page
    for change, count in (("undo", 0), ("undo", 1), ("remove", 0), ("undo", 1)):
        assert reader.post(f"/rules/{change}", data=fields).status_code == 200
        until(lambda count=count: len(versions()) == count)
    for wrong in ({**fields, "rule": "[]"}, {**fields, "rule": "{"}, {**fields, "scenario": ""}):
        assert reader.post("/rules/publish", data=wrong).status_code == 400
    assert reader.post("/rules/undo", data={**fields, "scenario": "nobody's"}).status_code == 400


def test_undo_knows_what_was_published_a_moment_ago(reader: Visitor) -> None:
    scenario = a_user()
    fields = {"csrf": token(reader, "/rules"), "scenario": scenario}
    for diversity in (0.1, 0.2, 0.3):
        rule = orjson.dumps({"diversity": diversity}).decode()
        assert reader.post("/rules/publish", data={**fields, "rule": rule}).status_code == 200
    assert reader.post("/rules/undo", data=fields).status_code == 200
    until(lambda: "&#34;diversity&#34;: 0.2" in reader.get("/rules", params={"scenario": scenario}).text)


DEEP = '{"and":[' * 150 + "]}" * 150
NESTED = '{"a":' * 400 + "1" + "}" * 400


def test_what_is_nested_too_deep_is_refused_and_shown(reader: Visitor, guarded: Deployment) -> None:
    fields = {"csrf": token(reader, "/"), "scenario": "s", "users": "u0", "location": "x", "minutes": "1"}
    for path in ("/ask", "/why"):
        asked = {"user": "u0", "item": "i1", "filter": DEEP}
        assert "nested" in reader.get(path, params=asked).text.partition('role="alert"')[2]
    for path, name in (("/rules/preview", "rule"), ("/rules/publish", "rule"), ("/context/set", "record")):
        assert reader.post(path, data={**fields, name: NESTED}).status_code == 400, path
    key = a_user()
    send(guarded, CLICKSTREAM, key, NESTED.encode())
    until(lambda: reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == key))
    (seen,) = reader.console.feed.newest("dead-letters", 1, lambda seen: seen.key == key)
    place = {"partition": str(seen.record.partition), "offset": str(seen.record.offset)}
    shown = reader.get("/dead-letters/one", params=place)
    assert shown.status_code == 200 and "&#34;a&#34;:" in shown.text
    sent = {**fields, **place, "topic": CLICKSTREAM, "value": NESTED}
    assert reader.post("/dead-letters/send", data=sent).status_code == 400
    letters = reader.get("/dead-letters").text
    assert f'<a href="/dead-letters/one?partition={place["partition"]}' in letters  # for those without scripts


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/ask?user=u0&count=abc", "count: expected a whole number from 1 to 200, got &#39;abc&#39;"),
        ("/ask?user=u0&count=0", "count: expected a whole number from 1 to 200"),
        ("/ask?user=u0&most=abc", "price up to: expected a number"),
        ("/why?user=u0&item=i1&most=nan", "price up to: expected a number"),
        ("/ask?user=u0&slot=none", "slot"),
        ("/dead-letters/one?partition=a&offset=1", "partition: expected a whole number"),
        ("/events/record?topic=clickstream", "partition: expected a whole number"),
    ],
)
def test_what_is_no_number_is_said_in_our_words_and_once(reader: Visitor, path: str, said: str) -> None:
    text = reader.get(path).text.partition("<main")[2]
    alert = re.sub(r"\s+", " ", text[text.index('role="alert"') :])
    assert said in alert and alert.partition("</p>")[0].count("expected") <= 1


@pytest.mark.parametrize("minutes", ["0", "-1", "999999999999", "x", ""])
def test_a_record_holds_for_some_minutes(reader: Visitor, minutes: str) -> None:
    fields = {"csrf": token(reader, "/"), "location": "x", "record": "{}", "minutes": minutes}
    answer = reader.post("/context/set", data=fields)
    assert answer.status_code == 400 and "minutes: expected a whole number from 1" in answer.text


def test_a_refusal_for_a_script_stands_inside_what_was_to_be_replaced(reader: Visitor) -> None:
    asked = {"since": "2026-06-02", "until": "2026-06-01"}
    answer = reader.get("/results", params=asked, headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-reselect"], answer.headers["hx-reswap"]) == (
        200, ".alert", "innerHTML"
    )  # fmt: skip
    assert answer.headers["hx-push-url"] == "false" and 'class="alert"' in answer.text
    assert reader.get("/results", params=asked).status_code == 400
    assert "hx-reselect" not in reader.get("/results", headers={"HX-Request": "true"}).headers


def test_models_say_what_is_refused(reader: Visitor) -> None:
    page = reader.get("/models").text
    assert "The registry holds no model" in page
    fields = {"csrf": token(reader, "/"), "step": "promote", "version": "m-00000000"}
    refused = reader.post("/models/change", data=fields)
    assert refused.status_code == 400 and "perseid" in refused.text
    assert reader.post("/models/change", data={**fields, "step": "explode"}).status_code == 400


def test_streams_tell_of_new_records_and_numbers(reader: Visitor, guarded: Deployment) -> None:
    user = a_user()
    began = time.monotonic()
    with reader.stream("GET", "/events/stream", params={"user": user}) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "retry: 2000"
        httpx.post(
            f"{guarded.api}/v1/events",
            headers={"X-API-Key": ADMIN},
            json={
                "event_id": user,
                "user_id": user,
                "item_id": "i1",
                "kind": "view",
                "ts_ms": time.time_ns() // 1_000_000,
            },
        ).raise_for_status()
        data = next(line for line in lines if line.startswith("data: "))
        assert user in data and time.monotonic() - began < 10
