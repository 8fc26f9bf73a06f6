"""Deliberate defects in the life of a model, as `tests.faults.mutations` has them for delivery."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from encoder.inference.batching import EncodeRequest
from index.api.loaded_model import LoadedModel, Services
from index.query.live_user import UserReader
from index.state.records import STATE, encode_vectors, vector_field
from index.state.store import FencedError, Op, StoreUnavailableError
from index.state.user_columns import decode_state
from streams.pipeline import user_writer, write_plan
from streams.pipeline.encoders import Encoders
from streams.pipeline.lease import PartitionLease
from streams.pipeline.user_writer import UserWriter

STALE_FILL = "stale-fill"  # the filler writes a vector of a window that it read before an event
NO_HKEEP = "no-hkeep"  # vectors of models that a worker does not write stay when it writes a window anew
EARLY = "promotes-early"  # a model is promoted before its gates are passed
LEAVES = "leaves-vectors"  # the vectors of a retired model are not looked for
MIXED = "mixes-models"  # an API process reads a user's vectors of another model than its items'
SHOWN = {  # by what each is known
    STALE_FILL: "are off by",
    NO_HKEEP: "are off by",
    EARLY: "users have vectors",
    LEAVES: " has v:",
    MIXED: "scores are not this model's",
}
_BETWEEN_S = 1.0  # from reading a window to writing its vectors
_writing: set[asyncio.Task[None]] = set()


def mutate_filling(mutation: str) -> None:
    """Puts a worker process's defect in place."""
    if mutation == STALE_FILL:
        UserWriter.fill = _fill_late  # type: ignore[method-assign]
    elif mutation == NO_HKEEP:
        for module in (write_plan, user_writer):
            module.Op = _op_without_hkeep  # type: ignore[attr-defined]
    elif mutation == LEAVES:
        Encoders.leaves = lambda self, mark: False  # type: ignore[method-assign]


def mutate_answers(mutation: str) -> None:
    """Puts an API process's defect in place."""
    if mutation == MIXED:
        Services.reader = _reader_of_previous  # type: ignore[method-assign]


async def _fill_late(self: UserWriter, lease: PartitionLease, missing: Mapping[str, frozenset[str]]) -> int:
    """As `UserWriter.fill`, but what it read is old when it is written, and events came in between."""
    keys = self._store.keys
    rows = await self._store.read([(keys.user(lease.tag, user), (STATE,)) for user in missing])
    found: dict[str, dict[str, bytes]] = {}
    for (user, versions), (stored,) in zip(missing.items(), rows, strict=True):
        state = decode_state(stored)
        for thread in [thread for thread in self._encoders if thread.version in versions and state.items]:
            request = EncodeRequest((lease.tag, user), state.items, state.kinds, state.ts_ms, None, 0)
            made = thread.encoder.encode_whole([request]).vectors[0]
            found.setdefault(user, {})[vector_field(thread.version)] = encode_vectors(made)
    ops = [Op("hset", keys.user(lease.tag, user), fields) for user, fields in found.items()]
    late = asyncio.create_task(_write_late(self, lease, ops))
    _writing.add(late)
    late.add_done_callback(_writing.discard)
    return len(found)


async def _write_late(writer: UserWriter, lease: PartitionLease, ops: Sequence[Op]) -> None:
    await asyncio.sleep(_BETWEEN_S)
    with suppress(FencedError, StoreUnavailableError):
        await writer.note(lease, ops)


def _op_without_hkeep(kind: str, key: str, *rest: object, **more: object) -> Op:
    """An operation that keeps only some fields keeps all: no field has the prefix that it is told."""
    op = Op(kind, key, *rest, **more)  # type: ignore[arg-type]
    return replace(op, names=("?",)) if kind == "hkeep" else op


def _reader_of_previous(self: Services, serving: LoadedModel) -> UserReader:
    """Reads vectors of the model that was served before, if there is one."""
    aliases, store = self.liveness.aliases, self.store
    return UserReader(store, self.liveness.partitions or 1, aliases.previous or serving.version, serving.model.dim)
