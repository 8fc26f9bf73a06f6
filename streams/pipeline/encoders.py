"""Holds the encoders of all models whose vectors are written, as one.

Their set may change between two batches; a batch works with those that were there when it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

from index.state.records import OF_EMBEDDER, SOME, beside, complete_models, vector_field
from streams.pipeline.encoder_thread import EncoderThread

VECTOR_PREFIX = vector_field("")


class Encoders:
    """Encoders by model version, that of the champion first; none where vectors are not wanted."""

    def __init__(self, *threads: EncoderThread) -> None:
        self._threads = {thread.version: thread for thread in threads}

    def __iter__(self) -> Iterator[EncoderThread]:
        return iter(tuple(self._threads.values()))

    def __bool__(self) -> bool:
        return bool(self._threads)

    @property
    def versions(self) -> tuple[str, ...]:
        """Whose vectors are written."""
        return tuple(self._threads)

    @property
    def kept_fields(self) -> tuple[str, ...]:
        """What `hkeep` is to leave in the hash of a user or an item that is written anew."""
        return (VECTOR_PREFIX, *map(vector_field, self._threads))

    @property
    def embedders(self) -> frozenset[str]:
        """Whose text vectors the models read."""
        return frozenset(thread.embedder or "" for thread in self)

    @property
    def kept_texts(self) -> tuple[tuple[str, ...], ...]:
        """What several `hkeep` are to leave beside an item's newest vector record; none where a model reads any."""
        named = sorted(self.embedders)
        if "" in named or not named:
            return ()
        return tuple((beside(name, ""), *(beside(name, embedder) for embedder in named)) for name in OF_EMBEDDER)

    @property
    def mark(self) -> str:
        """What is noted at a tag where all users or items have vectors of all these models and of no others."""
        return " ".join(sorted(self._threads))

    def written(self, mark: str) -> str:
        """What becomes of a mark when we write: "" where it names a model whose vectors we cannot renew.

        Of our other models some have vectors from now on, which `~` says.
        """
        complete = complete_models(mark)
        if not complete or not complete <= self._threads.keys():
            return ""
        return " ".join(sorted({*mark.split(), *(f"{SOME}{version}" for version in self._threads.keys() - complete)}))

    def leaves(self, mark: str) -> bool:
        """Whether vectors of models that are not ours may be where this is the mark."""
        return not mark or not {version.removeprefix(SOME) for version in mark.split()} <= self._threads.keys()

    def can_help(self, missing: Mapping[str, Sequence[str]]) -> bool:
        """Whether an item is known by now that a user waits for, as in `PartitionLease.waiting`."""
        ours = {version: items for version, items in missing.items() if version in self._threads}
        known = (item in self._threads[version].encoder.items for version, items in ours.items() for item in items)
        return not ours or any(known)

    def get(self, version: str) -> EncoderThread | None:
        """The encoder of a version."""
        return self._threads.get(version)

    def replace(self, threads: Sequence[EncoderThread]) -> None:
        """Other encoders from the next batch on; none may be in work now."""
        self._threads = {thread.version: thread for thread in threads}

    async def drop_tag(self, tag: str) -> None:
        """Forgets the cached keys and values of one partition's users."""
        await asyncio.gather(*(thread.drop_tag(tag) for thread in self))

    async def drop(self, tag: str, user_id: str) -> None:
        """Forgets one user's cached keys and values."""
        await asyncio.gather(*(thread.drop(tag, user_id) for thread in self))

    async def release(self) -> None:
        """Gives the memory of cached keys and values back."""
        await asyncio.gather(*(thread.release() for thread in self))
