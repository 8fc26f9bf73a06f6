"""The indexer on a real Elasticsearch: what is in the live state is in the index, whoever writes, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from index.elastic.client import alias_of, index_of, pattern_of
from index.elastic.documents import decode
from index.elastic.indexer import ElasticWriter, sort_out
from index.elastic.settings import ElasticSettings
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.keys import ITEMS_TAG, Keys
from index.state.memory_store import MemoryStore
from index.state.records import MODELS
from index.state.store import Commit, LogIdentity, Op
from tests.index.elastic.compare import compare_items, complete_up_to, read_items, served_index
from tests.support.elastic_world import PATIENCE_S, Gate, indexing, reached, server, settings_of
from tests.support.index_api_world import World, item_vector, until


async def alias_now(store: MemoryStore, settings: ElasticSettings) -> str:
    return (await served_index(store, settings))[0]


async def forget_item(world: World, item_id: str) -> None:
    """Neither catalogue record nor vector are left."""
    key = world.store.keys.item(item_id)
    at = world.positions[ITEMS_TAG, "catalog"]
    fields = list(await world.store.read_all(key))
    ops = [Op("hdel", key, names=fields), Op("log", key, names=(item_id,))]
    await world.store.commit([Commit(ITEMS_TAG, world.tokens[ITEMS_TAG], "catalog", at, at + 1, ops)])
    world.positions[ITEMS_TAG, "catalog"] = at + 1


def test_items_changes_withdrawals_and_removals_are_in_the_index(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=8)
        async with server(settings) as client, indexing(store, client, settings) as indexer:
            await reached(indexer, store)
            assert await compare_items(store, client, settings) == []
            await world.put_item("tea1", "tea", 3, price=7.5, available=False, regions=["eu"], starts_ms=5)
            await world.put_item("new", "fan", 1, vector=False)
            await world.withdraw("tea2")
            await forget_item(world, "tea3")
            await reached(indexer, store)
            assert await compare_items(store, client, settings) == []
            found = await read_items(client, await alias_now(store, settings))
            np.testing.assert_array_equal(decode(found["tea1"]["vector_fp32"]), item_vector("tea", 3))
            assert found["tea1"]["price"] == 7.5 and found["tea1"]["tags"] == ["category:tea"]
            assert "vector_fp32" not in found["new"] and not found["new"]["gone"]
            assert not found["tea2"]["available"] and not found["tea2"]["gone"] and "vector_fp32" in found["tea2"]
            assert found["tea3"]["gone"]  # a tombstone keeps whoever is late from writing it again
            assert indexer.counts["refused"] == 0 and indexer.counts["indexed"] == 20

    asyncio.run(scenario())


def test_several_indexers_do_no_harm_and_a_late_one_changes_nothing(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=10)
        async with (
            server(settings) as client,
            indexing(store, client, settings) as one,
            indexing(store, client, settings) as other,
        ):
            for round_number in range(20):
                await world.put_item(f"tea{round_number % 5}", "tea", round_number % 7, price=float(round_number))
            await reached(one, store)
            await reached(other, store)
            assert one.counts["superseded"] + other.counts["superseded"] >= 20
            async with indexing(store, client, settings) as late:  # reads and writes everything once more
                await reached(late, store)
                assert late.counts["indexed"] == 0
            assert await compare_items(store, client, settings) == []

    asyncio.run(scenario())


def test_what_a_killed_indexer_wrote_but_did_not_show_is_shown_by_the_next(
    elasticsearch_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        await World(store).start(items=3)
        async with server(settings) as client:

            async def seen() -> int:
                found = await client.search(
                    index=await alias_now(store, settings), query={"exists": {"field": "item_id"}}
                )
                return int(found["hits"]["total"]["value"])

            with monkeypatch.context() as killed:
                killed.setattr(ElasticWriter, "complete", lambda *_: asyncio.Event().wait())
                async with indexing(store, client, settings) as first:

                    async def has_written() -> bool:
                        return first.counts["indexed"] > 0

                    await until(has_written, "the first indexer writes", PATIENCE_S)
                written = first.counts["indexed"]
            assert await seen() == 0
            async with indexing(store, client, settings) as second:
                await reached(second, store)
                assert await seen() == written == second.counts["superseded"] > 0

    asyncio.run(scenario())


def test_another_item_log_gets_an_index_of_its_own_and_the_old_one_goes(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        await World(store).start(items=3)
        emptied = MemoryStore(keys)
        await World(emptied).start(items=2)
        async with server(settings) as client:
            async with indexing(store, client, settings) as indexer:
                await reached(indexer, store)
            before = await alias_now(store, settings)
            neighbour = alias_of(f"{keys.prefix}-items-other", "g", "m")  # of somebody whose prefix begins like ours
            await client.indices.create(index=index_of(neighbour))
            async with indexing(emptied, client, settings) as indexer:
                await reached(indexer, emptied)
                assert await compare_items(emptied, client, settings) == []

                kept = {index_of(await alias_now(emptied, settings)), index_of(neighbour)}

                async def is_gone() -> bool:
                    return set(await client.indices.get(index=pattern_of(keys.prefix))) == kept

                await until(is_gone, "the old index is deleted, and no other", PATIENCE_S)
            assert await complete_up_to(client, before) is None

    asyncio.run(scenario())


def test_another_served_model_gets_an_index_of_its_own(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=2)
        async with server(settings) as client, indexing(store, client, settings) as indexer:
            await reached(indexer, store)
            await world.put_item("tea0", "tea", 4, model="M-2")
            await world.publish_model("M-2")

            async def is_there() -> bool:
                return await complete_up_to(client, await alias_now(store, settings)) is not None

            await until(is_there, "the index of the other model is complete", PATIENCE_S)
            assert await compare_items(store, client, settings) == []
            found = await read_items(client, await alias_now(store, settings))
            assert [name for name, body in found.items() if "vector_fp32" in body] == ["tea0"]

    asyncio.run(scenario())


def test_a_staged_model_has_its_index_before_it_is_served_and_the_one_before_keeps_its_own(
    elasticsearch_url: str, keys: Keys
) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=2)
        first = (await read_aliases(store)).champion
        await world.publish_model("M-2")
        await store.write(keys.cluster(), {"model": first.encode(), "challenger": b"M-2"})
        generation = (await store.read_log("", 0, 0)).generation

        async def indices() -> set[str]:
            return set(await client.indices.get(index=pattern_of(keys.prefix)))

        def of(*versions: str) -> set[str]:
            return {index_of(alias_of(settings.prefix, generation, version)) for version in versions}

        async with server(settings) as client, indexing(store, client, settings) as indexer:
            await reached(indexer, store)
            assert await indices() == of(first), "not before all items have its vectors"
            await world.put_item("tea0", "tea", 4, model="M-2")
            await store.write(keys.owner(ITEMS_TAG), {MODELS: f"M-2 {first}".encode()})

            async def is_there() -> bool:
                return await complete_up_to(client, alias_of(settings.prefix, generation, "M-2")) is not None

            await until(is_there, "the index of the staged model is complete", PATIENCE_S)
            aliases = Aliases(first, "M-2")
            assert await change_aliases(store, aliases, Aliases("M-2", "", first, 1))
            await reached(indexer, store)
            assert await compare_items(store, client, settings) == []
            assert await indices() == of(first, "M-2"), "it may be rolled back to"
            assert await change_aliases(store, Aliases("M-2", "", first, 1), Aliases("M-2"))

            async def is_alone() -> bool:
                return await indices() == of("M-2")

            await until(is_alone, "the index of the retired model is deleted", PATIENCE_S)

    asyncio.run(scenario())


def test_an_index_that_somebody_deletes_is_made_again_with_its_mapping(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(keys), settings_of(elasticsearch_url, keys.prefix)
        world = await World(store).start(items=3)
        async with server(settings) as client, indexing(store, client, settings) as indexer:
            await reached(indexer, store)
            alias = await alias_now(store, settings)
            await client.indices.delete(index=index_of(alias))
            await world.put_item("tea0", "tea", 2)

            async def is_there() -> bool:
                return await complete_up_to(client, alias) is not None

            await until(is_there, "the index is there again", PATIENCE_S)
            assert await compare_items(store, client, settings) == []
            mapping = await client.indices.get_mapping(index=alias)
            assert mapping[index_of(alias)]["mappings"]["dynamic"] == "strict"

    asyncio.run(scenario())


def test_writes_wait_for_a_server_that_is_away_and_nothing_is_lost(elasticsearch_url: str, keys: Keys) -> None:
    async def scenario() -> None:
        store = MemoryStore(keys)
        world = await World(store).start(items=5)
        async with Gate(elasticsearch_url) as gate:
            settings = settings_of(gate.url, keys.prefix)
            async with (
                server(settings_of(elasticsearch_url, keys.prefix)) as direct,
                server(settings) as client,
                indexing(store, client, settings) as indexer,
            ):
                await reached(indexer, store)
                gate.shut()
                for number in range(5):
                    await world.put_item(f"tea{number}", "tea", 6, price=number + 0.5)

                async def has_noticed() -> bool:
                    return indexer.counts["repeated"] >= 2

                await until(has_noticed, "writes are repeated", PATIENCE_S)
                assert await compare_items(store, direct, settings) != []
                gate.open()
                await reached(indexer, store)
                assert await compare_items(store, direct, settings) == []

    asyncio.run(scenario())


def result(item_id: str, status: int, error: str = "") -> Mapping[str, Any]:
    return {"index": {"_id": item_id, "status": status, "error": {"type": error, "reason": "because"}}}


def test_a_bulk_answer_is_sorted_item_by_item() -> None:
    outcome = sort_out([result("a", 201), result("b", 200), result("c", 409), result("d", 429), result("e", 400, "x")])
    assert (outcome.written, outcome.superseded) == (2, 1)
    assert outcome.again == ["d"] and outcome.refused == [("e", "x: because")]


def test_names_of_indices_are_lower_case_and_never_meet() -> None:
    names = {alias_of(prefix, "g", model) for prefix in ("a", "A", "_a", "a_") for model in ("m-1", "M-1", "m 1", "")}
    assert len(names) == 16
    assert all(name == name.lower() and name[0].isalnum() and " " not in name for name in names)


def test_an_api_key_is_not_shown() -> None:
    settings = ElasticSettings("https://user:secret@search:9200", api_key="geheim")
    assert "geheim" not in repr(settings) and settings.public == "https://search:9200"


def test_an_item_log_is_needed(keys: Keys) -> None:
    async def scenario() -> None:
        store = MemoryStore(keys)
        await store.claim(ITEMS_TAG, "t", 1, {"catalog": LogIdentity("c")})
        with pytest.raises(ValueError, match="start a worker"):
            await served_index(store, settings_of("http://127.0.0.1:1", keys.prefix))

    asyncio.run(scenario())
