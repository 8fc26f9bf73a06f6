"""Reads one user's state and profile from the fields in which they are stored."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from index.state.user_columns import UserState, decode_state


def encode_profile(profile: bytes | None, profile_ms: int) -> bytes:
    """A profile with its time; a removed profile keeps its time, so that an older one cannot come back."""
    return struct.pack("<q", profile_ms) + (profile or b"")


def decode_profile(data: bytes | None) -> tuple[bytes | None, int]:
    """Inverse of `encode_profile`: (canonical JSON or None, time or -1)."""
    if not data:
        return None, -1
    return data[8:] or None, struct.unpack_from("<q", data)[0]


def load_user(fields: Sequence[bytes | None]) -> UserState:
    """A user from the values of the fields (`STATE`, `PROFILE`)."""
    state = decode_state(fields[0])
    if fields[1]:
        state.profile, state.profile_ms = decode_profile(fields[1])
    return state


class StoredUser:
    """A user with the bytes of the state as they are stored. Raises ValueError as `decode_state`."""

    __slots__ = ("data", "state")

    def __init__(self, data: bytes | None = None, profile: bytes | None = None) -> None:
        self.data, self.state = data or b"", load_user((data, profile))

    @property
    def kinds(self) -> bytes:
        """Codes of the window's events."""
        return bytes(self.state.kinds)

    @property
    def bought(self) -> int:
        """How many evicted purchases there are."""
        return len(self.state.purchases)

    @property
    def profile(self) -> bytes | None:
        """As of the state."""
        return self.state.profile

    @property
    def newest_ms(self) -> int | None:
        """Time of the window's newest event."""
        return self.state.last_ms if len(self.state) else None
