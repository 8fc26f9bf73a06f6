"""Defines the topics, the types of their events, and what a deployment accepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from context.times import unit_of
from context.units import MINUTE_MS
from index.state.keys import CONTEXT_TAG, ITEMS_TAG, RULES_TAG, partition_tag, showings_tag
from index.state.records import Vector

CLICKSTREAM = "clickstream"
EXPOSURES = "exposures"
CATALOG = "catalog"
ITEM_VECTORS = "item-vectors"
CONTEXT = "context"
SCENARIO_RULES = "rules"  # of lists, by scenario; `Rules` are a deployment's own
USERS = "users"
DEAD_LETTERS = "dead-letters"
CONSUMED = (CLICKSTREAM, USERS, CATALOG, ITEM_VECTORS, CONTEXT, SCENARIO_RULES)
PARTITIONED = (CLICKSTREAM, USERS, EXPOSURES)  # by user; the other topics have one partition
COMPACTED = (CATALOG, ITEM_VECTORS, CONTEXT, SCENARIO_RULES, USERS)

FORGET = "forget"
SENT_MS = "sent-ms"  # header: when a player sent a record whose timestamp is another time
FAST_CLOCK_MS = 5 * 60 * 1000  # producers' clocks may run ahead of the broker's by this much


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of click: its weight counts for popularity; `remembered` ones stay "seen" after they leave the window."""

    name: str
    weight: int
    remembered: bool = False


DEFAULT_KINDS = (
    Kind("view", 1),
    Kind("cart", 3),
    Kind("purchase", 5, remembered=True),
    Kind("like", 2),
    Kind("dislike", -2),
    Kind("remove", -1),
)


RELOAD_MS = 30 * MINUTE_MS


@dataclass(frozen=True, slots=True)
class Rules:
    """What a deployment accepts: kinds by code, the dimension of each known embedder's vectors, what a reload is."""

    kinds: tuple[Kind, ...] = DEFAULT_KINDS
    embedders: Mapping[str, int] = field(default_factory=dict)
    reload_ms: int = RELOAD_MS  # a reload folds this long after the view before it; 0: never
    showings: bool = False  # whether lists that were shown are counted
    codes: Mapping[str, int] = field(init=False, compare=False, repr=False)  # by name of the kind

    def __post_init__(self) -> None:
        codes = {kind.name: code for code, kind in reversed([*enumerate(self.kinds)])}
        object.__setattr__(self, "codes", codes)

    @property
    def consumed(self) -> tuple[str, ...]:
        """The topics that are applied to the live state."""
        return (*CONSUMED, EXPOSURES) if self.showings else CONSUMED

    def kind_code(self, name: str) -> int | None:
        return self.codes.get(name)


class Record(NamedTuple):
    """A Kafka record as consumed; `timestamp_ms` is the broker's or producer's record timestamp."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()

    @property
    def has_time(self) -> bool:
        """Whether Kafka's time of it is one; a record without is malformed, whatever it holds."""
        return unit_of(self.timestamp_ms) == "milliseconds"

    @property
    def size(self) -> int:
        """Bytes of key and value."""
        return len(self.value or b"") + len(self.key or b"")


class MalformedError(Exception):
    """A record that cannot be accepted; goes to `dead-letters` with `reason` and `field`.

    `others` are what else is wrong with it, where somebody asked.
    """

    def __init__(self, field: str, reason: str, others: Sequence[MalformedError] = ()) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason, self.others = field, reason, others


class Click(NamedTuple):
    """An applied kind of interaction; `ts_ms` is the clamped event time, `raw_ts_ms` what the producer said."""

    event_id: str
    user_id: str
    item_id: str
    kind: int
    ts_ms: int
    raw_ts_ms: int
    location: str = ""
    session_id: str = ""
    recommendation_id: str = ""
    page_id: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """The user asks to be forgotten: everything up to `ts_ms` goes."""

    event_id: str
    user_id: str
    ts_ms: int
    raw_ts_ms: int


@dataclass(frozen=True, slots=True)
class Profile:
    """A user's profile; `content` is canonical JSON of {"numeric", "categorical"}, None = removed."""

    user_id: str
    content: bytes | None
    ts_ms: int


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """An item of the catalogue; `fields` is None when it was withdrawn.

    `sent` are the fields with the labels as they were sent, None where folding changed none: builds before this one and
    other services make texts and hashes of these.
    """

    item_id: str
    fields: Mapping[str, Any] | None
    sent: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class VectorEntry:
    """An item's text vector [d_text] and tags; `vector` is None when it was removed."""

    item_id: str
    embedder: str
    vector: Vector | None
    tags: tuple[str, ...]
    text_hash: str | None


@dataclass(frozen=True, slots=True)
class ContextEntry:
    """The context of one location as canonical JSON; None = removed."""

    location: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class ScenarioEntry:
    """The rule of one scenario's lists as canonical JSON; None = removed."""

    scenario: str
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Exposure:
    """One list as a user was shown it, best first; `ts_ms` is clamped as that of clicks.

    In an experiment with its id and the user's arm.
    """

    recommendation_id: str
    user_id: str
    ts_ms: int
    shown: tuple[str, ...]
    page_id: str = ""
    location: str = ""
    model: str = ""
    served_by: str = ""
    experiment: str = ""
    arm: str = ""
    scenario: str = ""
    list: str = ""  # the named list; "" for a user's recommendations
    ranker: str = ""  # what ordered it; "" for the first stage
    slots: tuple[str, ...] = ()  # of `shown`, "" where an item's is not known


Event = Click | Forget | Profile | CatalogueEntry | VectorEntry | ContextEntry | ScenarioEntry | Exposure

TAG_TOPICS: Mapping[str, tuple[str, ...]] = {
    ITEMS_TAG: (CATALOG, ITEM_VECTORS),
    CONTEXT_TAG: (CONTEXT,),
    RULES_TAG: (SCENARIO_RULES,),
}
_TAG_OF = {topic: tag for tag, topics in TAG_TOPICS.items() for topic in topics}  # of topics with one partition
USER_TOPICS = (USERS, CLICKSTREAM)  # the order in which one batch applies them: a profile before the clicks


def tag_of(topic: str, partition: int) -> str:
    """The unit of atomic writing that a topic's partition belongs to."""
    if topic == EXPOSURES:
        return showings_tag(partition)
    return _TAG_OF.get(topic) or partition_tag(partition)


def topics_of(tag: str) -> tuple[str, ...]:
    """The topics whose positions are kept under a tag."""
    return (EXPOSURES,) if is_showings(tag) else TAG_TOPICS.get(tag, USER_TOPICS)


def is_showings(tag: str) -> bool:
    """Whether a tag is that of a partition of `exposures`."""
    return tag.startswith(showings_tag(0)[:-1]) and tag[1:].isdecimal()


TOPIC_ORDER = (
    USERS,
    CATALOG,
    ITEM_VECTORS,
    CONTEXT,
    SCENARIO_RULES,
    CLICKSTREAM,
)  # ties of the record timestamp, first to last
