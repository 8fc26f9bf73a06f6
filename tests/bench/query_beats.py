"""A process that confirms every partition of a synthetic live state, as its worker would: `URL PREFIX PARTITIONS`."""

from __future__ import annotations

import asyncio
import sys

from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, Keys, partition_tag
from index.state.redis_store import RedisStore

_EVERY_S = 0.2  # as a worker


async def main(url: str, prefix: str, partitions: int) -> None:
    """Beats for ever."""
    store = RedisStore(url, Keys(prefix))
    tags = [*(partition_tag(number) for number in range(partitions)), ITEMS_TAG, CONTEXT_TAG, RULES_TAG]
    while True:
        await asyncio.gather(*(store.beat(tag, "bench", {}, True) for tag in tags))
        await asyncio.sleep(_EVERY_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
