"""Says how a staged model is tried before it is promoted, as facts of the cluster's hash beside the aliases.

A shadow ranks a share of requests by it too, after they were answered. An experiment answers a share of users by it;
who these are follows from their ids and a salt, in every process alike.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import orjson

from index.state.keys import murmur2

PARTS = 10_000  # a share is so many parts of all: hundredths of a percent
Arm = Literal["champion", "challenger"]
ARMS: tuple[Arm, ...] = get_args(Arm)


def in_share(share: float, salt: str, name: str) -> bool:
    """Whether a name, as of a user or a request, is of a share: always the same names for one salt.

    The salt comes first: behind the name it would leave a trace of the partition, which has the same hash.

    >>> sum(in_share(0.25, "salt", f"u{number}") for number in range(10_000))
    2449
    """
    return (murmur2(f"{salt}:{name}".encode()) & 0x7FFFFFFF) % PARTS < round(share * PARTS)


@dataclass(frozen=True, slots=True)
class Shadow:
    """`share` of requests are ranked by the staged `model` too, since `since_ms` (wall time)."""

    model: str
    share: float
    since_ms: int

    def has(self, request_id: str) -> bool:
        """Whether a request is ranked by both."""
        return in_share(self.share, "shadow", request_id)

    def encode(self) -> bytes:
        """As it is stored."""
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, value: bytes | None) -> Shadow | None:
        """Inverse of `encode`; None of nothing."""
        return cls(**_known(cls, value)) if value else None


@dataclass(frozen=True, slots=True)
class Experiment:
    """`share` of users are answered by the staged `model`, the others by `champion`, from `since_ms` to `until_ms`.

    Wall time; `until_ms` is 0 while it runs. What has ended is kept until another one begins, for its results.
    """

    id: str
    champion: str
    model: str
    share: float
    salt: str
    since_ms: int
    until_ms: int = 0

    def arm(self, user_id: str) -> Arm:
        """Which of the two answers a user."""
        return "challenger" if in_share(self.share, self.salt, user_id) else "champion"

    def encode(self) -> bytes:
        """As it is stored."""
        return orjson.dumps(asdict(self))

    @classmethod
    def decode(cls, value: bytes | None) -> Experiment | None:
        """Inverse of `encode`; None of nothing."""
        return cls(**_known(cls, value)) if value else None


def _known(kind: Any, value: bytes) -> dict[str, Any]:
    """What this build knows of a stored object; a later one may say more."""
    return {name: found for name, found in orjson.loads(value).items() if name in kind.__dataclass_fields__}
