"""Spells what is remembered of a user as a hash of the live state, with a field each for a list and an action."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from index.results.cells import Cell
from index.state.store import Op
from streams.attribution.joining import Action, ShownList, UserJoin

_LIST, _ACTION, _USER = "l:", "a:", "u"


def encode_join(user: UserJoin) -> dict[str, bytes]:
    """All fields; none of a user of whom nothing is remembered."""
    fields = {_LIST + name: _of_list(found) for name, found in user.lists.items()}
    fields |= {_ACTION + name: orjson.dumps([*action]) for name, action in user.actions.items()}
    if user.counted or user.forgotten_ms >= 0:
        fields[_USER] = orjson.dumps([user.forgotten_ms, sorted(user.counted)])
    return fields


def decode_join(fields: Mapping[str, bytes]) -> UserJoin:
    """Inverse of `encode_join`."""
    user = UserJoin()
    for name, value in fields.items():
        found = orjson.loads(value)
        if name == _USER:
            user.forgotten_ms, user.counted = found[0], {tuple(entry) for entry in found[1]}
        elif name.startswith(_LIST):
            ts_ms, cell, slots = found
            user.lists[name.removeprefix(_LIST)] = ShownList(ts_ms, Cell(*cell), slots)
        else:
            user.actions[name.removeprefix(_ACTION)] = Action(*found)
    return user


def join_ops(key: str, before: Mapping[str, bytes], user: UserJoin) -> list[Op]:
    """What brings a user's hash from the fields that it has to those that it is to have."""
    fields = encode_join(user)
    if not fields:
        return [Op("delete", key)] if before else []
    changed = {name: value for name, value in fields.items() if before.get(name) != value}
    gone = [name for name in before if name not in fields]
    return ([Op("hset", key, changed)] if changed else []) + ([Op("hdel", key, names=gone)] if gone else [])


def _of_list(found: ShownList) -> bytes:
    return orjson.dumps([found.ts_ms, [*found.cell], found.slots])
