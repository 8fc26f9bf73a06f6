"""Replays the log to the positions that sampled lists were made at, and compares their features.

What the API read apart has positions of its own: user, context, items and counts. Each is replayed to just these, by
the worker's engine, and the features are made by the function that the API calls.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from context.counting import counted
from index.query.list_sample import AT_MS, ITEMS_PART, POPULARITY_PART, SampledFeatures
from index.query.live_user import CONTEXT_PART, USER_PART
from index.ranking.features import FEATURES, VERSION, Floats
from index.state.keys import partition_of, partition_tag
from index.state.records import PROFILE, STATE, load_context
from index.state.stored_user import load_user
from index.state.user_columns import UserState
from streams.events import ITEM_VECTORS, PARTITIONED, MalformedError, Record, Rules, VectorEntry
from streams.kafka.topic_merge import Place
from streams.parsing import parse, parse_exposure
from streams.pipeline.engine import Engine
from streams.pipeline.lease import GapError
from streams.ranking.differences import OF_USER_VECTORS, differing
from streams.ranking.walk import ListQuestion, RankingWalk
from streams.replay.tape import LogTape

Targets = Mapping[Place, int]  # next offsets
SHARED_PARTS = (ITEMS_PART, POPULARITY_PART)  # that all users share; the other parts are each user's own
_EXAMPLES = 20


@dataclass(frozen=True, slots=True, eq=False)
class SampledList:
    """A list that was shown, with the features that it was ordered by."""

    recommendation_id: str
    user_id: str
    partition: int
    ts_ms: int
    location: str
    model: str
    ranker: str
    features: SampledFeatures

    @classmethod
    def of(cls, record: Record) -> SampledList | None:
        """The list of an exposure, None of one without features. Raises ValueError where they cannot be read."""
        if b'"features"' not in (record.value or b""):
            return None
        try:
            shown = parse_exposure(record)
        except MalformedError as error:
            raise ValueError(str(error)) from error
        body = orjson.loads(record.value or b"")
        if not isinstance(body.get("features"), dict):
            return None
        features = SampledFeatures.of_dict(body["features"])
        named = shown.recommendation_id, shown.user_id, record.partition, shown.ts_ms, shown.location, shown.model
        return cls(*named, str(body.get("ranker", "")), features)

    def targets(self, *parts: str) -> dict[Place, int]:
        """Where the log of each partition stood that these parts were made of.

        Raises ValueError for parts that stood elsewhere in the same log: one state cannot be at both.
        """
        found: dict[Place, int] = {}
        for part in parts:
            for topic, at in self.features.read[part].items():
                if topic == AT_MS:
                    continue
                home = self.partition if topic in PARTITIONED else 0
                for place, end in {(topic, home): at}.items() if isinstance(at, int) else _numbered(topic, at):
                    if found.setdefault(place, end) != end:
                        raise ValueError(f"{' and '.join(parts)} were read at {found[place]} and {end} of {place}")
        return found

    @property
    def counted_ms(self) -> int:
        """When counts were decayed."""
        at_ms = self.features.read[POPULARITY_PART][AT_MS]
        return at_ms if isinstance(at_ms, int) else 0


def _numbered(topic: str, ends: Sequence[int]) -> Iterator[tuple[Place, int]]:
    return (((topic, number), end) for number, end in enumerate(ends))


@dataclass(slots=True)
class SkewReport:
    """How many lists were compared, and which of their features differ."""

    compared: int = 0
    items: int = 0  # of these lists
    differing: int = 0
    unsettled: int = 0  # differ in user vectors alone, of which no position says what they were made of
    features: Counter[str] = field(default_factory=Counter)  # lists that differ in it
    largest: dict[str, float] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)  # by reason

    @property
    def alike(self) -> bool:
        """Whether there was something to compare, and nothing differs."""
        return self.compared > 0 and not self.differing

    def add(self, one: SampledList, replayed: Floats, unsettled: bool) -> None:
        """Compares one list; `unsettled`: no position says what its user's vectors were made of."""
        live = one.features.values
        different = differing(live, replayed)
        self.compared += 1
        self.items += len(live)
        names = [FEATURES[at] for at in np.flatnonzero(different.any(axis=0)).tolist()]
        if names and unsettled and OF_USER_VECTORS.issuperset(names):
            self.unsettled += 1
            return
        self.differing += bool(names)
        for name in names:
            at = FEATURES.index(name)
            # What is known on one side only counts as 0.
            gaps = np.nan_to_num(np.abs(live[:, at] - replayed[:, at]))
            worst = int(np.argmax(np.where(different[:, at], gaps, -1)))
            self.features[name] += 1
            self.largest[name] = max(self.largest.get(name, 0.0), float(gaps[worst]))
            if len(self.examples) < _EXAMPLES:
                self.examples.append(_example(one, name, worst, live[worst, at], replayed[worst, at]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "lists": self.compared,
            "items": self.items,
            "differing": self.differing,
            "unsettled": self.unsettled,
            "features": {
                name: {"lists": count, "largest": self.largest[name]} for name, count in self.features.most_common()
            },
            "examples": self.examples,
            "left_out": dict(self.left_out),
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.differing} of {counted(self.compared, 'list')} differ by more than half precision"
        if self.unsettled:
            yield f"{self.unsettled} more have user vectors of another text or profile, which acts at the next encoding"
        for name, count in self.features.most_common():
            yield f"  {name}: {counted(count, 'list')}, at most by {self.largest[name]:.4g}"
        for one in self.examples:
            yield "  {recommendation_id} {item_id} {feature}: live {live}, replayed {replayed}".format(**one)
        for reason, count in self.left_out.items():
            yield f"left out: {counted(count, 'list')}, {reason}"


def _example(one: SampledList, name: str, item: int, live: float, replayed: float) -> dict[str, Any]:
    said = {"live": float(live), "replayed": float(replayed)}
    named = {"recommendation_id": one.recommendation_id, "user_id": one.user_id, "item_id": one.features.item_ids[item]}
    return {**named, "feature": name, **{which: None if np.isnan(value) else value for which, value in said.items()}}


class SkewReplay:
    """Makes the features of sampled lists again.

    Args:
        tape: the log, up to the furthest position of any list.
        open_engine: an engine without an encoder on an empty live state.
        open_walk: makes features from what such an engine has written, with an encoder of its own.
    """

    def __init__(
        self,
        tape: LogTape,
        rules: Rules,
        open_engine: Callable[[], Awaitable[Engine]],
        open_walk: Callable[[Engine], RankingWalk],
    ) -> None:
        self._tape, self._rules = tape, rules
        self._open_engine, self._open_walk = open_engine, open_walk

    async def run(self, lists: Sequence[SampledList]) -> AsyncIterator[tuple[SampledList, Floats, bool]]:
        """Each list with its features, and whether no position says what its user's vectors were made of."""
        users, contexts = await self._users(lists), await self._contexts(lists)
        texts = self._texts()
        for chain in chains(lists, *SHARED_PARTS):
            engine = await self._open_engine()
            state, walk, before = _PlacedState(engine, self._tape), self._open_walk(engine), None
            for number, one in enumerate(chain):
                now = one.targets(*SHARED_PARTS), one.counted_ms
                if now != before:
                    await state.advance(now[0])
                    await walk.look(one.counted_ms)
                    before = now
                user, given = load_user(users[id(one)]), one.features.context
                record = load_context(contexts[id(one)]) if given is None else given
                question = ListQuestion(number, one.ts_ms, one.user_id, one.features.item_ids, one.location)
                asked = walk.ask(question, user, walk.context(one.location, record, one.ts_ms))
                yield one, asked.features, _is_unsettled(user, texts, one.targets(ITEMS_PART).get((ITEM_VECTORS, 0), 0))

    async def _users(self, lists: Sequence[SampledList]) -> dict[int, Sequence[bytes | None]]:
        """The user of each list as stored, which takes a tenth of the memory, by identity of the list."""
        found: dict[int, Sequence[bytes | None]] = {}
        for chain in chains(lists, USER_PART):
            engine = await self._open_engine()
            state, keys = _PlacedState(engine, self._tape), engine.store.keys
            for one in chain:
                await state.advance(one.targets(USER_PART))
                tag = partition_tag(partition_of(one.user_id, engine.partitions))
                (found[id(one)],) = await engine.store.read([(keys.user(tag, one.user_id), (STATE, PROFILE))])
        return found

    async def _contexts(self, lists: Sequence[SampledList]) -> dict[int, bytes | None]:
        """The record of each list's location, by identity of the list."""
        found = {}
        for chain in chains(lists, CONTEXT_PART):
            engine = await self._open_engine()
            state = _PlacedState(engine, self._tape)
            for one in chain:
                await state.advance(one.targets(CONTEXT_PART))
                ((found[id(one)],),) = await engine.store.read([(engine.store.keys.contexts(), [one.location])])
        return found

    def _texts(self) -> dict[str, list[int]]:
        """Offsets at which each item got another vector or tags than before."""
        found, last = dict[str, list[int]](), dict[str, bytes]()
        for record in self._tape.records((ITEM_VECTORS, 0), 0, sys.maxsize):
            try:
                event = parse(record, self._rules)
            except MalformedError:
                continue
            if isinstance(event, VectorEntry):
                body = b"" if event.vector is None else event.vector.tobytes() + orjson.dumps(event.tags)
                text = blake2b(body, digest_size=16).digest()
                if last.get(event.item_id) != text:
                    last[event.item_id] = text
                    found.setdefault(event.item_id, []).append(record.offset)
        return found


def _is_unsettled(user: UserState, texts: Mapping[str, Sequence[int]], end: int) -> bool:
    """Whether no position says of which texts and profile the user's vectors are.

    A new text or profile acts when the window is encoded anew, and a worker may know items before the API does.
    """
    if user.profile_ms >= 0 and user.ts_ms and user.profile_ms > user.ts_ms[0]:
        return True
    return any(len(texts[item]) > 1 or texts[item][0] >= end for item in {*user.items} & texts.keys())


class _PlacedState:
    """A live state that is taken to given positions of its topics, and no further."""

    def __init__(self, engine: Engine, tape: LogTape) -> None:
        self._engine, self._tape = engine, tape
        self._at: dict[Place, int] = {}

    async def advance(self, targets: Targets) -> None:
        """Applies what lies before these offsets."""
        records: list[Record] = []
        for place, end in targets.items():
            records += self._tape.records(place, self._at.get(place, 0), end)
            self._at[place] = max(end, self._at.get(place, 0))
        while records:
            try:
                await self._engine.apply(records)
                return
            except GapError:
                continue  # a compacted record is missing: accepted at the second look


def chains(lists: Sequence[SampledList], *parts: str) -> list[list[SampledList]]:
    """The lists in as few orders as go only forward in every partition that these parts were made of.

    Reads of one process are in such an order, those of several processes need not be.
    """
    aimed = [(one.targets(*parts), one) for one in lists]
    aimed.sort(key=lambda pair: (sum(pair[0].values()), pair[1].ts_ms))
    found: list[tuple[dict[Place, int], list[SampledList]]] = []
    for targets, one in aimed:
        for chain in found:
            if all(chain[0].get(place, 0) <= at for place, at in targets.items()):
                break
        else:
            chain = ({}, [])
            found.append(chain)
        chain[0].update(targets)
        chain[1].append(one)
    return [chain for _, chain in found]


def usable(lists: Sequence[SampledList], model: str, report: SkewReport) -> list[SampledList]:
    """Those that this build and this model can make again; the others are counted."""
    found = []
    for one in lists:
        if one.model != model:
            report.left_out[f"of model {one.model or '(none)'}, not {model}"] += 1
        elif one.features.version != VERSION:
            report.left_out[f"with features of version {one.features.version}, this build has {VERSION}"] += 1
        else:
            found.append(one)
    return found
