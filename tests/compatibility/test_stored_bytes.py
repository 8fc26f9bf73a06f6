"""What was stored at 9afcd80 and since is read, continued and written in the same way, in Redis, files and logs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from safetensors import safe_open

from deploy.servers.redis import RedisServer
from encoder.model.artefact import load, save
from index.state.keys import LOCATION_SEPARATOR, Keys, partition_of, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import vector_field
from index.state.redis_store import RedisStore
from index.state.sqlite_store import SqliteStore
from index.state.store import LiveStore
from streams.pipeline.digest import digest, digest_of, read_state
from tests.compatibility import collect, stored
from tests.compatibility.redis_dump import Dump, dump, raw, restore
from tests.compatibility.test_wire_names import ADDED_METRICS, ADDED_SETTINGS, CHANGED_SETTINGS
from tests.compatibility.world import (
    FIXTURES,
    FORMER,
    KEYS,
    MODEL,
    NOW_MS,
    PARTITIONS,
    RULES_2,
    RULES_3,
    SIZES,
    Shown,
    assert_same,
    expected,
    live,
    made,
)

pytestmark = pytest.mark.servers

T = TypeVar("T")
HALF = 5e-4  # at most, by which numbers below 1 and scores of them move: an index keeps vectors in halves since
_COUNT = "expected at least 1, got 0"
_TYPO = (
    "unknown field; known: after, context, count, exclude, explain, filter, include_seen, location, model, page_id, "
    "scenario, slot, user_id"
)
REFUSED_IN_OTHER_WORDS = {  # since: our own words, and every field of a record that is wrong
    "GET /v1/recommendations/user-1?count=0": {
        "detail": f"query.count: {_COUNT}", "errors": [{"field": "query.count", "reason": _COUNT}],
    },
    "1 POST /v1/recommendations": {"detail": f"cuont: {_TYPO}", "errors": [{"field": "cuont", "reason": _TYPO}]},
    "3 POST /v1/events": {
        "errors": [
            {"record": record, "field": field, "reason": "missing"}
            for record, fields in enumerate((("kind", "ts_ms", "item_id"), ("kind", "ts_ms", "user_id", "item_id")))
            for field in fields
        ],
    },
}  # fmt: skip


def in_redis(server: RedisServer, content: Dump, use: Callable[[LiveStore], Awaitable[T]]) -> T:
    """What `use` gives of a Redis that holds this and nothing else of ours."""

    async def run() -> T:
        store = RedisStore(server.url, KEYS)
        try:
            return await use(store)
        finally:
            await store.close()

    restore(server.url, KEYS.prefix, content)
    return asyncio.run(run())


def as_json(value: Any) -> Any:
    """Plain values as they come back from a file."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", FORMER)
def test_the_stored_state_is_read_as_it_was_meant(redis_server: RedisServer, name: str) -> None:
    content, wanted = expected("state.json", FORMER[name]), expected("decoded.json.gz", FORMER[name])
    found = as_json(in_redis(redis_server, content, stored.decode))
    wanted["clocks"] = {number: [clock[0], clock[-1]] for number, clock in wanted["clocks"].items()}
    assert_same(found, wanted)
    assert dump(redis_server.url, KEYS.prefix) == content


@pytest.mark.parametrize("name", FORMER)
def test_one_more_event_goes_on_top_of_the_stored_state(redis_server: RedisServer, name: str) -> None:
    found = in_redis(redis_server, expected("state.json", FORMER[name]), stored.one_more)
    wanted = made(f"one_more_on_{name}.json")
    assert wanted["digest"] != digest_of(expected("decoded.json.gz", FORMER[name])["state"]).hex
    assert_same(as_json(found), wanted)


@pytest.mark.parametrize(("former", "rules"), [(RULES_2, "2,4"), (RULES_3, "3,4")])
def test_a_state_of_former_rules_goes_on_with_all_it_holds_and_counts_all_from_then_on(
    redis_server: RedisServer, former: Path, rules: str
) -> None:
    """The click changes what it changes in a state of the present rules, which has all earlier counts.

    Those by kind came with version 3, those of pairs with version 4.
    """

    async def before_and_after(store: LiveStore) -> list[Any]:
        found = [await read_state(store, PARTITIONS)]
        await stored.one_more(store)
        return [*found, await read_state(store, PARTITIONS)]

    old, gone_on = in_redis(redis_server, expected("state.json", former), before_and_after)
    new, as_new = in_redis(redis_server, made("state.json"), before_and_after)
    tag, bucket = partition_tag(partition_of("user-1", PARTITIONS)), str(NOW_MS // SIZES.bucket_ms)
    counted_now = {bucket: {f"1{LOCATION_SEPARATOR}item-3": 1}}
    assert former != RULES_2 or gone_on[tag]["kinds"] == counted_now
    assert gone_on[tag].pop("rules") == rules
    for state in (old, gone_on):
        assert not any("pairs" in part for part in state.values())
        for part in state.values():
            part.pop("kinds", None)
    for state in (new, as_new):
        counted = [
            sorted(part.pop("kinds")) == sorted(part["popularity"]) for part in state.values() if "users" in part
        ]
        assert counted == [True] * PARTITIONS
        pairs = [part.pop("pairs", None) for part in state.values()]
        assert any(pairs), "the log has purchases"
    assert (old, gone_on) == (new, as_new)


def test_the_api_answers_from_the_stored_state_as_it_did(redis_server: RedisServer) -> None:
    found = in_redis(redis_server, expected("state.json"), lambda store: collect.api_answers(Shown(store)))
    wanted, shown = expected("answers.json"), as_json(found)
    # Added since: what the rule of a location's regions took out, what time it is, whether Redis takes writes, and what
    # orders lists.
    for call, (*_, body) in shown["answers"].items():
        if "/v1/recommendations" in call and "items" in body:
            assert body.pop("ranked_by") == "first stage"
            assert body.get("explain", {}).pop("first_stage", "no ranker").endswith("ranker") or "explain" not in body
    for path in ("/v1/recommendations/user-1?count=5&explain=true",):
        assert shown["answers"][f"GET {path}"][3]["explain"]["removed"].pop("region") == 0
    assert shown["answers"]["GET /v1/status"][3].pop("now")["clock"] == "wall"
    assert "redis_writes" in shown["answers"]["GET /v1/status"][3]
    assert shown["answers"]["GET /v1/status"][3].pop("models")["champion"]
    del shown["answers"]["GET /v1/status"][3]["redis_writes"]
    assert shown["answers"]["GET /v1/status"][3]["topics"].pop("rules")["position"] == 0
    assert shown["answers"]["GET /v1/status"][3]["counters"].pop("ranked_by_first_stage") == 6
    for name in ADDED_METRICS:
        del shown["metrics"][name]
    assert wanted["answers"]["GET /v1/items/item-5"][3]["catalogue"] is None, "withdrawn, and so no longer indexed"
    wanted["answers"]["GET /v1/items/item-5"][3]["indexed"] = False
    for call, refused in REFUSED_IN_OTHER_WORDS.items():
        wanted["answers"][call][3] |= refused
    for name in wanted:
        assert_same(shown[name], wanted[name], name, HALF)


def test_the_same_log_gives_the_same_bytes_in_redis(redis_server: RedisServer) -> None:
    in_redis(redis_server, {}, lambda store: live(store, stored.full_log()))
    found, wanted = dump(redis_server.url, KEYS.prefix), made("state.json")
    assert list(found) == list(wanted)
    for key, (kind, content) in wanted.items():
        assert found[key][0] == kind, key
        if kind != "hash":
            assert found[key][1] == content, key
            continue
        assert list(found[key][1]) == list(content), key
        for name, value in content.items():
            other = found[key][1][name]
            if name.startswith("v:"):  # of users in fp16, of items in fp32
                assert_close(raw(other), raw(value), np.float16 if ":u:" in key else np.float32)
            elif name == "worker-host-1":
                assert_same(json.loads(raw(other)), json.loads(raw(value)))
            elif name not in stored.PASSING:
                assert other == value, f"{key} {name}"


def assert_close(found: bytes, wanted: bytes, kind: Any) -> None:
    """Equal vectors, but for the last digit of a float."""
    assert len(found) == len(wanted)
    first, second = (np.frombuffer(part, kind).astype(np.float32) for part in (found, wanted))
    assert np.abs(first - second).max() < 2e-3


def test_the_same_log_gives_the_same_digest_in_memory_and_by_replay() -> None:
    async def run() -> tuple[str, Any]:
        broker, store = stored.full_log(), MemoryStore(KEYS)
        await live(store, broker)
        return (await digest(store, PARTITIONS)).hex, await stored.replayed(broker)

    found, replayed = asyncio.run(run())
    assert found == digest_of(made("decoded.json.gz")["state"]).hex
    assert_same(as_json(replayed), made("replayed.json"))


def test_the_model_is_read_and_written_in_the_same_bytes(tmp_path: Path) -> None:
    model, metadata = load(MODEL)
    assert metadata.pop("version") == stored.version()
    assert save(model, tmp_path / "again", metadata) == stored.version()
    for path in MODEL.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_snapshot_of_the_items_is_read_and_written_in_the_same_bytes(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    old = stored.copied({"items.snapshot": f"{stored.version()}.snapshot"}, tmp_path)
    found = stored.read_snapshot(old / f"{stored.version()}.snapshot")
    assert_same(as_json(found), expected("snapshot.json.gz"), within=HALF)
    made = in_redis(redis_server, expected("state.json"), lambda store: stored.make_snapshot(store, tmp_path / "new"))
    assert made.name == f"{stored.version()}.snapshot"
    assert_same(as_json(stored.read_snapshot(made)), expected("snapshot.json.gz"), within=HALF)


def test_a_data_folder_is_read_and_exported_in_the_same_lines(tmp_path: Path) -> None:
    described = expected("folder.json.gz")
    assert described.pop("skipped") == {"anonymous": 0, "before_2000": 0}
    assert_same(as_json(stored.describe_folder(stored.SHOP)), {**described, "left_out": {}})

    async def run() -> Any:
        broker = stored.full_log()
        await live(MemoryStore(KEYS), broker)
        return stored.make_folder(broker, tmp_path / "shop")

    assert_same(as_json(asyncio.run(run())), made("exported.json"))
    lines, as_before = stored.folder_lines(tmp_path / "shop"), stored.folder_lines(stored.SHOP)
    assert lines == as_before and len(lines) == 6


@pytest.mark.parametrize("name", FORMER)
def test_a_replay_goes_on_from_a_checkpoint(tmp_path: Path, name: str) -> None:
    path = stored.unpack("replay.sqlite.gz", tmp_path / "replay.sqlite", FORMER[name])
    if name == "9afcd80":
        assert_same(as_json(stored.read_checkpoint(path)), expected("replay_checkpoint.json.gz"))
    found, wanted = stored.run_replay(tmp_path), made(f"replay_resumed_of_{name}.json.gz")
    assert wanted["first"] > 60
    assert_same(as_json(found), wanted)


def test_a_checkpoint_of_a_replay_is_written_in_the_same_rows(tmp_path: Path) -> None:
    found = stored.read_checkpoint(stored.make_checkpoint(tmp_path))
    assert_same(as_json(found), made("replay_checkpoint.json.gz"))


def test_a_kept_state_is_under_its_keys_only(tmp_path: Path) -> None:
    path = stored.unpack("replay.sqlite.gz", tmp_path / "state")
    store = SqliteStore(path, Keys("other"))
    assert asyncio.run(store.scores(store.keys.item_index())) == {}
    store.close_file()


def test_a_training_run_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    old = stored.copied({"checkpoint.safetensors": "checkpoint.safetensors"}, tmp_path / "old")
    assert_same(as_json(stored.resume_training(old)), expected("training_resumed.json"))


def test_a_checkpoint_of_a_training_run_has_the_same_names(tmp_path: Path) -> None:
    described = []
    for path in (FIXTURES / "checkpoint.safetensors", stored.make_training_checkpoint(tmp_path)):
        with safe_open(path, framework="pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
            words = file.metadata()
            counters = json.loads(words["counters"])
            described.append([shapes, sorted(words), words["fingerprint"], list(counters), counters["step"]])
    assert described[0] == described[1]


def test_files_of_a_state_folder_are_read_and_written_as_before(tmp_path: Path) -> None:
    """Settings that are new have their defaults in an old folder, and lines of their own in a new one."""
    names = {f"state_{name}": name for name in ("vectors.npz", "up.env", "traffic.json")}
    old = stored.copied(names, tmp_path / "old")
    ledger = stored.unpack("state_llm.sqlite3.gz", old / "llm.sqlite3")
    added = [name.strip("`") for name in ADDED_SETTINGS]
    wanted, found = expected("state_files.json"), as_json(stored.read_state_files(old))
    assert {name for name in added if found["settings"].pop(name, None) is not None} == {*added}
    assert found == wanted
    new = tmp_path / "new"
    new.mkdir()
    stored.make_state_files(new)
    changed = {
        f"{name.strip('`')}={was!r}": f"{name.strip('`')}={now!r}" for name, (was, now) in CHANGED_SETTINGS.items()
    }
    lines = (new / "up.env").read_text().splitlines()
    before = [changed.get(line, line) for line in (old / "up.env").read_text().splitlines()]
    assert [line for line in lines if line.split("=")[0] not in added] == before
    assert (new / "traffic.json").read_bytes() == (old / "traffic.json").read_bytes()
    assert stored.tables_of(new / "llm.sqlite3") == stored.tables_of(ledger)
    written = as_json(stored.read_state_files(new))
    assert {**written, "settings": wanted["settings"]} == wanted
    assert sorted(path.name for path in new.iterdir() if "sqlite3-" not in path.name) == sorted(
        path.name for path in old.iterdir() if "sqlite3-" not in path.name
    )


@pytest.mark.parametrize("name", ["state.json", "names.json", "answers.json"])
def test_fixtures_are_not_empty(name: str) -> None:
    assert len(expected(name)) >= 3


def test_every_kind_of_key_is_in_the_stored_state() -> None:
    parts = {key.split(":", 2)[-1].split(":")[0] for key in expected("state.json") if "{" in key}
    assert parts >= {"owner", "u", "users", "pop", "pops", "i", "index", "log", "records", "waiting"}
    assert any(":kinds:" in key for key in made("state.json"))
    fields = {name for _, content in expected("state.json").values() if isinstance(content, dict) for name in content}
    assert fields >= {"s", "p", "c", "e", "t", "m", "vh", "th", "n", vector_field(stored.version())}
