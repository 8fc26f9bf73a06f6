"""The embed role over a broker and an endpoint: what its lanes leave when models come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy.models.registry import Registry
from deploy.roles.embed import EmbedRole
from deploy.runtime.producer import EventProducer
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.settings import Settings, load
from deploy.texts.models import TextSource
from encoder.text.endpoint_models import EndpointEmbedder
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.memory_store import MemoryStore
from streams.events import CATALOG
from tests.support.llm_server import DIMENSION, MODEL, LlmServer, letters
from tests.support.saved_models import saved_model

pytestmark = pytest.mark.servers

OTHER, OTHER_DIMENSION = "other-embedder", 16
TS_MS = 1_760_000_000_000


class Deployment:
    """A broker, an endpoint, and a registry with two models of one embedder and one of another."""

    def __init__(self, folder: Path) -> None:
        self.server, self.store = LlmServer(letters).start(), MemoryStore()
        self.server.dimensions[OTHER] = OTHER_DIMENSION
        self.broker = Broker(topic_partitions(1), folder / "broker.log")
        registry = Registry(folder / "registry")
        made = ((MODEL, DIMENSION), (MODEL, DIMENSION), (OTHER, OTHER_DIMENSION))
        self.a, self.b, self.other = (
            registry.add(saved_model(folder / "made", seed, embedder=name, sizes={"d_text": dimension}))
            for seed, (name, dimension) in enumerate(made)
        )
        environ = {
            "KAFKA": self.broker.start(),
            "STATE": str(folder / "state"),
            "MODELS": str(folder / "registry"),
            "MODEL": str(folder / "none"),
            "EMBED_URL": self.server.url,
            "EMBED_MODEL": MODEL,
            "EMBEDDERS": f"{MODEL}:{DIMENSION},{OTHER}:{OTHER_DIMENSION}",
        }
        self.settings: Settings = load({f"PERSEID_{name}": value for name, value in environ.items()})
        self.producer = EventProducer(self.settings.kafka_config())

    @asynccontextmanager
    async def role(self) -> AsyncIterator[EmbedRole]:
        source = TextSource(self.settings)
        role = EmbedRole(self.store, self.settings, source, self.producer)
        try:
            yield role
        finally:
            await role.close()
            source.close()

    async def change(self, after: Aliases) -> None:
        assert await change_aliases(self.store, await read_aliases(self.store), after)

    async def put(self, item_id: str) -> None:
        body = {"item_id": item_id, "title": item_id, "ts_ms": TS_MS}
        await self.producer.send(CATALOG, item_id.encode(), orjson.dumps(body))

    def stop(self) -> None:
        self.server.stop()
        self.producer.close()
        self.broker.stop()


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path)
    yield deployment
    deployment.stop()


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(run())


async def until(check: Callable[[], Any]) -> None:
    while not check():
        await asyncio.sleep(0.02)


def counted(role: EmbedRole, name: str) -> int:
    return int(role.report()["counters"].get(name, 0))


def test_an_answer_under_way_is_not_asked_for_again_by_the_next_champion(at: Deployment) -> None:
    async def scene() -> None:
        await at.change(Aliases(at.a))
        async with at.role() as role:
            await role.look()
            at.server.released.clear()
            await at.put("lamp")
            await until(lambda: at.server.requests)
            await at.change(Aliases(at.b, "", at.a, 1))
            looking = asyncio.create_task(role.look())
            await asyncio.sleep(0.3)
            assert not looking.done() and len(at.server.requests) == 1
            at.server.released.set()
            await looking
            assert role.report()["model"] == at.b
            await until(lambda: counted(role, "published") or counted(role, "unchanged"))
            assert len(at.server.requests) == 1, "it is paid for once"

    play(scene)


def test_what_belongs_to_a_model_that_is_gone_is_let_go(at: Deployment) -> None:
    async def scene() -> None:
        await at.change(Aliases(at.a, at.other))
        async with at.role() as role:
            await role.look()
            models = [lane.model for lane in role._lanes.values()]
            clients = [model.embedder._client._http for model in models if isinstance(model.embedder, EndpointEmbedder)]
            assert {*role._documents} == {at.a, at.other}
            assert all({*document} == {"metadata", "config"} for document in role._documents.values())
            await at.change(Aliases(at.b))
            await role.look()
            assert [client.is_closed for client in clients] == [True, True]
            assert {*role._documents} == {*role._lanes} == {at.b}

    play(scene)


def test_only_who_has_the_catalogue_says_how_far_texts_are(at: Deployment) -> None:
    async def scene() -> None:
        await at.change(Aliases(at.a, at.other))
        async with at.role() as first, at.role() as second:
            await first.look()
            await second.look()
            await until(lambda: first.report()["embedding"] or second.report()["embedding"])
            owner, idle = (first, second) if first.report()["embedding"] else (second, first)
            assert {*owner.report()["embedding"]} == {at.other} and idle.report()["embedding"] == {}

    play(scene)


def test_a_model_that_is_the_champion_again_looks_through_the_whole_catalogue(at: Deployment) -> None:
    async def scene() -> None:
        await at.change(Aliases(at.a))
        await at.put("lamp")
        async with at.role() as role:
            await role.look()
            await until(lambda: counted(role, "published") == 1)
            for champion, before in ((at.b, at.a), (at.a, at.b)):
                await at.change(Aliases(champion, "", before, 1))
                await role.look()
                await until(lambda: counted(role, "published") == 1)
            assert len(at.server.requests) == 1

    play(scene)
