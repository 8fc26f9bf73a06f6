"""Writes the folder of the present rules: what this build makes of the fixed log and of the states of former rules.

    python -m tests.compatibility.make_rules

Run it when what is made is to differ, and say in CHANGELOG.md what differs. What a process stores is a fixture of all
later builds: of the folder of a former version, `state.json`, `decoded.json.gz` and a `replay.sqlite.gz` stay.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import uuid
from pathlib import Path
from unittest import mock

from deploy.servers.redis import RedisServer
from index.state.redis_store import RedisStore
from tests.compatibility import collect, stored
from tests.compatibility.make_fixtures import write, write_packed
from tests.compatibility.redis_dump import dump, restore
from tests.compatibility.world import FORMER, KEYS, MADE, expected, live


async def write_state(url: str) -> None:
    """What a worker makes of the log, and of each former state with one more click."""
    broker, store = stored.full_log(), RedisStore(url, KEYS)
    try:
        await live(store, broker)
        write("state.json", dump(url, KEYS.prefix), MADE)
        write_packed("decoded.json.gz", await stored.decode(store), MADE)
        for name, former in FORMER.items():
            restore(url, KEYS.prefix, expected("state.json", former))
            write(f"one_more_on_{name}.json", await stored.one_more(store), MADE)
    finally:
        await store.close()
    write("replayed.json", await stored.replayed(broker), MADE)
    with tempfile.TemporaryDirectory() as folder:
        write("exported.json", stored.make_folder(broker, Path(folder) / "shop"), MADE)


def write_files(folder: Path) -> None:
    """Files of a replay, begun here and under each former version."""
    path = stored.make_checkpoint(folder / "replay")
    write_packed("replay_checkpoint.json.gz", stored.read_checkpoint(path), MADE)
    if not (MADE / "replay.sqlite.gz").exists():  # for later versions; drawn anew it would differ in every run
        stored.pack(path, MADE / "replay.sqlite.gz")
    for name, former in FORMER.items():
        stored.unpack("replay.sqlite.gz", folder / name / "replay.sqlite", former)
        write_packed(f"replay_resumed_of_{name}.json.gz", stored.run_replay(folder / name), MADE)


def main() -> None:
    """Writes everything."""
    MADE.mkdir(exist_ok=True)
    rng = random.Random(1)
    drawn = mock.patch("uuid.uuid4", lambda: uuid.UUID(int=rng.getrandbits(128), version=4))
    with drawn, tempfile.TemporaryDirectory() as name:
        write("settings.json", collect.settings(), MADE)
        write("topics.json", collect.topics(), MADE)
        write("pipeline.json", asyncio.run(collect.run_through()), MADE)
        server = RedisServer()
        server.start()
        try:
            asyncio.run(write_state(server.url))
        finally:
            server.stop()
        write_files(Path(name))


if __name__ == "__main__":
    main()
