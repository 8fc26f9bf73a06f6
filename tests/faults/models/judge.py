"""What must be true of the models of a run: gates, vectors, answers, and that nothing of a retired one is left.

A stored vector is right if it is that of the window, or of the text vector, that is stored beside it: they are read at
once, so this may be asked while everything is under way. `judge` asks for all at the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

from deploy.models.gates import gates_of
from deploy.models.registry import Registry
from index.query.model import DOCUMENT
from index.state.aliases import read_aliases
from index.state.keys import ITEMS_TAG, partition_tag
from index.state.records import MODELS, STATE, TAGS, TEXT_VECTOR, decode_vectors, vector_field
from index.state.store import LiveStore, StoreUnavailableError
from index.state.user_columns import UserState, decode_state
from tests.faults.models.asks import Known, wrong_answers
from tests.faults.models.toys import REGISTRY, TOLERANCE, ToyModel, steady_vectors
from tests.faults.models.traffic import ASKED, SLEEPERS
from tests.faults.stage import Stage

_LOOK_S = 0.1  # between two looks at everything
_LONGEST_S = 600.0  # for all to be complete
_ITEM_TOLERANCE = 1e-5  # beside what rounding to halves takes or adds


@dataclass(frozen=True, slots=True)
class Row:
    """A user or an item as it is stored, read at once: what its vectors are made of, and these by version."""

    name: str
    state: UserState
    text: NDArray[np.float32] | None
    tags: Sequence[str]
    vectors: dict[str, bytes]

    @property
    def has_vectors(self) -> bool:
        """Whether there is something that vectors are made of."""
        return bool(self.state.items) or self.text is not None


def judge(stage: Stage) -> list[str]:
    """Everything that is wrong when a run is over. The workers of a mutation are dead, so nothing is waited for."""
    unfinished = []
    if not stage.options.mutation:
        wait_complete(stage)
        wait_gates(stage, stage.live.ask(read_aliases).challenger)
        unfinished = [*unfilled(stage), *left_behind(stage)]
    return [*stage.wrong, *unfinished, *wrong_vectors(stage), *_wrong_answers(stage)]


def closed_gates(stage: Stage, version: str) -> list[str]:
    """The gates that a model has not passed; looks about ten times a second if it is asked all the time."""
    try:
        gates = stage.live.ask(lambda store: gates_of(store, version, time.time_ns() // 1_000_000))
        closed = [str(gate) for gate in gates if not gate.passed]
    except StoreUnavailableError as error:
        closed = [str(error)]
    if closed:
        time.sleep(_LOOK_S)
    return closed


def incomplete(stage: Stage) -> str:
    """What has not just the vectors of all models with an alias, or who waits for an item; "" when all is done.

    Looks about ten times a second if it is asked all the time.
    """

    async def look(store: LiveStore) -> str:
        owners = [*map(partition_tag, range(stage.options.partitions)), ITEMS_TAG]
        versions = " ".join(sorted((await read_aliases(store)).versions)).encode()
        rows = await store.read([(store.keys.owner(tag), (MODELS,)) for tag in owners])
        marks = {tag: mark for tag, (mark,) in zip(owners, rows, strict=True) if mark != versions}
        left = await _waiting(store, stage.options.partitions)
        return f"{marks} instead of {versions!r}, waiting: {sorted(left)}" if marks or left else ""

    try:
        found = stage.live.ask(look)
    except StoreUnavailableError as error:
        found = str(error)
    if found:
        time.sleep(_LOOK_S)
    return found


def wait_complete(stage: Stage) -> None:
    """Until no worker has anything to fill or to remove."""
    _wait(stage, lambda: incomplete(stage), "nothing is left to fill or to remove")


def wait_gates(stage: Stage, version: str) -> None:
    """Until a model may be promoted."""

    def left() -> str:
        closed = "; ".join(closed_gates(stage, version))
        return closed and f"{closed}; {incomplete(stage) or 'nothing is to be filled'}"

    _wait(stage, left, f"the gates of {version} are passed")


def _wait(stage: Stage, look: Callable[[], str], what: str) -> None:
    """Until nothing is left; on busy cores that may take long, as long as what is left goes on changing."""
    left, since_s = "", time.monotonic()

    def at_rest() -> bool:
        nonlocal left, since_s
        found = look()
        if found != left:
            left, since_s = found, time.monotonic()
        return not found or time.monotonic() - since_s > stage.options.patience_s

    stage.wait(at_rest, what, _LONGEST_S)
    stage.wait(lambda: not left, f"{what}; left is {left}", _LOOK_S)


def filled(stage: Stage, version: str) -> float:
    """The share of users with a window who have vectors of a model; 0 while that cannot be known."""
    try:
        has = [version in row.vectors for row in _users(stage) if row.has_vectors]
    except StoreUnavailableError:
        return 0.0
    return sum(has) / max(len(has), 1)


def unfilled(stage: Stage, share: float = 1.0) -> list[str]:
    """Models with an alias of which too few users, or not all items, have vectors."""
    found = list[str]()
    for version in stage.live.ask(read_aliases).versions:
        for what, rows, least in (("users", _users(stage), share), ("items", _items(stage), 1.0)):
            wanted = [row for row in rows if row.has_vectors]
            has = sum(version in row.vectors for row in wanted)
            if has < least * len(wanted):
                found.append(f"{has} of {len(wanted)} {what} have vectors of {version}")
    return found


def wrong_vectors(stage: Stage) -> list[str]:
    """Users and items with a vector that is not made of what is stored beside it; none while Redis is away."""
    try:
        before = stage.live.ask(lambda store: _waiting(store, stage.options.partitions))
        users, items = _users(stage), _items(stage)
        after = stage.live.ask(lambda store: _waiting(store, stage.options.partitions))
    except StoreUnavailableError:
        return []
    found = list[str]()
    for version in Registry(stage.folder / REGISTRY).versions():
        model = ToyModel(stage.folder, version)
        found += _wrong_users(model, [row for row in users if row.name not in before | after])
        found += _wrong_items(model, items)
    return found


def _wrong_users(model: ToyModel, rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if model.version in row.vectors]
    yield from (f"{row.name} has vectors of {model.version} and no window" for row in mine if not row.has_vectors)
    mine = [row for row in mine if row.has_vectors]
    for row, wanted in zip(mine, model.users([row.state for row in mine]), strict=True):
        off = np.abs(decode_vectors(row.vectors[model.version], *wanted.shape) - wanted).max()
        if off > TOLERANCE:
            yield f"{row.name}'s vectors of {model.version} are off by {off:.3f}"


def _wrong_items(model: ToyModel, rows: Sequence[Row]) -> Iterator[str]:
    mine = [row for row in rows if model.version in row.vectors]
    yield from (f"{row.name} has a vector of {model.version} and no text vector" for row in mine if row.text is None)
    given = [(row, row.text) for row in mine if row.text is not None]
    if not given:
        return
    made = model.items(np.stack([text for _, text in given]), [row.tags for row, _ in given])
    for (row, _), wanted in zip(given, made, strict=True):
        rounded = np.spacing(np.abs(wanted).astype(np.float16)).astype(np.float32) / 2
        off = (np.abs(np.frombuffer(row.vectors[model.version], np.float32) - wanted) - rounded).max()
        if off > _ITEM_TOLERANCE:
            yield f"{row.name}'s vector of {model.version} is off by {off:.3f}"


def left_behind(stage: Stage) -> list[str]:
    """What Redis holds of models without an alias: vectors, documents and marks; the whole of it is looked through."""
    aliases = stage.live.ask(read_aliases)
    kept, found = {vector_field(version) for version in aliases.versions}, []
    documents = {f"{stage.live.keys.model(version)}" for version in aliases.versions}
    for key, fields in stage.live.hashes().items():
        found += [f"{key} has {name}" for name in fields if name.startswith(vector_field("")) and name not in kept]
        if DOCUMENT in fields and key.startswith(stage.live.keys.model("")) and key not in documents:
            found.append(f"{key} is there")
    return found


def _wrong_answers(stage: Stage) -> list[str]:
    rows = {row.name: row.state for row in _users(stage) if row.name in {*ASKED, *SLEEPERS}}
    models = {}
    for version in Registry(stage.folder / REGISTRY).versions():
        model = ToyModel(stage.folder, version)
        items = model.items(steady_vectors(), [()] * len(steady_vectors()))
        users = dict(zip(rows, model.users(list(rows.values())), strict=True))
        models[version] = Known(users, {f"item-{n}": vector for n, vector in enumerate(items)})
    wrong, stage.answers = wrong_answers(stage.folder, models)
    return wrong


def _users(stage: Stage) -> list[Row]:
    """All users, each as it was at one moment."""
    versions = Registry(stage.folder / REGISTRY).versions()

    async def read(store: LiveStore) -> list[Row]:
        found = []
        for tag in map(partition_tag, range(stage.options.partitions)):
            names = sorted(await store.scores(store.keys.users(tag)))
            places = [(store.keys.user(tag, name), (STATE, *map(vector_field, versions))) for name in names]
            for name, (state, *vectors) in zip(names, await store.read(places), strict=True):
                found.append(Row(name, decode_state(state), None, (), _known(versions, vectors)))
        return found

    return stage.live.ask(read)


def _items(stage: Stage) -> list[Row]:
    versions = Registry(stage.folder / REGISTRY).versions()

    async def read(store: LiveStore) -> list[Row]:
        names = sorted(await store.scores(store.keys.item_index()))
        places = [(store.keys.item(name), (TEXT_VECTOR, TAGS, *map(vector_field, versions))) for name in names]
        found = []
        for name, (text, tags, *vectors) in zip(names, await store.read(places), strict=True):
            row = None if text is None else np.frombuffer(text, np.float32)
            found.append(Row(name, UserState(), row, orjson.loads(tags or b"[]"), _known(versions, vectors)))
        return found

    return stage.live.ask(read)


def _known(versions: Sequence[str], vectors: Sequence[bytes | None]) -> dict[str, bytes]:
    return {version: vector for version, vector in zip(versions, vectors, strict=True) if vector is not None}


async def _waiting(store: LiveStore, partitions: int) -> set[str]:
    found = [await store.members(store.keys.waiting(tag)) for tag in map(partition_tag, range(partitions))]
    return set().union(*found)
