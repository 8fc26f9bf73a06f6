"""Writes the fixtures of this folder; to be run at commit 9afcd80 and nowhere else, or they prove nothing.

    python -m tests.compatibility.make_fixtures

A function of fixed seeds: run twice it writes the same files, but for what is measured or drawn elsewhere (run id
of Redis in `state.json`, seconds in the checkpoints) and for floats in the last digit on another processor.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

from deploy.servers.redis import RedisServer
from index.state.redis_store import RedisStore
from tests.compatibility import collect, stored
from tests.compatibility.log_maker import LogMaker
from tests.compatibility.model_maker import make_model
from tests.compatibility.redis_dump import dump, restore
from tests.compatibility.world import FIXTURES, KEYS, LOG, Shown, live


def write(name: str, value: Any, folder: Path = FIXTURES) -> None:
    """A fixture file of JSON, a line for each entry."""
    named = isinstance(value, dict)
    rows = [f"{_json(key)}: {_json(part)}" for key, part in value.items()] if named else [_json(part) for part in value]
    content = ",\n".join(rows)
    (folder / name).write_text(f"{{\n{content}\n}}\n" if named else f"[\n{content}\n]\n", "utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def write_packed(name: str, value: Any, folder: Path = FIXTURES) -> None:
    """A large fixture file of JSON, gzipped."""
    (folder / name).write_bytes(gzip.compress(_json(value).encode(), mtime=0))


def write_names() -> None:
    """What `test_wire_names` reads."""
    write("openapi.json", json.loads(json.dumps(collect.openapi(), sort_keys=True)))
    write("settings.json", collect.settings())
    names = {
        "commands": collect.commands(),
        "topics": collect.topics(),
        "redis keys": collect.redis_keys(),
        "metrics": collect.metric_names(),
        "counters": collect.counter_names(),
    }
    write("names.json", names)
    write("pipeline.json", asyncio.run(collect.run_through()))


async def write_state(url: str, folder: Path) -> None:
    """A live state in Redis and everything that is asked of it."""
    broker, store = stored.full_log(), RedisStore(url, KEYS)
    try:
        await live(store, broker)
        content = dump(url, KEYS.prefix)
        write("state.json", content)
        write_packed("decoded.json.gz", await stored.decode(store))
        shutil.copy(await stored.make_snapshot(store, folder), FIXTURES / "items.snapshot")
        write_packed("snapshot.json.gz", stored.read_snapshot(folder / f"{stored.version()}.snapshot"))
        write("answers.json", await collect.api_answers(Shown(store)))
        restore(url, KEYS.prefix, content)
        write("one_more.json", await stored.one_more(store))
    finally:
        await store.close()
    write("replayed.json", await stored.replayed(broker))
    shutil.rmtree(stored.SHOP, ignore_errors=True)
    write("exported.json", stored.make_folder(broker, stored.SHOP))
    write_packed("folder.json.gz", stored.describe_folder(stored.SHOP))


def write_files(folder: Path) -> None:
    """Files of a replay, of a training run and of a state folder."""
    path = stored.make_checkpoint(folder / "replay")
    stored.pack(path, FIXTURES / "replay.sqlite.gz")
    write_packed("replay_checkpoint.json.gz", stored.read_checkpoint(path))
    write_packed("replay_resumed.json.gz", stored.run_replay(folder / "replay"))
    path = stored.make_training_checkpoint(folder / "training")
    shutil.copy(path, FIXTURES / "checkpoint.safetensors")
    write("training_resumed.json", stored.resume_training(folder / "training"))
    state = folder / "state"
    state.mkdir()
    stored.make_state_files(state)
    for name in ("vectors.npz", "up.env", "traffic.json"):
        shutil.copy(state / name, FIXTURES / f"state_{name}")
    stored.pack(state / "llm.sqlite3", FIXTURES / "state_llm.sqlite3.gz")
    write("state_files.json", stored.read_state_files(state))


def main() -> None:
    """Writes everything."""
    rng = random.Random(1)
    drawn = mock.patch("uuid.uuid4", lambda: uuid.UUID(int=rng.getrandbits(128), version=4))
    with drawn, tempfile.TemporaryDirectory() as name:
        make_model()
        rows = LogMaker().make()
        LOG.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        write_names()
        server = RedisServer()
        server.start()
        try:
            asyncio.run(write_state(server.url, Path(name)))
        finally:
            server.stop()
        write_files(Path(name))


if __name__ == "__main__":
    main()
