"""Hashes a live state, so that equal digests mean the same events applied in the same order.

Covers every user's window, profile and forget mark, popularity, positions, items, contexts and rules; no
floats, no caches, no counters. Reads the whole state, so it is for tests, replay and audits, not for the hot path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from encoder.text.item_text import canonical_text, text_hash
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, partition_tag, showings_tag
from index.state.pair_rows import PairRow
from index.state.records import (
    ITEM_FIELDS,
    PROFILE,
    STATE,
    ItemRecord,
    canonical_json,
    load_context,
    load_item,
    vector_field,
)
from index.state.store import LiveStore
from index.state.stored_user import load_user
from streams.events import topics_of
from streams.pipeline.partition_clock import PartitionClock
from streams.pipeline.user_state import leave_if_idle

_CHUNK = 500  # users or items read in one round trip


@dataclass(frozen=True, slots=True)
class Digest:
    """Hashes by part, so that a difference names where it is: one per user partition, `items`, `contexts`.

    And one per partition of `exposures` where these are applied, and `rules` where there was a record of them.
    """

    parts: dict[str, str]

    @property
    def hex(self) -> str:
        """One hash over all parts."""
        return hashlib.sha256(canonical_json(self.parts)).hexdigest()

    def differences(self, other: Digest) -> list[str]:
        """Names of the parts that differ, partitions by number."""
        different = (name for name in self.parts | other.parts if self.parts.get(name) != other.parts.get(name))
        return sorted(different, key=lambda name: (len(name) if name[1:].isdigit() else 0, name))


def digest_of(parts: dict[str, Any]) -> Digest:
    """Hashes plain values as `read_state` returns them."""
    return Digest({name: hashlib.sha256(canonical_json(value)).hexdigest() for name, value in parts.items()})


async def digest(store: LiveStore, partitions: int) -> Digest:
    """The digest of what a store holds."""
    return digest_of(await read_state(store, partitions))


async def read_state(store: LiveStore, partitions: int) -> dict[str, Any]:
    """Everything the digest covers as plain JSON values, by part."""
    parts: dict[str, Any] = {}
    for partition in range(partitions):
        tag = partition_tag(partition)
        parts[tag] = {
            "users": await _users(store, tag),
            "popularity": await _counts(store, tag, store.keys.popularity),
            **await _kinds(store, tag),
            **await _pairs(store, tag),
            "positions": await _positions(store, tag),
            **await _rules(store, tag),
        }
        parts |= await _showings(store, partition)
    parts["items"] = {"items": await _items(store), "positions": await _positions(store, ITEMS_TAG)}
    contexts = await store.read_all(store.keys.contexts())
    parts["contexts"] = {
        "contexts": {name: load_context(content) for name, content in contexts.items()},
        "positions": await _positions(store, CONTEXT_TAG),
    }
    return parts | await _scenarios(store)


async def _users(store: LiveStore, tag: str) -> dict[str, Any]:
    """Users who count as idle are left out of it, whether or not they were removed from the store by now."""
    clock, idle_ms = (await store.read([(store.keys.owner(tag), ("clock", "idle_ms"))]))[0]
    horizon_ms = PartitionClock.decode(clock).before(int(idle_ms or 0))
    users: dict[str, Any] = {}
    ids = sorted(await store.scores(store.keys.users(tag)))
    for chunk in _chunks(ids):
        rows = await store.read([(store.keys.user(tag, user_id), (STATE, PROFILE)) for user_id in chunk])
        for user_id, fields in zip(chunk, rows, strict=True):
            state = load_user(fields)
            if leave_if_idle(state, horizon_ms) and state.empty:
                continue
            columns = zip(state.hashes, state.items, state.kinds, state.ts_ms, strict=True)
            users[user_id] = {
                "window": [[str(hashed), item, kind, ts_ms] for hashed, item, kind, ts_ms in columns],
                "profile": orjson.loads(state.profile) if state.profile else None,
                "forgotten_ms": state.forgotten_ms,
            }
    return users


async def _counts(store: LiveStore, tag: str, key: Callable[[str, int], str]) -> dict[str, dict[str, int]]:
    buckets = await store.read_all(store.keys.popularity_buckets(tag))
    found = {bucket: await store.read_all(key(tag, int(bucket))) for bucket in sorted(buckets)}
    return {bucket: {name: int(count) for name, count in counts.items()} for bucket, counts in found.items()}


async def _kinds(store: LiveStore, tag: str) -> dict[str, Any]:
    """Counts by kind; nothing of a state that was applied before there were any."""
    found = {bucket: counts for bucket, counts in (await _counts(store, tag, store.keys.kinds)).items() if counts}
    return {"kinds": found} if found else {}


async def _pairs(store: LiveStore, tag: str) -> dict[str, Any]:
    """What was bought together, in the rows' order; nothing of a state that was applied before that was counted."""
    keys = store.keys
    found: dict[str, Any] = {}
    for bucket, purchases in sorted((await store.read_all(keys.pair_buckets(tag))).items()):
        stored = await store.read_all(keys.pairs(tag, int(bucket)))
        rows = {item_id: PairRow.of_stored(data) for item_id, data in stored.items()}
        items = {item_id: [row.baskets, [*map(list, row.others.items())]] for item_id, row in rows.items()}
        found[bucket] = {"purchases": int(purchases), "items": items}
    return {"pairs": found} if found else {}


async def _showings(store: LiveStore, partition: int) -> dict[str, Any]:
    """What a partition of `exposures` adds up to; nothing where none is applied."""
    keys, tag = store.keys, showings_tag(partition)
    positions = await _positions(store, tag)
    if not any(positions.values()):
        return {}
    buckets = sorted(await store.read_all(keys.showing_buckets(tag)))
    found = {bucket: await store.read_all(keys.showings(tag, int(bucket))) for bucket in buckets}
    counts = {bucket: {name: int(count) for name, count in items.items()} for bucket, items in found.items()}
    numbers = {name: int(number) for name, number in (await store.read_all(keys.shown_lists(tag))).items()}
    latest = [name for name, _ in sorted(numbers.items(), key=lambda entry: entry[1])]
    return {tag: {"showings": counts, "lists": latest, "positions": positions}}


async def _scenarios(store: LiveStore) -> dict[str, Any]:
    """Rules of scenarios; nothing where there never was a record, as in a state of a build that knew none."""
    positions = await _positions(store, RULES_TAG)
    if not any(positions.values()):
        return {}
    stored = await store.read_all(store.keys.scenario_rules())
    return {RULES_TAG: {"rules": {name: orjson.loads(rule) for name, rule in stored.items()}, "positions": positions}}


async def _positions(store: LiveStore, tag: str) -> dict[str, int]:
    owner = await store.read_all(store.keys.owner(tag))
    return {topic: int(owner.get(f"pos:{topic}", b"0")) for topic in topics_of(tag)}


async def _rules(store: LiveStore, tag: str) -> dict[str, str]:
    """Under which rules a partition was applied when it was more than one version: no replay gives the same."""
    ((rules,),) = await store.read([(store.keys.owner(tag), ("rules",))])
    return {"rules": rules.decode()} if rules and b"," in rules else {}


async def _items(store: LiveStore) -> dict[str, Any]:
    items: dict[str, Any] = {}
    fields = (*ITEM_FIELDS, vector_field(""))
    for chunk in _chunks(sorted(await store.scores(store.keys.item_index()))):
        rows = await store.read([(store.keys.item(item_id), fields) for item_id in chunk])
        for item_id, values in zip(chunk, rows, strict=True):
            item = load_item(item_id, values)
            items[item_id] = {
                "catalogue": item.catalogue,
                "tags": list(item.tags),
                "embedder": item.embedder,
                "vector": item.embedder is not None,  # its bytes may be gone: nobody serves that embedder any more
                "hashes": _hashes(item),
            }
    return items


def _hashes(item: ItemRecord) -> list[str | None]:
    """The hashes of the text that the vector is of and of the item's, which is taken with its labels folded."""
    if item.catalogue is None:
        return [item.vector_hash, item.text_hash]
    text = text_hash(canonical_text(item.catalogue))
    return [item.vector_hash if item.vector_hash is None or item.text_differs else text, text]


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK)]
