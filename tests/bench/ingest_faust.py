"""An untuned Faust agent over a topic, as its documentation shows one: `BOOTSTRAP TOPIC EVENTS`. Prints events/s."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid

import faust
import orjson


async def main(bootstrap: str, topic: str, events: int) -> None:
    """Consumes until so many events were decoded."""
    app = faust.App(
        f"bench-{uuid.uuid4().hex[:8]}",
        broker=f"aiokafka://{bootstrap}",
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
    )
    count, began, done = 0, 0.0, asyncio.Event()

    async def consume(stream: faust.StreamT[bytes]) -> None:
        nonlocal count, began
        async for value in stream:
            began = began or time.monotonic()
            orjson.loads(value)
            count += 1
            if count == events:
                done.set()

    source = app.topic(topic, value_type=bytes, value_serializer="raw")
    app.agent(source, name="consume")(consume)
    await app.start()
    await done.wait()
    print(events / (time.monotonic() - began))
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
