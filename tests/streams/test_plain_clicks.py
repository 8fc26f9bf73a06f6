"""A click that is read the short way is the one that the long way reads, and nothing else is read the short way."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from context.times import YEAR_2000_MS, YEAR_2100_MS
from streams import parsing
from streams.events import CLICKSTREAM, Click, MalformedError, Record, Rules

NOW_MS = 1_760_000_000_000
TIMES = st.one_of(
    st.sampled_from([NOW_MS, NOW_MS + 300_000, NOW_MS + 300_001, YEAR_2000_MS, YEAR_2000_MS - 1, YEAR_2100_MS, 0, -1]),
    st.integers(YEAR_2100_MS - 10, YEAR_2100_MS + 400_000),
)
IDS = st.one_of(
    st.sampled_from(["e1", " e1", " ", "", "ä", "\t", "a\nb", "x" * 256, "x" * 257, "ä" * 128, "ä" * 129, "\x7f"]),
    st.text(max_size=5),
)
ODD = st.sampled_from([None, 0, 1, True, False, 1.0, [], ["a"], {}, {"a": 1}])
KINDS = st.sampled_from(["view", "purchase", "forget", "bought", ""])
BODIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("event_id", "user_id", "item_id"), st.one_of(IDS, IDS, IDS, ODD)),
        "kind": st.one_of(KINDS, KINDS, ODD),
        "ts_ms": st.one_of(TIMES, TIMES, ODD, st.sampled_from(["1", 2**63, 1e12])),
        **dict.fromkeys(("location", "session_id", "recommendation_id", "page_id"), st.one_of(IDS, IDS, ODD)),
        "unknown": ODD,
    },
)


def long_way(record: Record, rules: Rules) -> Any:
    try:
        event = parsing._PARSERS[CLICKSTREAM](parsing.read_body(record), rules)
        parsing.check_key(record, parsing.record_key(event))
    except MalformedError as error:
        return error.field, error.reason
    return event


def parsed(record: Record, rules: Rules) -> Any:
    try:
        return parsing.parse(record, rules)
    except MalformedError as error:
        return error.field, error.reason


@settings(max_examples=400, deadline=None)
@given(BODIES, TIMES, st.one_of(st.none(), st.just("own"), st.binary(max_size=3)))
def test_both_ways_agree(body: dict[str, Any], timestamp_ms: int, key: Any) -> None:
    own = str(body.get("user_id")).encode(errors="surrogatepass")
    record = Record(CLICKSTREAM, 0, 0, timestamp_ms, own if key == "own" else key, _dumped(body))
    assert parsed(record, Rules()) == long_way(record, Rules())


def _dumped(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # half a surrogate pair
        return b"{"


def test_a_usual_click_is_read_the_short_way_and_an_unusual_one_is_not() -> None:
    body = {"event_id": "e", "user_id": "u", "item_id": "i", "kind": "cart", "ts_ms": NOW_MS, "page_id": "p"}
    record = Record(CLICKSTREAM, 0, 0, NOW_MS, b"u", orjson.dumps(body))
    expected = Click("e", "u", "i", 1, NOW_MS, NOW_MS, page_id="p")
    assert parsing._plain_click(record, Rules()) == expected == parsing.parse(record, Rules())
    for change in (
        {"item_id": "ä"},
        {"kind": "forget"},
        {"ts_ms": NOW_MS + 300_001},
        {"location": 0},
        {"user_id": "v"},
    ):
        assert parsing._plain_click(record._replace(value=orjson.dumps({**body, **change})), Rules()) is None
    for value in (b"", b"null", b"[]", b"{", None):
        assert parsing._plain_click(record._replace(value=value), Rules()) is None
