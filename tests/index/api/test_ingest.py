"""Posting records and forgetting: the same validation as the consumers, order, homes, acknowledgement, refusals."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from deploy.roles.api import checked_record
from index.api.admission import MAX_BODY_BYTES, AdmissionController, AdmissionMiddleware
from index.api.errors import install_handlers
from index.api.ingest import Ingest, ingest_router
from index.api.metrics import ApiMetrics
from index.api.schemas.records import BODIES
from index.api.schemas.shapes import Problem
from index.api.schemas.state import PublishedAnswer
from index.api.settings import KafkaSide
from index.state.keys import partition_of
from streams.events import Rules
from tests.faults.malformed import GOOD, SENSELESS

NOW_MS = 1_760_000_000_000
RULES = Rules()
PATHS = {
    "clickstream": "/v1/events",
    "catalog": "/v1/items",
    "context": "/v1/context",
    "rules": "/v1/rules",
    "users": "/v1/users",
}


def example_of(topic: str) -> dict[str, Any]:
    """The documented record of a topic."""
    example: dict[str, Any] = BODIES[topic].model_json_schema()["examples"][0]
    return example


@dataclass
class RecordingLog:
    """Kafka's part: a log per topic and partition; refuses keys named `too-large`, loses keys named `lost`."""

    records: list[tuple[str, bytes, bytes | None, int | None]] = field(default_factory=list)

    async def publish(self, topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
        if key == b"lost":
            raise ConnectionError("no acknowledgement")
        if key == b"too-large":
            raise ValueError("a record of 2000000 bytes is too large")
        self.records.append((topic, key, value, partition))
        return partition or 0, len(self.records) - 1


@dataclass
class Site:
    """The posting calls alone, without an index."""

    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    partitions: int | None = 8
    log: RecordingLog = field(default_factory=RecordingLog)

    def __post_init__(self) -> None:
        self.metrics = ApiMetrics(CollectorRegistry())
        kafka = KafkaSide(partial(checked_record, RULES, lambda: NOW_MS), self.log.publish, lambda *_: None)
        self.app = FastAPI()
        install_handlers(self.app)
        self.app.add_middleware(AdmissionMiddleware, metrics=self.metrics, in_flight=4, turns=AdmissionController(4))
        ingest = Ingest(kafka, lambda: self.partitions, lambda: NOW_MS, self.metrics)
        self.app.include_router(ingest_router(ingest, self.keys, self.metrics))

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def scene() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                return await client.request(method, path, **options)

        return asyncio.run(scene())

    def post(self, topic: str, body: Any, **options: Any) -> httpx.Response:
        return self.call("POST", PATHS[topic], json=body, **options)


def click(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {**example_of("clickstream"), "event_id": f"e{number}", **changes}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    Problem.model_validate(found)
    assert found["status"] == status
    return found


@pytest.mark.parametrize("topic", BODIES)
def test_the_documented_example_of_each_topic_is_accepted(topic: str) -> None:
    site = Site()
    response = site.post(topic, example_of(topic))
    assert response.status_code == 202, response.text
    PublishedAnswer.model_validate(response.json(), strict=True)
    ((published_topic, _, value, partition),) = site.log.records
    assert published_topic == topic and value is not None
    assert orjson.loads(value) == example_of(topic)
    by_user = topic in ("clickstream", "users")
    assert partition == (partition_of("u42", 8) if by_user else None)
    assert response.json() == {"records": [{"topic": topic, "partition": partition or 0, "offset": 0}]}


def test_a_batch_is_published_in_its_order_each_to_its_users_home() -> None:
    site = Site()
    events = [click(number, user_id=f"u{number % 3}") for number in range(50)]
    response = site.post("clickstream", events)
    assert response.status_code == 202
    assert [orjson.loads(value or b"")["event_id"] for _, _, value, _ in site.log.records] == [
        event["event_id"] for event in events
    ]
    assert {(key.decode(), partition) for _, key, _, partition in site.log.records} == {
        (f"u{number}", partition_of(f"u{number}", 8)) for number in range(3)
    }


def test_unknown_fields_are_accepted_published_and_named() -> None:
    site = Site()
    good = example_of("catalog")
    response = site.post("catalog", [good, {**good, "availble": False}, {**good, "pric": 1, "availble": True}])
    assert response.status_code == 202 and response.json()["ignored"] == ["availble", "pric"]
    PublishedAnswer.model_validate(response.json(), strict=True)
    assert orjson.loads(site.log.records[1][2] or b"")["availble"] is False, "producers may add their own"
    single = site.post("clickstream", click(weather={"t": 1}, **{f"{n}-" + "x" * 99: n for n in range(30)})).json()
    assert single["ignored"] == ["weather", *(f"{n}-{'x' * 99}"[:60] for n in range(19))]
    assert "ignored" not in site.post("catalog", good).json()


def test_one_bad_record_publishes_nothing_and_each_bad_one_is_named() -> None:
    site = Site()
    batch = [click(0), click(1, ts_ms="soon"), {"kind": "view"}, "text", click(4, kind="smell", location="a\n")]
    found = problem(site.post("clickstream", batch), 400)
    assert site.log.records == []
    assert found["detail"] == "4 of 5 records are refused; nothing was published" and found["refused"] == 4
    assert [(error["record"], error["field"]) for error in found["errors"]] == [
        *((1, "ts_ms"), (2, "ts_ms"), (2, "event_id"), (2, "user_id"), (2, "item_id"), (3, "value")),
        *((4, "kind"), (4, "location")),
    ]
    assert all(error["reason"] for error in found["errors"])


def test_of_a_large_batch_a_hundred_records_are_named_with_ten_fields_each() -> None:
    wrong = {"user_id": "u", "ts_ms": NOW_MS, "numeric": {f"n{n}": "x" for n in range(20)}}
    found = problem(Site().post("users", [wrong] * 1000), 400)
    assert found["refused"] == 1000 and len(found["errors"]) == 1000
    assert [(e["record"], e["field"]) for e in found["errors"][8:12]] == [
        *((0, "numeric.n8"), (0, "numeric.n9"), (1, "numeric.n0"), (1, "numeric.n1")),
    ]
    assert found["errors"][-1]["record"] == 99


def test_a_record_nested_too_deep_to_be_written_is_refused_as_a_whole() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    place = {"location": 3, "ts_ms": NOW_MS, "valid_until_ms": NOW_MS, "weather": {"t": deep}}
    (error,) = problem(Site().post("context", place), 400)["errors"]
    assert error["field"] == "value" and "not JSON" in error["reason"]


@pytest.mark.parametrize("case", range(len(SENSELESS)))
def test_what_is_of_the_right_type_and_yet_wrong_is_refused_with_its_reason(case: int) -> None:
    topic, change, field, reason = SENSELESS[case]
    site = Site()
    found = problem(site.post(topic, [GOOD[topic], {**GOOD[topic], **change}]), 400)
    assert found["errors"] == [{"record": 1, "field": field, "reason": reason}] and site.log.records == []


def test_a_time_in_another_unit_is_refused_with_the_unit_and_nothing_else_is_hidden() -> None:
    seconds = "1900000000 looks like seconds, expected milliseconds since the epoch"
    items = [
        {"item_id": "w0", "title": "Scarf", "starts_ms": 0, "ends_ms": 253_402_300_799_999, "ts_ms": NOW_MS},
        {"item_id": "w1", "title": "Advent calendar", "category": ["w"], "starts_ms": 1_900_000_000, "ts_ms": NOW_MS},
        {"item_id": "w2", "title": "Summer shirt", "category": "w", "ends_ms": 1_900_000_000, "ts_ms": NOW_MS},
        {"item_id": "w3", "title": "Winter shirt", "ends_ms": 1_900_000_000, "ts_ms": NOW_MS},
    ]
    site = Site()
    found = problem(site.post("catalog", items), 400)
    assert found["errors"] == [
        {"record": 1, "field": "starts_ms", "reason": seconds},
        {"record": 2, "field": "category", "reason": "expected a list of strings, got 'w'"},
        {"record": 2, "field": "ends_ms", "reason": seconds},
        {"record": 3, "field": "ends_ms", "reason": seconds},
    ]
    place = {"location": "berlin", "ts_ms": NOW_MS, "valid_until_ms": NOW_MS}
    contexts = [{**place, "valid_until_ms": 1_900_000_000}]
    contexts += [{**place, "promotions": [{"tag": "t", name: 1_900_000_000}]} for name in ("starts_ms", "ends_ms")]
    found = problem(site.post("context", contexts), 400)
    assert [error["field"] for error in found["errors"]] == [
        "valid_until_ms", "promotions[0].starts_ms", "promotions[0].ends_ms",
    ]  # fmt: skip
    assert {error["reason"] for error in found["errors"]} == {seconds}
    for topic, body in (("clickstream", click()), ("users", {"user_id": "u"})):
        found = problem(site.post(topic, {**body, "ts_ms": NOW_MS * 1000}), 400)
        assert found["errors"][0]["reason"].endswith("looks like microseconds, expected milliseconds since the epoch")
    assert site.log.records == [] and site.post("catalog", items[0]).status_code == 202


def test_labels_with_odd_spaces_are_taken_and_a_control_character_is_named() -> None:
    odd = [
        {"item_id": "s1", "title": "Garden chair", "category": ["Home\u00a0& Garden"], "ts_ms": NOW_MS},
        {"item_id": "s2", "title": "Green tea", "brand": "茶\u3000園", "ts_ms": NOW_MS},
    ]
    site = Site()
    assert site.post("catalog", odd).status_code == 202 and len(site.log.records) == 2
    found = problem(site.post("catalog", [*odd, {**odd[0], "brand": "a\x07"}, {**odd[0], "item_id": "a\u3000"}]), 400)
    assert found["errors"] == [
        {"record": 2, "field": "brand", "reason": "holds the control character U+0007"},
        {"record": 3, "field": "item_id", "reason": "holds U+3000, an id has no control or separator characters"},
    ]


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (0, 1, "1 of 1 record is refused; nothing was published"),
        (1, 1, "1 of 2 records is refused; nothing was published"),
        (0, 2, "2 of 2 records are refused; nothing was published"),
    ],
)
def test_how_many_are_refused_is_said_in_the_right_number(good: int, bad: int, said: str) -> None:
    records = [click(number) for number in range(good)] + [{"user_id": "u"}] * bad
    assert problem(Site().post("clickstream", records), 400)["detail"] == said


def test_forgetting_by_an_event_is_refused_because_it_needs_the_admin_scope() -> None:
    found = problem(Site().post("clickstream", click(kind="forget")), 400)
    assert found["errors"][0]["reason"] == "forget is for DELETE /v1/users/{user_id}"


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_one_to_a_thousand_records(count: int) -> None:
    site = Site()
    problem(site.post("clickstream", [click(number) for number in range(count)]), 400)
    assert site.log.records == []


def test_a_thousand_records_are_taken() -> None:
    site = Site()
    assert site.post("clickstream", [click(number) for number in range(1000)]).status_code == 202
    assert len(site.log.records) == 1000


def test_what_kafka_did_not_acknowledge_is_named_and_may_be_sent_again() -> None:
    response = Site().post("clickstream", [click(0), click(1, user_id="lost")])
    found = problem(response, 503)
    assert found["detail"] == "1 of 2 records was not acknowledged by Kafka; the others were"
    alone = problem(Site().post("clickstream", click(1, user_id="lost")), 503)
    assert alone["detail"] == "1 of 1 record was not acknowledged by Kafka"
    assert found["errors"] == [{"record": 1, "reason": "no acknowledgement"}]
    assert int(response.headers["retry-after"]) > 0


def test_a_record_that_kafka_never_takes_is_the_clients_fault() -> None:
    response = Site().post("catalog", {**example_of("catalog"), "item_id": "too-large"})
    assert "too large" in problem(response, 400)["errors"][0]["reason"]
    assert "retry-after" not in response.headers


def test_delete_publishes_a_forget_event_and_removes_the_profile() -> None:
    site = Site()
    response = site.call("DELETE", "/v1/users/u42")
    assert response.status_code == 202
    assert [record["topic"] for record in response.json()["records"]] == ["clickstream", "users"]
    (_, key, event, home), (topic, profile_key, nothing, profile_home) = site.log.records
    body = orjson.loads(event or b"")
    assert (key, body["user_id"], body["kind"], body["ts_ms"]) == (b"u42", "u42", "forget", NOW_MS)
    assert body["event_id"]
    assert (topic, profile_key, nothing) == ("users", b"u42", None)
    assert home == profile_home == partition_of("u42", 8)


def test_each_forget_has_an_event_id_of_its_own() -> None:
    site = Site()
    for _ in range(2):
        site.call("DELETE", "/v1/users/u42")
    ids = {orjson.loads(value)["event_id"] for topic, _, value, _ in site.log.records if value}
    assert len(ids) == 2


def test_users_with_slashes_and_other_signs_in_their_ids_can_be_forgotten() -> None:
    site = Site()
    assert site.call("DELETE", "/v1/users/team%2Fü%20x").status_code == 202
    assert site.log.records[0][1] == "team/ü x".encode()


@pytest.mark.parametrize("user_id", ["%00", "%20", "a%09b", "x" * 257, "ü" * 129])
def test_an_id_that_no_record_can_carry_is_refused(user_id: str) -> None:
    site = Site()
    problem(site.call("DELETE", f"/v1/users/{user_id}"), 400)
    assert site.log.records == []


def test_before_any_worker_has_started_the_home_of_a_user_is_unknown() -> None:
    site = Site(partitions=None)
    problem(site.post("clickstream", click()), 503)
    assert site.post("catalog", example_of("catalog")).status_code == 202


def test_a_form_or_text_body_is_refused_so_that_no_web_page_can_post_across_origins() -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", None):
        headers = {"content-type": content_type} if content_type else {}
        found = problem(Site().call("POST", "/v1/events", content=orjson.dumps(click()), headers=headers), 415)
        assert "application/json" in found["detail"]


def test_a_body_that_is_not_json_is_refused() -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    problem(Site().call("POST", "/v1/events", content=b'{"a": NaN}', headers=headers), 400)


@pytest.mark.parametrize("encoding", ["gzip", "BR ", "gzip, deflate"])
def test_a_compressed_body_is_refused_by_the_name_of_its_header(encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    site = Site()
    packed = gzip.compress(orjson.dumps(click()))
    found = problem(site.call("POST", "/v1/events", content=packed, headers=headers), 415)
    assert found["detail"] == f"Content-Encoding {encoding.strip().lower()!r}; send the body without compression"
    headers["content-encoding"] = "identity"
    assert site.call("POST", "/v1/events", content=orjson.dumps(click()), headers=headers).status_code == 202


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (gzip.compress(b"{}"), "it is compressed with gzip; send it without compression"),
        ('{"user_id": "ü"}'.encode("utf-16"), "it is UTF-16; send UTF-8"),
        ('{"user_id": "ü"}'.encode("utf-16-be"), "it is UTF-16; send UTF-8"),
        ("[]".encode("utf-16-le"), "it is UTF-16; send UTF-8"),
        (b"\xef\xbb\xbf{}", "it begins with a byte order mark; leave that out"),
        ('{"a": "ü"}'.encode("latin-1"), "byte 7 is 0xfc, which is no UTF-8, but may be Latin-1; send UTF-8"),
    ],
    ids=["gzip", "utf-16", "utf-16-be", "utf-16-le", "bom", "latin-1"],
)
def test_a_body_in_another_encoding_is_told_which(body: bytes, said: str) -> None:
    headers = {"content-type": "application/json"}
    found = problem(Site().call("POST", "/v1/events", content=body, headers=headers), 400)
    assert found["detail"] == f"the body is not JSON: {said}"


def test_a_body_above_one_mebibyte_is_refused_whether_it_says_its_length_or_not() -> None:
    headers = {"content-type": "application/json"}
    site = Site()
    large = b'"' + b"x" * MAX_BODY_BYTES + b'"'

    async def in_pieces() -> Any:
        for at in range(0, len(large), 65_536):
            yield large[at : at + 65_536]

    problem(site.call("POST", "/v1/events", content=large, headers=headers), 413)
    problem(site.call("POST", "/v1/events", content=in_pieces(), headers=headers), 413)
    assert site.log.records == []


KEYS = {
    "reader-key-000000": frozenset({"read"}),
    "writer-key-000000": frozenset({"write"}),
    "admin-key-0000000": frozenset({"admin"}),
}


@pytest.mark.parametrize(
    ("headers", "post_status", "delete_status"),
    [
        ({}, 401, 401),
        ({"x-api-key": "unknown"}, 401, 401),
        ({"x-api-key": ""}, 401, 401),
        ({"x-api-key": "reader-key-000000"}, 403, 403),
        ({"x-api-key": "writer-key-000000"}, 202, 403),
        ({"x-api-key": "admin-key-0000000"}, 403, 202),
        ({"authorization": "Bearer writer-key-000000"}, 202, 403),
    ],
)
def test_a_key_may_do_what_its_scopes_say(headers: dict[str, str], post_status: int, delete_status: int) -> None:
    site = Site(keys=KEYS)
    assert site.post("clickstream", click(), headers=headers).status_code == post_status
    assert site.call("DELETE", "/v1/users/u1", headers=headers).status_code == delete_status


def test_no_answer_repeats_a_key() -> None:
    response = Site(keys=KEYS).post("clickstream", click(), headers={"x-api-key": "nearly-right-key"})
    assert "nearly-right-key" not in response.text and "reader-key" not in response.text


def test_an_unforeseen_error_shows_no_trace() -> None:
    def broken(topic: str, body: Mapping[str, Any]) -> tuple[bytes, bytes]:
        raise RuntimeError("secret of the house")

    metrics = ApiMetrics(CollectorRegistry())
    app = FastAPI()
    install_handlers(app)
    app.add_middleware(AdmissionMiddleware, metrics=metrics, in_flight=4, turns=AdmissionController(4))
    kafka = KafkaSide(broken, RecordingLog().publish, lambda *_: None)
    app.include_router(ingest_router(Ingest(kafka, lambda: 8, lambda: NOW_MS, metrics), {}, metrics))
    site = Site()
    site.app = app
    response = site.post("clickstream", click())
    assert "secret" not in str(problem(response, 500)) and "Traceback" not in response.text


def test_more_writes_than_the_limit_at_once_are_turned_away() -> None:
    gate = asyncio.Event()

    class SlowLog(RecordingLog):
        async def publish(self, topic: str, key: bytes, value: bytes | None, partition: int | None) -> tuple[int, int]:
            await gate.wait()
            return 0, 0

    site = Site(log=SlowLog())

    async def scene() -> list[int]:
        transport = httpx.ASGITransport(site.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            tasks = [asyncio.create_task(client.post("/v1/events", json=click(number))) for number in range(6)]
            done: set[asyncio.Task[httpx.Response]] = set()
            while len(done) < 2:  # the two that are too many are answered while the others wait
                done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            gate.set()
            return sorted([(await task).status_code for task in tasks])

    assert asyncio.run(scene()) == [202, 202, 202, 202, 503, 503]


def test_requests_are_counted_by_their_template() -> None:
    site = Site()
    site.call("DELETE", "/v1/users/u42")
    site.call("GET", "/no/such/path")
    counts = {
        (sample.labels["route"], sample.labels["status"]): sample.value
        for metric in site.metrics.registry.collect()
        for sample in metric.samples
        if sample.name == "perseid_api_request_seconds_count"
    }
    assert counts == {("/v1/users/{user_id}", "202"): 1.0, ("unknown", "404"): 1.0}
