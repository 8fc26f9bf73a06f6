"""`perseid models` on a real Redis: what each command prints, its exit status, and one line for each refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from deploy.cli import run
from deploy.doctor.models import check_ranker
from deploy.models.registry import Registry
from deploy.runtime.process import now_ms
from deploy.servers.redis import RedisServer
from deploy.settings import load
from index.state.aliases import Aliases, change_aliases
from index.state.keys import ITEMS_TAG, Keys
from index.state.redis_store import RedisStore
from index.state.store import Commit, LogIdentity, Op
from tests.support.saved_models import saved_model
from tests.support.simple_rankers import ranker_of

Perseid = Callable[..., tuple[int, str]]


@pytest.fixture
def perseid(
    redis_server: RedisServer,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Perseid:
    """Runs `perseid models`; its exit status, and what it prints on both ways."""
    monkeypatch.setenv("PERSEID_REDIS", redis_server.url)
    monkeypatch.setenv("PERSEID_PREFIX", keys.prefix)
    monkeypatch.setenv("PERSEID_MODELS", str(tmp_path / "registry"))
    monkeypatch.setenv("PERSEID_EMBEDDERS", "hashed:8")

    def call(*words: str) -> tuple[int, str]:
        status = run(["models", *words])
        out, err = capsys.readouterr()
        return status, (out + err).rstrip()

    return call


def on(redis_server: RedisServer, keys: Keys, work: Callable[[RedisStore], Awaitable[None]]) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, keys)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(main())


def test_a_registry_is_filled_where_nothing_has_run_yet(
    perseid: Perseid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERSEID_MODELS")
    model, state = saved_model(tmp_path / "made", 0), tmp_path / "state"
    assert perseid("add", str(model), "--champion", "--state", str(state)) == (0, model.name)
    status, said = perseid("list", "--state", str(state))
    assert status == 0 and said.startswith(model.name) and said.endswith("champion")
    assert load({}, state=state).registry == str(state / "registry")
    assert Registry(state / "registry").aliases() == Aliases(model.name)
    status, said = perseid("stage", model.name, "--state", str(state))
    assert status == 1 and "no `perseid up` runs with" in said


def test_a_registry_is_filled_listed_and_shown(perseid: Perseid, tmp_path: Path) -> None:
    first, second = (saved_model(tmp_path / "made", seed) for seed in range(2))
    assert perseid("add", str(first), "--champion") == (0, first.name)
    status, said = perseid("add", str(second), "--champion")
    assert (status, said.partition(" has a champion, ")[2]) == (1, f"{first.name}: stage and promote")
    assert perseid("add", str(second)) == (0, second.name)
    assert Registry(tmp_path / "registry").aliases() == Aliases(first.name)
    status, said = perseid("add", str(second))
    assert (status, said.partition("\n")[2].partition(":")[0]) == (
        0,
        "it was there already, with the same weights; its card stays as it was",
    )
    status, said = perseid("list")
    assert status == 0 and len(said.splitlines()) == 2
    (line,) = (line for line in said.splitlines() if line.startswith(first.name))
    assert line.endswith("window 200  hashed  ndcg@10 0.5000  champion")
    cards = {card["version"]: card for card in json.loads(perseid("list", "--json")[1])}
    assert {version: card.pop("aliases") for version, card in cards.items()} == {
        first.name: ["champion"],
        second.name: [],
    }
    assert json.loads(perseid("show", second.name)[1]) == cards[second.name]
    status, said = perseid("show", "m-00000000")
    assert status == 1 and said.startswith("perseid: registry ") and "\n" not in said
    status, said = perseid("add", str(tmp_path))
    assert status == 1 and "holds no model" in said and "\n" not in said


def test_a_model_is_changed_by_commands(
    perseid: Perseid, redis_server: RedisServer, keys: Keys, tmp_path: Path
) -> None:
    a, b = (perseid("add", str(saved_model(tmp_path / "made", seed)))[1] for seed in range(2))
    assert perseid("stage", b) == (1, "perseid: no model is served yet: start a worker, which names the first one")

    async def serve(store: RedisStore) -> None:
        await store.ensure_cluster(2, ["view", "cart"])
        await store.write(keys.cluster(), {"window": b"200+56"})
        assert await change_aliases(store, Aliases(), Aliases(a))
        await store.claim(ITEMS_TAG, "token", 1, {"t": LogIdentity("c")})
        fields = {"c": b"{}", f"v:{a}": b"x"}
        ops = [Op("hset", keys.item("i"), fields), Op("log", keys.item("i"), names=("i",))]
        await store.commit([Commit(ITEMS_TAG, "token", "t", 0, 1, ops)])

    on(redis_server, keys, serve)
    status, said = perseid("status")
    assert status == 0 and said.splitlines() == [f"champion   {a}", "challenger -", "previous   -"]
    assert perseid("stage", b) == (0, f"{b} is staged; `perseid models status` shows how far it is")

    async def half_filled(store: RedisStore) -> None:
        filling = {"p0": {"total": 1_000, "looked": 250, "written": 250, "seconds": 5.0}}
        worker = {"role": "worker", "beat_ms": now_ms(), "models": [a, b], "filling": filling}
        far = {"done": 1_200, "total": 3_000, "per_s": 0.5, "seconds_left": 9_000.0, "pending": 2}
        texts = {"embedder": "large", "waiting": "8 tokens are spent", **far}
        embed = {"role": "embed", "beat_ms": now_ms(), "embedding": {b: texts, "m-other": {"refused": "no such one"}}}
        await store.write(keys.roles(), {"w": orjson.dumps(worker), "e": orjson.dumps(embed)})

    on(redis_server, keys, half_filled)
    status, said = perseid("status")
    assert status == 1 and said.splitlines()[3:7] == [
        "filling: 250 of 1,000 (25 %), 50/s, 0:15 left",
        f"texts      {b}: 1,200 of 3,000 by large, 2.5 h left, 2 without a usable answer; waits: 8 tokens are spent",
        "texts      m-other: not embedded: no such one",
        "WAIT listed items with a vector: 0 of 1",
    ]
    found = json.loads(perseid("status", "--json")[1])
    assert (found["challenger"], found["passed"]) == (b, False)
    assert found["progress"] == {"done": 250, "total": 1_000, "rate": 50.0, "seconds_left": 15.0}
    status, said = perseid("promote", b)
    assert status == 1 and "is not promoted: listed items with a vector: 0 of 1" in said and "\n" not in said

    async def filled(store: RedisStore) -> None:
        await store.commit([Commit(ITEMS_TAG, "token", "t", 1, 2, [Op("hset", keys.item("i"), {f"v:{b}": b"x"})])])
        worker = {"role": "worker", "beat_ms": now_ms(), "models": [a, b]}
        await store.write(keys.roles(), {"w": orjson.dumps(worker)})

    on(redis_server, keys, filled)
    assert perseid("status", "--wait")[0] == 0
    assert perseid("promote", b)[1].startswith(f"{b} is served")
    assert perseid("promote", b) == (1, f"perseid: {b} is served already")
    assert perseid("rollback") == (0, f"{a} is served again; `perseid models rollback` undoes that within 24 hours")
    assert perseid("retire", b) == (0, f"{b} is retired; its vectors are removed in the background")
    status, said = perseid("rollback")
    assert status == 1 and said.startswith("perseid: there is no previous model") and "\n" not in said
    assert perseid("stage", b)[0] == 0
    assert perseid("unstage") == (0, f"{b} is not staged any more")
    assert Registry(tmp_path / "registry").aliases() == Aliases(a)


def test_a_staged_model_is_tried_by_commands(
    perseid: Perseid, redis_server: RedisServer, keys: Keys, tmp_path: Path
) -> None:
    a, b = (perseid("add", str(saved_model(tmp_path / "made", seed)))[1] for seed in range(2))

    async def serve(store: RedisStore) -> None:
        await store.ensure_cluster(2, ["view", "cart"])
        await store.write(keys.cluster(), {"window": b"200+56"})
        await _named(store, Aliases(a))

    on(redis_server, keys, serve)
    assert perseid("experiment") == (
        1,
        "perseid: there was no experiment; begin one by `perseid models experiment VERSION=10%`",
    )
    for words, said in (
        (("stage", b, "--shadow", "1"), "perseid: '1' is no share: give percent"),
        (("shadow", f"{b}=1%"), f"perseid: {b} is not staged; stage it by"),
        (("shadow", "m-00000000=1%"), "perseid: registry "),
        (("shadow", b), f"perseid: '{b}' names no version and share"),
        (("shadow", "off"), "perseid: no request is ranked twice"),
        (("experiment", f"{b}=10%"), f"perseid: {b} is not staged; stage it by"),
        (("experiment", "off"), "perseid: no experiment is running"),
        (("experiment", "off", "--results"), "perseid: --results shows the last experiment; leave out 'off'"),
    ):
        status, output = perseid(*words)
        assert status == 1 and output.startswith(said) and "\n" not in output, output
    assert perseid("stage", b, "--shadow", "1%")[0] == 0
    assert perseid("status")[1].splitlines()[3] == "shadow     1 % of requests, 0 ranked by both"
    assert perseid("shadow", f"{b}=2.5%") == (0, f"{b} ranks 2.5 % of requests, too")
    status, said = perseid("experiment", f"{b}=10%")
    assert status == 1 and f"{b} answers nobody: listed items" in said and "shadowed requests: 0 of 200" in said
    assert perseid("shadow", f"{b}=0") == (0, "no request is ranked twice any more")
    status, said = perseid("experiment", f"{b}=0%", "--force")
    assert status == 1 and "an experiment needs users in both arms" in said
    status, said = perseid("experiment", f"{b}=10%", "--force")
    name = said.split()[1].rstrip(":")
    assert (status, said) == (0, f"experiment {name}: {b} answers 10 % of users, {a} the others")
    status, said = perseid("experiment", f"{b}=20%", "--force")
    assert (status, said) == (
        1,
        f"perseid: experiment {name} is running: end it by `perseid models experiment off` first",
    )
    assert perseid("experiment")[1].startswith(f"{name}: {b} answers 10 % of users, {a} the others, from ")
    found = json.loads(perseid("status", "--json")[1])
    assert (found["experiment"]["id"], found["shadow"]) == (name, None)
    assert perseid("experiment", "off") == (0, f"experiment {name} is over, {a} answers everybody")
    assert json.loads(perseid("experiment", "--json")[1])["experiment"]["until_ms"] > 0
    assert json.loads(perseid("status", "--json")[1])["experiment"] is None
    assert Registry(tmp_path / "registry").aliases() == Aliases(a, b)


def test_a_registry_that_could_not_be_told_is_said_and_told_later(
    perseid: Perseid, redis_server: RedisServer, keys: Keys, tmp_path: Path
) -> None:
    a, b = (perseid("add", str(saved_model(tmp_path / "made", seed)))[1] for seed in range(2))
    on(redis_server, keys, lambda store: _named(store, Aliases(a, "", b, 5)))
    aliases = tmp_path / "registry" / "aliases.json"
    aliases.write_text("{")
    status, said = perseid("rollback")
    assert (
        status == 0
        and said.splitlines()[0] == f"{b} is served again; `perseid models rollback` undoes that within 24 hours"
    )
    assert said.splitlines()[1].startswith("the registry was not told, the next command tells it: aliases.json of")
    aliases.unlink()
    assert perseid("status")[0] == 0
    assert Registry(tmp_path / "registry").aliases().champion == b


async def _named(store: RedisStore, aliases: Aliases) -> None:
    assert await change_aliases(store, Aliases(), aliases)


def test_a_live_state_that_is_away_is_one_line(perseid: Perseid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSEID_REDIS", "redis://127.0.0.1:1/0")
    status, said = perseid("rollback")
    assert status == 1 and said.startswith("perseid: the live state does not answer") and "\n" not in said


def test_a_ranker_is_added_shown_and_removed(
    perseid: Perseid, redis_server: RedisServer, keys: Keys, tmp_path: Path
) -> None:
    version, other = (saved_model(tmp_path / "made", seed).name for seed in range(2))
    assert perseid("add", str(tmp_path / "made" / version), "--champion") == (0, version)

    async def serve(store: RedisStore) -> None:
        assert await change_aliases(store, Aliases(), Aliases(version))

    on(redis_server, keys, serve)
    good, idle = ranker_of(version, sources=("retrieved", "placed")), ranker_of(version, better=False)
    for ranker in (good, idle, ranker_of(other)):
        ranker.save(tmp_path / ranker.version)
    status, said = perseid("add-ranker", str(tmp_path / good.version))
    assert status == 0
    assert said == (
        f"{good.version} is beside {version} and orders lists that were retrieved and placed, in force within seconds"
    )
    assert f"ranker {good.version}" in perseid("list")[1]
    shown = json.loads(perseid("show", version)[1])["ranker"]
    assert shown["version"] == good.version and shown["encoder"] == version
    (finding,) = check_ranker(load({}, redis=redis_server.url, prefix=keys.prefix))
    assert (finding.state, finding.version) == ("ok", version) and good.version in finding.what
    (finding,) = check_ranker(load({}, redis=redis_server.url, prefix=keys.prefix, ranker="r-00000000"))
    assert finding.state == "wrong" and "PERSEID_RANKER names r-00000000" in finding.what
    assert perseid("add-ranker", str(tmp_path / idle.version))[1].endswith("is off: it is no better")
    assert f"ranker {idle.version} (off)" in perseid("list")[1]
    status, said = perseid("add-ranker", str(tmp_path / ranker_of(other).version))
    assert status == 1 and f"belongs to {other}" in said and "\n" not in said
    (tmp_path / "registry" / "models" / version / "ranker.safetensors").write_bytes(b"half")
    assert "ranker damaged" in perseid("list")[1]
    assert perseid("remove-ranker", version) == (0, f"{version} has no ranker any more")
    assert "ranker" not in perseid("list")[1]
    (finding,) = check_ranker(load({}, redis=redis_server.url, prefix=keys.prefix))
    assert finding.state == "ok" and "has no ranker" in finding.what

    async def spoil(store: RedisStore) -> None:
        await store.write(store.keys.model(version), {**good.dump(), "ranker.safetensors": b"half"})

    on(redis_server, keys, spoil)
    (finding,) = check_ranker(load({}, redis=redis_server.url, prefix=keys.prefix))
    assert finding.state == "wrong" and f"perseid models remove-ranker {version}" in finding.remedy
