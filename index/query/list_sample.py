"""Notes the features that a list was ordered by, and from which applied positions they were read.

A sampled exposure carries them, so that a replay of the log up to just these positions can be compared. Parts of the
live state are read apart, and each has positions of its own.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as EncodingError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.items.search import Labels
from index.query.counts.popularity import CountsRead
from index.query.live_user import CONTEXT_PART, USER_PART, LiveUser
from index.ranking.features import FEATURES, VERSION, Floats

ITEMS_PART, POPULARITY_PART = "items", "popularity"
PARTS = (USER_PART, CONTEXT_PART, ITEMS_PART, POPULARITY_PART)
# Of a part by topic: the next offset to apply, or where it is read from all partitions a list of them. `at_ms`: when
# what decays was decayed.
Read = Mapping[str, int | Sequence[int]]
AT_MS = "at_ms"
_HALF = np.dtype("<f2")


@dataclass(frozen=True, slots=True, eq=False)
class SampledFeatures:
    """Features [m, F] of all items that were ordered, in half precision, and what was read, by part.

    `context` is the one that the request itself brought in place of the location's record.
    """

    item_ids: Sequence[str]  # [m]
    values: Floats
    read: Mapping[str, Read]
    context: Mapping[str, Any] | None = None
    version: int = VERSION  # of the features

    def to_dict(self) -> dict[str, Any]:
        """As an exposure carries it."""
        values = b64encode(self.values.astype(_HALF).tobytes()).decode()
        found = {"version": self.version, "items": self.item_ids, "values": values, "read": self.read}
        return found if self.context is None else {**found, "context": self.context}

    @classmethod
    def of_dict(cls, body: Mapping[str, Any]) -> SampledFeatures:
        """Inverse of `to_dict`. Raises ValueError for anything else; other versions have no values [0, 0]."""
        try:
            items, read, version = [*map(str, body["items"])], dict(body["read"]), int(body["version"])
            raw = np.frombuffer(b64decode(body["values"], validate=True), _HALF)
            columns = len(FEATURES) if version == VERSION else 0
            values = raw.astype(np.float32).reshape(len(items), columns) if columns else np.zeros((0, 0), np.float32)
            missing = [part for part in PARTS if part not in read]
        except (KeyError, TypeError, ValueError, EncodingError) as error:
            raise ValueError(f"features of an exposure cannot be read: {error!r}") from error
        if missing:
            raise ValueError(f"features of an exposure lack what was read of {', '.join(missing)}")
        return cls(items, values, read, body.get("context"), version)


class ListSample:
    """One list while it is ordered; `shared` says what is read of parts that all users share, None: not known now."""

    def __init__(self, shared: Callable[[], Mapping[str, Read] | None]) -> None:
        self._shared = shared
        self._noted: tuple[Labels, Floats, Mapping[str, Read] | None] | None = None

    def note(self, labels: Labels, features: Floats) -> None:
        """What is ordered now, labels [m] and features [m, F]; the last time counts."""
        self._noted = labels, features, self._shared()

    def found(
        self, user: LiveUser | None, ids_of: Callable[[Labels], list[str]], context: Mapping[str, Any] | None
    ) -> SampledFeatures | None:
        """What was noted; None without a list, or where some part was changing while it was read."""
        if self._noted is None or user is None or user.read is None:
            return None
        labels, features, shared = self._noted
        return None if shared is None else SampledFeatures(ids_of(labels), features, {**user.read, **shared}, context)


def shared_parts(items: Mapping[str, int] | None, counts: CountsRead | None) -> dict[str, Read] | None:
    """What is read of parts that all users share; None where that is not known."""
    if items is None or counts is None:
        return None
    topics = {topic for positions in counts.positions for topic in positions}
    by_topic = {topic: [positions.get(topic, 0) for positions in counts.positions] for topic in sorted(topics)}
    return {ITEMS_PART: items, POPULARITY_PART: {**by_topic, AT_MS: counts.now_ms}}
