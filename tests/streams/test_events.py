"""Validation: what each topic's record means, which field is wrong with a bad one, and that nothing else escapes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.events import (
    CATALOG,
    CLICKSTREAM,
    CONSUMED,
    CONTEXT,
    DEAD_LETTERS,
    ITEM_VECTORS,
    SCENARIO_RULES,
    TAG_TOPICS,
    USERS,
    CatalogueEntry,
    Click,
    ContextEntry,
    Forget,
    MalformedError,
    Profile,
    Record,
    Rules,
    VectorEntry,
    topics_of,
)
from streams.item_vectors import vector_key
from streams.parsing import encode_record, faults, note_reason, parse, record_key
from streams.pipeline.digest import read_state
from streams.pipeline.engine import Engine
from streams.pipeline.intake import KafkaDeadLetterSink
from tests.faults.malformed import GOOD, SENSELESS, TS_MS, WRONG_TIMESTAMPS, malformed, wrong
from tests.support.sent import Sending, SentRecord

RULES = Rules(embedders={"toy": 4})


def record(topic: str, body: Any, key: bytes | None = None, timestamp_ms: int = TS_MS, offset: int = 0) -> Record:
    value = body if body is None or isinstance(body, bytes) else orjson.dumps(body)
    return Record(topic, 0, offset, timestamp_ms, key, value)


def test_a_click_with_everything() -> None:
    body = {**GOOD[CLICKSTREAM], "kind": "purchase", "session_id": "s", "location": "x", "page_id": "p"}
    event = parse(record(CLICKSTREAM, {**body, "recommendation_id": "r", "unknown": [1]}, b"u1"), RULES)
    assert event == Click("e1", "u1", "i1", 2, TS_MS, TS_MS, "x", "s", "r", "p")


def test_optional_labels_of_a_click_may_be_null_or_empty() -> None:
    event = parse(record(CLICKSTREAM, {**GOOD[CLICKSTREAM], "location": None, "session_id": ""}), RULES)
    assert event == Click("e1", "u1", "i1", 0, TS_MS, TS_MS)


def test_a_forget_with_an_item_is_obeyed_where_it_is_in_a_log_and_refused_where_it_is_made() -> None:
    body = {"event_id": "f", "user_id": "u", "kind": "forget", "ts_ms": TS_MS}
    for item_id in ("", "i1", 7, "a\nb"):
        assert parse(record(CLICKSTREAM, {**body, "item_id": item_id}), RULES) == Forget("f", "u", TS_MS, TS_MS)
    assert encode_record(CLICKSTREAM, {**body, "item_id": ""}, TS_MS, RULES)[0] == b"u"
    for item_id in ("i1", 7, "a\nb"):
        with pytest.raises(MalformedError, match="item_id: a forget has none, it is about the whole user"):
            encode_record(CLICKSTREAM, {**body, "item_id": item_id}, TS_MS, RULES)


@pytest.mark.parametrize(
    ("ahead_ms", "timestamp_ms", "expected"),
    [
        (300_000, TS_MS, TS_MS + 300_000),  # five minutes ahead are believed
        (300_001, TS_MS, TS_MS),  # more is clamped to Kafka's time
        (-(10**9), TS_MS, TS_MS - 10**9),  # late is late
        (4_000_000_000_000 - TS_MS, 4_000_000_000_000, 4_000_000_000_000),  # 2096 is a time like any other
    ],
)
def test_fast_clocks_are_clamped_to_the_records_own_time(ahead_ms: int, timestamp_ms: int, expected: int) -> None:
    event = parse(
        record(CLICKSTREAM, {**GOOD[CLICKSTREAM], "ts_ms": TS_MS + ahead_ms}, timestamp_ms=timestamp_ms), RULES
    )
    assert isinstance(event, Click)
    assert (event.ts_ms, event.raw_ts_ms) == (expected, TS_MS + ahead_ms)


def test_a_profile_and_its_removal() -> None:
    event = parse(record(USERS, GOOD[USERS], b"u1"), RULES)
    assert event == Profile("u1", b'{"categorical":{"location":"berlin"},"numeric":{"age":3.0}}', TS_MS)
    assert parse(record(USERS, None, b"u1", timestamp_ms=TS_MS + 5), RULES) == Profile("u1", None, TS_MS + 5)


def test_a_catalogue_entry_and_its_withdrawal() -> None:
    full: dict[str, Any] = {
        "item_id": "i1",
        "title": "Tea",
        "description": "green",
        "brand": "acme",
        "category": ["a", "b"],
    }
    full |= {"subclass": "a/b", "price": 2, "tags": ["t"], "available": False, "regions": ["eu"]}
    full |= {"starts_ms": 0, "ends_ms": 253_402_300_799_999, "ts_ms": TS_MS}
    event = parse(record(CATALOG, full), RULES)
    expected = {name: value for name, value in full.items() if name != "item_id"}
    assert event == CatalogueEntry("i1", {**expected, "price": 2.0})
    sparse = parse(record(CATALOG, {"item_id": "i1", "title": "", "ts_ms": TS_MS}), RULES)
    assert isinstance(sparse, CatalogueEntry) and sparse.fields is not None
    assert sparse.fields["available"] is True and sparse.fields["price"] is None and sparse.fields["category"] == []
    assert parse(record(CATALOG, None, b"i1"), RULES) == CatalogueEntry("i1", None)


def test_a_vector_as_numbers_or_base64_and_its_removal() -> None:
    encoded = base64.b64encode(np.asarray([1, 0, 0.5, 0], dtype="<f4").tobytes()).decode()
    for vector in ([1, 0, 0.5, 0], encoded):
        event = parse(record(ITEM_VECTORS, {**GOOD[ITEM_VECTORS], "vector": vector, "text_hash": "h"}), RULES)
        assert isinstance(event, VectorEntry) and event.vector is not None and event.vector.dtype == np.float32
        assert event.vector.tolist() == [1.0, 0.0, 0.5, 0.0]
        assert (event.item_id, event.embedder, event.tags, event.text_hash) == ("i1", "toy", ("t",), "h")
    assert parse(record(ITEM_VECTORS, None, b"i1"), RULES) == VectorEntry("i1", "", None, (), None)


def test_a_context_and_its_removal() -> None:
    promotion = {"tag": "tea", "strength": 2, "starts_ms": TS_MS}
    event = parse(record(CONTEXT, {**GOOD[CONTEXT], "events": ["fair"], "promotions": [promotion]}), RULES)
    assert isinstance(event, ContextEntry) and event.content is not None
    assert orjson.loads(event.content) == {
        "location": "berlin",
        "ts_ms": TS_MS,
        "valid_until_ms": TS_MS + 1,
        "weather": {"heat_wave": True},
        "events": ["fair"],
        "promotions": [{"tag": "tea", "strength": 2.0, "starts_ms": TS_MS, "ends_ms": None}],
    }
    assert parse(record(CONTEXT, None, b"berlin"), RULES) == ContextEntry("berlin", None)


def test_a_vector_record_has_the_key_of_its_item_or_of_its_item_and_embedder() -> None:
    body = GOOD[ITEM_VECTORS]
    keys = [vector_key(body["item_id"]), vector_key(body["item_id"], body["embedder"])]
    assert len({str(parse(record(ITEM_VECTORS, body, key.encode()), RULES)) for key in keys}) == 1
    for wrong_key in (vector_key(body["item_id"], "another"), vector_key("another", body["embedder"])):
        with pytest.raises(MalformedError, match="key: differs"):
            parse(record(ITEM_VECTORS, body, wrong_key.encode()), RULES)
    with pytest.raises(MalformedError, match="no control or separator characters"):
        parse(record(ITEM_VECTORS, None, keys[1].encode()), RULES)


def _wrong() -> list[Any]:
    return [
        pytest.param(topic, field, body, id=f"{topic}-{n}-{field}")
        for topic in CONSUMED
        for n, (field, body) in enumerate(wrong(topic))
    ]


@pytest.mark.parametrize(("topic", "field", "body"), _wrong())
def test_the_field_that_is_wrong_is_named(topic: str, field: str, body: dict[str, Any]) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(record(topic, body), RULES)
    assert caught.value.field.split(".")[0].split("[")[0] == field and caught.value.reason


@pytest.mark.parametrize("topic", CONSUMED)
@pytest.mark.parametrize("timestamp_ms", WRONG_TIMESTAMPS)
@pytest.mark.parametrize("is_null", [False, True])
def test_a_record_without_a_usable_kafka_time_is_refused(topic: str, timestamp_ms: int, is_null: bool) -> None:
    key = record_key(parse(record(topic, GOOD[topic]), RULES)).encode()
    with pytest.raises(MalformedError) as caught:
        parse(record(topic, None if is_null else GOOD[topic], key, timestamp_ms), RULES)
    assert caught.value.field == "timestamp" and "expected milliseconds since the epoch" in caught.value.reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (TS_MS // 1000, "1760000000 looks like seconds, expected milliseconds since the epoch"),
        (TS_MS * 1000, "1760000000000000 looks like microseconds, expected milliseconds since the epoch"),
        (TS_MS * 10**6, "1760000000000000000 looks like nanoseconds, expected milliseconds since the epoch"),
        (0, "0 is before 2000, expected milliseconds since the epoch"),
        (float(TS_MS), "expected a whole number of milliseconds since the epoch, got 1760000000000.0"),
        (str(TS_MS), "expected a whole number of milliseconds since the epoch, got '1760000000000'"),
    ],
)
@pytest.mark.parametrize(
    ("topic", "place"),
    [
        *((topic, ("ts_ms",)) for topic in CONSUMED),
        (CATALOG, ("starts_ms",)),
        (CATALOG, ("ends_ms",)),
        (CONTEXT, ("valid_until_ms",)),
        (CONTEXT, ("promotions", "starts_ms")),
        (CONTEXT, ("promotions", "ends_ms")),
    ],
)
def test_a_time_of_another_unit_is_refused_and_the_unit_is_named(
    topic: str, place: tuple[str, ...], value: Any, reason: str
) -> None:
    *within, name = place
    change = {"promotions": [{"tag": "t", name: value}]} if within else {name: value}
    if value == 0 and name == "starts_ms":  # always
        parse(record(topic, {**GOOD[topic], **change}), RULES)
        return
    with pytest.raises(MalformedError) as caught:
        parse(record(topic, {**GOOD[topic], **change}), RULES)
    assert (caught.value.field, caught.value.reason) == (f"promotions[0].{name}" if within else name, reason)


def test_a_window_may_begin_at_zero_and_end_never() -> None:
    window = {"starts_ms": 0, "ends_ms": 253_402_300_799_999}
    item = parse(record(CATALOG, {**GOOD[CATALOG], **window}), RULES)
    assert isinstance(item, CatalogueEntry) and item.fields is not None and window.items() <= item.fields.items()
    body = {**GOOD[CONTEXT], "valid_until_ms": 253_402_300_799_999, "promotions": [{"item": "i1", **window}]}
    context = parse(record(CONTEXT, body), RULES)
    assert isinstance(context, ContextEntry) and context.content is not None
    assert orjson.loads(context.content)["promotions"] == [{"item": "i1", "strength": 1.0, **window}]


ODD = " Café\u00a0\u3000 & Cie\u200b"  # read as: Café & Cie
FOLDED = "Caf\u00e9 & Cie"


def test_labels_are_folded_and_what_was_sent_is_kept_beside_them() -> None:
    labels = {"brand": ODD, "category": [ODD, "Tea"], "subclass": ODD, "tags": [ODD], "regions": [ODD]}
    folded = {"brand": FOLDED, "category": [FOLDED, "Tea"], "subclass": FOLDED, "tags": [FOLDED], "regions": [FOLDED]}
    entry = parse(record(CATALOG, {**GOOD[CATALOG], **labels}), RULES)
    assert isinstance(entry, CatalogueEntry) and entry.fields is not None and entry.sent is not None
    assert folded.items() <= entry.fields.items()
    assert entry.sent == {**entry.fields, **labels, "regions": [FOLDED]}
    same = parse(record(CATALOG, {**GOOD[CATALOG], **folded}), RULES)
    assert same == CatalogueEntry("i1", entry.fields)
    vector = parse(record(ITEM_VECTORS, {**GOOD[ITEM_VECTORS], "tags": [ODD]}), RULES)
    assert isinstance(vector, VectorEntry) and vector.tags == (FOLDED,)
    promotions = [{"tag": ODD}, {"category": ODD}]
    context = parse(record(CONTEXT, {**GOOD[CONTEXT], "events": [ODD], "promotions": promotions}), RULES)
    assert isinstance(context, ContextEntry) and context.content is not None
    content = orjson.loads(context.content)
    assert content["events"] == [FOLDED]
    assert [promotion.get("tag") or promotion["category"] for promotion in content["promotions"]] == [FOLDED, FOLDED]


def test_texts_and_emoji_are_left_as_they_are() -> None:
    title, brand, lines = "Tea\u3000pot ", "👩\u200d🍳 می\u200cخواهم", "green,\r\n\tloose\x0b\x85 "
    body = {**GOOD[CATALOG], "title": title, "brand": brand, "description": lines}
    entry = parse(record(CATALOG, body), RULES)
    assert isinstance(entry, CatalogueEntry) and entry.fields is not None
    assert (entry.fields["title"], entry.fields["description"], entry.fields["brand"]) == (title, lines, brand)
    assert entry.sent is None


@pytest.mark.parametrize(
    ("topic", "change", "said"),
    [
        (CATALOG, {"brand": "a\x00b"}, "brand: holds the control character U+0000"),
        (CATALOG, {"tags": ["a", "b\x9f"]}, "tags[1]: holds the control character U+009F"),
        (CATALOG, {"category": "Tea"}, "category: expected a list of strings, got 'Tea'"),
        (CATALOG, {"regions": ["\u3000"]}, "regions[0]: is empty, expected a name"),
        (CATALOG, {"subclass": "x" * 257}, "subclass: has 257 bytes, a label has at most 256"),
        (CATALOG, {"item_id": "a\u3000b"}, "item_id: holds U+3000, an id has no control or separator characters"),
        (CATALOG, {"item_id": "  "}, "item_id: holds nothing but spaces"),
        (CLICKSTREAM, {"location": " "}, "location: holds nothing but spaces"),
        (CATALOG, {"price": "cheap"}, "price: expected a finite number, got 'cheap'"),
        *((topic, change, f"{field}: {reason}") for topic, change, field, reason in SENSELESS),
        (CLICKSTREAM, {"user_id": "u\u200b"}, "user_id: holds U+200B, an id has no control or separator characters"),
        (CLICKSTREAM, {"event_id": "x" * 257}, "event_id: has 257 bytes, an id has 1 to 256"),
        (CLICKSTREAM, {"location": "a\u00a0b"}, "location: holds U+00A0, an id has no control or separator characters"),
        (CONTEXT, {"events": "fair"}, "events: expected a list of strings, got 'fair'"),
        (CONTEXT, {"promotions": [{"tag": "\x07"}]}, "promotions[0].tag: holds the control character U+0007"),
        (CATALOG, {"available": "nein"}, "available: expected true or false, got 'nein'"),
        (CATALOG, {"available": 1}, "available: expected true or false, got 1"),
        (CATALOG, {"title": True}, "title: expected a string, got true or false"),
        (CATALOG, {"title": {"de": "Tee"}}, "title: expected a string, got an object"),
        (CATALOG, {"price": -(10**15)}, "price: -1000000000000000 is below 0"),
        (CATALOG, {"item_id": 7}, "item_id: expected a string, got 7"),
        (
            CLICKSTREAM,
            {"kind": "gekauft"},
            "kind: expected one of view, cart, purchase, like, dislike, remove, got 'gekauft'",
        ),
        (ITEM_VECTORS, {"embedder": "x" * 99}, f"embedder: expected one of toy, got '{'x' * 59}"),
        (USERS, {"categorical": {"a": []}}, "categorical.a: expected a string, got a list"),
    ],
)
def test_what_is_refused_says_what_was_found_and_what_was_wanted(topic: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(record(topic, {**GOOD[topic], **change}), RULES)
    assert str(caught.value) == said


def test_what_was_found_makes_no_reason_of_its_own() -> None:
    reasons: Counter[str] = Counter()
    for kind in ("a, got b", "gekauft", "line\nend"):
        with pytest.raises(MalformedError) as caught:
            parse(record(CLICKSTREAM, {**GOOD[CLICKSTREAM], "kind": kind}), RULES)
        note_reason(reasons, CLICKSTREAM, caught.value)
    assert reasons == {"clickstream: kind: expected one of view, cart, purchase, like, dislike, remove": 3}


def catalogue_fields(changed: dict[str, Any]) -> Mapping[str, Any]:
    """What is taken over of a catalogue record with these fields changed."""
    found = parse(record(CATALOG, {**GOOD[CATALOG], **changed}), RULES)
    assert isinstance(found, CatalogueEntry) and found.fields is not None
    return found.fields


def test_long_titles_and_lists_are_taken_up_to_their_bounds() -> None:
    found = catalogue_fields({"title": "é" * 10_000, "tags": ["t"] * 1_000})
    assert found["title"] == "é" * 10_000 and found["tags"] == ["t"] * 1_000


@pytest.mark.parametrize("price", [0, -0.0, 0.0, 1e308])
def test_a_price_may_be_nothing(price: float) -> None:
    assert catalogue_fields({"price": price})["price"] == price


def test_a_window_may_be_empty_and_a_context_may_say_that_something_is_over() -> None:
    found = catalogue_fields({"starts_ms": TS_MS, "ends_ms": TS_MS})
    assert found["starts_ms"] == found["ends_ms"] == TS_MS
    over = parse(record(CONTEXT, {**GOOD[CONTEXT], "valid_until_ms": TS_MS - 1}), RULES)
    assert isinstance(over, ContextEntry) and over.content is not None
    assert orjson.loads(over.content)["valid_until_ms"] == TS_MS - 1


@pytest.mark.parametrize("topic", CONSUMED)
def test_a_key_that_is_not_the_id_is_refused_and_none_is_fine(topic: str) -> None:
    with pytest.raises(MalformedError, match="key: differs"):
        parse(record(topic, GOOD[topic], b"someone"), RULES)
    parse(record(topic, GOOD[topic], None), RULES)


@pytest.mark.parametrize("topic", CONSUMED)
@pytest.mark.parametrize("key", [None, b"", b"\xff", b"x" * 257, b"a\nb"])
def test_a_null_without_a_proper_key_is_refused(topic: str, key: bytes | None) -> None:
    with pytest.raises(MalformedError):
        parse(record(topic, None, key), RULES)


def test_a_null_click_is_refused() -> None:
    with pytest.raises(MalformedError, match="value: null"):
        parse(record(CLICKSTREAM, None, b"u1"), RULES)


def test_a_topic_that_is_not_consumed_is_a_defect_and_not_a_bad_record() -> None:
    with pytest.raises(KeyError):
        parse(record(DEAD_LETTERS, {}), RULES)


@pytest.mark.parametrize("topic", CONSUMED)
def test_what_is_checked_before_producing_is_what_a_consumer_accepts(topic: str) -> None:
    key, value = encode_record(topic, GOOD[topic], TS_MS, RULES)
    parse(record(topic, value, key), RULES)
    with pytest.raises(MalformedError, match="not JSON"):
        encode_record(topic, {**GOOD[topic], "x": object()}, TS_MS, RULES)
    name, body = wrong(topic)[0]
    with pytest.raises(MalformedError, match=name):
        encode_record(topic, body, TS_MS, RULES)


EVERYTHING_WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    CLICKSTREAM: (
        {"event_id": "", "item_id": 3, "kind": "sneeze", "ts_ms": TS_MS * 1000, "location": "a\nb"},
        ["ts_ms", "event_id", "user_id", "kind", "item_id", "location"],
    ),
    USERS: (
        {"ts_ms": "soon", "numeric": {"age": "old", "size": 3, "x": None}, "categorical": {"a": 1, "b": "c"}},
        ["user_id", "ts_ms", "numeric.age", "numeric.x", "categorical.a"],
    ),
    CATALOG: (
        {"item_id": "i", "title": "\x00", "price": -1, "category": "Tea", "tags": ["a", "", "b\x07"], "ends_ms": 1},
        ["ts_ms", "title", "category", "price", "tags[1]", "tags[2]", "ends_ms"],
    ),
    CONTEXT: (
        {
            "location": "x" * 257,
            "ts_ms": TS_MS,
            "weather": {"t": [], "u": {}},
            "promotions": [{"tag": "t", "starts_ms": 2, "strength": "x"}, {}, {"item": "i"}],
        },
        [
            *("location", "valid_until_ms", "weather.t", "weather.u"),
            *("promotions[0].strength", "promotions[0].starts_ms", "promotions[1].item"),
        ],
    ),
}


@pytest.mark.parametrize("topic", EVERYTHING_WRONG)
def test_a_record_that_is_not_sent_is_told_every_field_that_is_wrong(topic: str) -> None:
    body, fields = EVERYTHING_WRONG[topic]
    with pytest.raises(MalformedError) as caught:
        encode_record(topic, body, TS_MS, RULES)
    assert [error.field for error in (caught.value, *caught.value.others)] == fields


def test_a_field_is_named_once_and_a_record_has_at_most_ten_faults() -> None:
    many = {"user_id": "u", "ts_ms": TS_MS, "numeric": {f"n{n}": "x" for n in range(1000)}}
    assert [error.field for error in faults(record(USERS, many), RULES)] == [f"numeric.n{n}" for n in range(10)]
    promotions = [{"tag": "t", "strength": "x"}] * 1000
    found = faults(record(CONTEXT, {**GOOD[CONTEXT], "promotions": promotions}), RULES)
    assert [error.field for error in found] == [f"promotions[{n}].strength" for n in range(10)]
    inside = [{"tag": "t", "strength": "x", "starts_ms": 1, "ends_ms": 1}] * 4
    assert len(faults(record(CONTEXT, {**GOOD[CONTEXT], "promotions": inside}), RULES)) == 10


@pytest.mark.parametrize(("topic", "field", "body"), _wrong())
def test_one_wrong_field_is_the_only_fault_unless_others_depend_on_it(
    topic: str, field: str, body: dict[str, Any]
) -> None:
    found = faults(record(topic, body), RULES)
    assert {error.field.split(".")[0].split("[")[0] for error in found} == {field}


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["view", "forget", "toy", "u1", TS_MS]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=10,
)
_FIELDS = sorted({name for body in GOOD.values() for name in body} | {"promotions", "events", "price", "regions"})


@given(
    topic=st.sampled_from(CONSUMED),
    changes=st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=4),
    key=st.none() | st.binary(max_size=5) | st.sampled_from([b"u1", b"i1", b"berlin"]),
    timestamp_ms=st.integers(-(2**62), 2**62),
)
def test_changed_fields_give_an_event_or_a_malformed_error(
    topic: str, changes: dict[str, Any], key: bytes | None, timestamp_ms: int
) -> None:
    sent = record(topic, {**GOOD[topic], **changes}, key, timestamp_ms)
    try:
        parse(sent, RULES)
    except MalformedError as error:
        assert error.reason and error.field


@given(
    topic=st.sampled_from(CONSUMED),
    changes=st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=9),
    timestamp_ms=st.sampled_from([TS_MS, 0]),
)
def test_the_first_fault_is_the_error_of_a_consumer_and_a_record_without_faults_is_accepted(
    topic: str, changes: dict[str, Any], timestamp_ms: int
) -> None:
    sent = record(topic, {**GOOD[topic], **changes}, None, timestamp_ms)
    found = [str(error) for error in faults(sent, RULES)]
    try:
        parse(sent, RULES)
    except MalformedError as error:
        assert found[0] == str(error) and len({text.partition(": ")[0] for text in found}) == len(found) <= 10
    else:
        assert found == []


_TIMESTAMPS = st.sampled_from([TS_MS, *WRONG_TIMESTAMPS]) | st.integers(-(2**63), 2**63 - 1)


@given(st.sampled_from(CONSUMED), _JSON, st.none() | st.binary(max_size=10), _TIMESTAMPS)
def test_any_json_at_any_time_gives_an_event_or_a_malformed_error(
    topic: str, body: Any, key: bytes | None, timestamp_ms: int
) -> None:
    try:
        parse(record(topic, body, key, timestamp_ms), RULES)
    except MalformedError as error:
        assert error.reason and error.field


@given(st.sampled_from(CONSUMED), st.none() | st.binary(max_size=300), st.none() | st.binary(max_size=10), _TIMESTAMPS)
def test_any_bytes_give_an_event_or_a_malformed_error(
    topic: str, value: bytes | None, key: bytes | None, timestamp_ms: int
) -> None:
    try:
        parse(Record(topic, 0, 0, timestamp_ms, key, value), RULES)
    except MalformedError as error:
        assert error.reason and error.field


class Letters(Sending):
    """Keeps what the dead-letter sink sends."""

    def __init__(self) -> None:
        self.headers: list[dict[str, bytes]] = []
        self.largest = 0

    def take(self, sent: SentRecord) -> tuple[int, int]:
        assert sent.topic == "dead-letters"
        self.headers.append(dict(sent.headers))
        self.largest = max(self.largest, sent.size)
        return 0, len(self.headers) - 1


async def _engine(letters: Letters) -> Engine:
    engine = Engine(MemoryStore(), RULES, 1, KafkaDeadLetterSink(letters))
    for tag in ("p0", *TAG_TOPICS):
        await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LogIdentity("c")))
    return engine


def _state_without_positions(state: dict[str, Any]) -> dict[str, Any]:
    return {name: {key: value for key, value in part.items() if key != "positions"} for name, part in state.items()}


def test_what_is_of_the_right_type_and_yet_wrong_is_a_dead_letter_with_its_reason() -> None:
    async def scenario() -> None:
        letters = Letters()
        engine = await _engine(letters)
        for n, (topic, change, _, _) in enumerate(SENSELESS):
            at = sum(earlier == topic for earlier, *_ in SENSELESS[:n])
            await engine.apply([record(topic, {**GOOD[topic], **change}, offset=at)])
        found = [(h["topic"].decode(), h["field"].decode(), h["reason"].decode()) for h in letters.headers]
        assert found == [(topic, field, reason) for topic, _, field, reason in SENSELESS]
        assert engine.counts["malformed"] == len(SENSELESS) and engine.counts["applied"] == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("topic", CONSUMED)
def test_ten_thousand_malformed_records_become_dead_letters_and_change_nothing(topic: str) -> None:
    id_fields = {CLICKSTREAM: "user_id", USERS: "user_id", CONTEXT: "location", SCENARIO_RULES: "scenario"}
    id_field = id_fields.get(topic, "item_id")

    def good(n: int) -> bytes:
        unique = {"event_id": f"e{n}", "item_id": f"i{n}"} if topic == CLICKSTREAM else {}
        return orjson.dumps({**GOOD[topic], **unique, id_field: f"id{n % 20}", "ts_ms": TS_MS + n})

    async def scenario() -> None:
        letters, no_letters = Letters(), Letters()
        engine, undisturbed = await _engine(letters), await _engine(no_letters)
        bad = malformed(topic, 10_000, seed=7)
        log: list[Record] = []
        for n, (key, value) in enumerate(bad):
            log.append(Record(topic, 0, len(log), TS_MS, key, value))
            if n % 40 == 0:
                log.append(Record(topic, 0, len(log), TS_MS, None, good(n)))
        for start in range(0, len(log), 500):
            await engine.apply(log[start : start + 500])
        await undisturbed.apply([Record(topic, 0, n, TS_MS, None, good(n * 40)) for n in range(len(bad) // 40)])
        assert engine.counts["malformed"] == len(letters.headers) == len(bad) and not no_letters.headers
        assert engine.counts["applied"] == undisturbed.counts["applied"] == len(bad) // 40
        state, expected = await read_state(engine.store, 1), await read_state(undisturbed.store, 1)
        if topic == SCENARIO_RULES:  # the versions are positions
            for found in (state, expected):
                found["rules"]["rules"] = {n: {**r, "version": 0} for n, r in found["rules"]["rules"].items()}
        assert _state_without_positions(state) == _state_without_positions(expected)
        parts = {CLICKSTREAM: "p0", USERS: "p0", CONTEXT: "contexts", SCENARIO_RULES: "rules"}
        tag = parts.get(topic, "items")
        assert state[tag]["positions"][topic] == len(log)
        assert all(h["reason"] and h["field"] and h["topic"] == topic.encode() for h in letters.headers)
        lengths = {int(h["offset"]): (int(h["length"]), h["sha256"].decode()) for h in letters.headers}
        for sent in log:
            if sent.offset in lengths:
                value = sent.value or b""
                assert lengths[sent.offset] == (len(value), hashlib.sha256(value).hexdigest())
        assert letters.largest < 600_000

    asyncio.run(scenario())
