"""Which stored items are given out for a second embedder: newest first, changes before, nothing that is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
import pytest

from encoder.text.item_text import canonical_text, text_hash
from index.state.keys import ITEMS_TAG
from index.state.memory_store import MemoryStore
from index.state.records import CATALOGUE, EMBEDDER, MODELS, TAGS, TEXT_HASH, TEXT_VECTOR, VECTOR_HASH, beside
from index.state.store import Commit, LogIdentity, Op, StoreUnavailableError
from streams.events import CATALOG, CatalogueEntry, Record, Rules
from streams.parsing import parse
from streams.stored_texts import StoredCatalog, stored_texts

TS_MS = 1_760_000_000_000


class Items:
    """A live state of items, some of which have vectors."""

    def __init__(self) -> None:
        self.store, self.now_s, self.ours = MemoryStore(), 0.0, True
        self.catalog = StoredCatalog(self.store, "new", "m-2", lambda: self.ours, lambda: self.now_s)
        self._position = 0

    async def open(self) -> Items:
        await self.store.claim(ITEMS_TAG, "me", 1, {CATALOG: LogIdentity("c", "t")})
        return self

    async def put(self, item_id: str, **fields: bytes) -> None:
        """An item with a title, and these fields of its hash in place of `_` with a `:`."""
        key, body = self.store.keys.item(item_id), {"title": item_id, "ts_ms": TS_MS}
        found = {CATALOGUE: orjson.dumps(body), TEXT_HASH: hash_of(item_id)}
        found |= {name.replace("_", ":"): value for name, value in fields.items()}
        ops = [Op("hset", key, found), Op("log", key, names=(item_id,))]
        await self._commit(*ops)

    async def withdraw(self, item_id: str) -> None:
        key = self.store.keys.item(item_id)
        await self._commit(Op("hdel", key, names=(CATALOGUE, TEXT_HASH)), Op("log", key, names=(item_id,)))

    async def take(self, most: int = 100) -> list[str]:
        return [entry(record) for record in await self.catalog.take(most)]

    async def _commit(self, *ops: Op) -> None:
        at, self._position = self._position, self._position + 1
        await self.store.commit([Commit(ITEMS_TAG, "me", CATALOG, at, at + 1, ops)])


def entry(record: Record) -> str:
    parsed = parse(record, Rules())
    assert isinstance(parsed, CatalogueEntry)
    return parsed.item_id


def hash_of(title: str) -> bytes:
    return text_hash(canonical_text({"title": title})).encode()


def play(scene: Callable[[Items], Awaitable[None]]) -> None:
    async def run() -> None:
        await scene(await Items().open())

    asyncio.run(run())


def test_items_come_newest_first_but_for_those_that_have_a_vector_of_their_text_or_are_withdrawn() -> None:
    async def scene(at: Items) -> None:
        await at.put("no vector")
        await at.put("newest", e=b"1", t=b"[]", vh=hash_of("newest"), m=b"new")
        await at.put("beside", e_new=b"1", t_new=b"[]", vh_new=hash_of("beside"), m=b"old")
        await at.put("of another text", e_new=b"1", t_new=b"[]", vh_new=b"?", m=b"old")
        await at.put("of the other", e=b"1", t=b"[]", vh=hash_of("of the other"), m=b"old")
        await at.put("removed", t=b"[]", vh=hash_of("removed"), m=b"new")
        await at.put("gone")
        await at.withdraw("gone")
        assert await at.take(2) == ["removed", "of the other"]
        assert await at.take(2) == ["of another text", "no vector"]
        assert await at.take() == []

    play(scene)


def test_what_changes_comes_before_what_is_left_and_each_once() -> None:
    async def scene(at: Items) -> None:
        for number in range(6):
            await at.put(f"i{number}")
        assert await at.take(2) == ["i5", "i4"]
        await at.put("new")
        await at.put("i0")
        assert await at.take(3) == ["new", "i0", "i3"]
        await at.withdraw("i2")
        assert await at.take() == ["i1", "i0"], "what changed is looked at by who embeds: it may have its vector now"

    play(scene)


def test_a_vector_that_was_removed_without_a_word_is_missed_as_long_as_the_items_are_not_complete() -> None:
    async def scene(at: Items) -> None:
        await at.put("a", e=b"1", t=b"[]", vh=hash_of("a"), m=b"new")
        assert await at.take() == []
        await at._commit(Op("hdel", at.store.keys.item("a"), names=(TEXT_VECTOR,)))
        await at.store.write(at.store.keys.owner(ITEMS_TAG), {MODELS: b"m-1 m-2"})
        at.now_s += 30
        assert await at.take() == [], "all items have its vectors: nobody looks"
        await at.store.write(at.store.keys.owner(ITEMS_TAG), {MODELS: b"m-1 ~m-2"})
        assert await at.take() == ["a"]
        assert await at.take() == [], "and again after half a minute only"
        at.now_s += 30
        assert await at.take() == ["a"]

    play(scene)


def test_it_says_how_many_have_a_vector_and_how_fast_that_grows() -> None:
    async def scene(at: Items) -> None:
        await at.put("has", e=b"1", t=b"[]", vh=hash_of("has"), m=b"new")
        for number in range(9):
            await at.put(f"i{number}")
        assert at.catalog.report() == {}
        reports = []
        for _ in range(4):
            await at.take(3)
            reports.append(at.catalog.report())
            at.now_s += 2
        assert reports == [
            {"done": 1, "total": 10, "per_s": 0.0},
            {"done": 4, "total": 10, "per_s": 1.5},
            {"done": 7, "total": 10, "per_s": 1.5},
            {"done": 10, "total": 10, "per_s": 1.5},
        ], "those in hand are not done"
        at.now_s += 3600
        await at.take()
        assert at.catalog.report()["per_s"] == 0.0, "a pause of an hour says nothing about the pace"

    play(scene)


def test_nothing_is_given_while_another_process_has_the_catalogue_nor_while_the_state_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.stored_texts._RETRY_S", 0.0)

    async def scene(at: Items) -> None:
        await at.put("a")
        await at.put("b")
        at.ours = False
        assert await at.take() == [] and at.catalog.report() == {}
        at.ours = True
        assert await at.take(1) == ["b"]
        there = at.store.read

        async def away(requests: object) -> list[list[bytes | None]]:
            raise StoreUnavailableError("away")

        at.store.read = away  # type: ignore[method-assign]
        assert await at.take() == []
        at.store.read = there  # type: ignore[method-assign]
        assert await at.take() == ["a"]
        at.ours = False
        assert await at.take() == []
        at.ours = True
        assert await at.take() == ["b", "a"], "whoever had it meanwhile may have done some: all are looked at again"

    play(scene)


def test_what_is_stored_of_a_text_is_said_for_each_embedder() -> None:
    async def scene(at: Items) -> None:
        both = {beside(TEXT_VECTOR, "old"): b"1", beside(TAGS, "old"): b"[]", beside(VECTOR_HASH, "old"): b"h"}
        newest = {EMBEDDER: b"new", TEXT_VECTOR: b"2", TAGS: b'["t"]', VECTOR_HASH: b"h2"}
        await at.put("a", **{name.replace(":", "_"): value for name, value in (both | newest).items()})
        (of_new,) = await stored_texts(at.store, ["a"], "new", ["old"])
        (of_old,) = await stored_texts(at.store, ["a"], "old", ["new"])
        (of_third,) = await stored_texts(at.store, ["a"], "third")
        assert (of_new.vector_hash, of_new.tags, of_new.has_others) == ("h2", b'["t"]', True)
        assert (of_old.vector_hash, of_old.tags, of_old.has_others) == ("h", b"[]", True)
        assert (of_third.vector_hash, of_third.tags, of_third.has_others) == (None, None, True)
        (unknown,) = await stored_texts(at.store, ["nobody"], "new", ["old"])
        assert not unknown.is_listed and not unknown.has_others and not unknown.has_vector_of(["h"])

    play(scene)
