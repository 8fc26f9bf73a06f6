"""Aliases of models and how a staged one is tried: one contract for both stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import sqrt

import orjson
import pytest

from deploy.servers.redis import RedisServer
from index.state.aliases import Aliases, change_aliases, read_aliases
from index.state.keys import Keys, murmur2
from index.state.memory_store import MemoryStore
from index.state.redis_store import RedisStore
from index.state.store import LiveStore
from index.state.trials import Experiment, Shadow, in_share

A, B, C = "m-0000000a", "m-0000000b", "m-0000000c"
SHADOW = Shadow(B, 0.01, 5)
EXPERIMENT = Experiment("x-1", A, B, 0.1, "salt", 7)
TRIED = Aliases(A, B, C, 9, SHADOW, EXPERIMENT)
Scenario = Callable[[LiveStore], Awaitable[None]]


@pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.servers)])
def check(request: pytest.FixtureRequest, keys: Keys) -> Callable[[Scenario], None]:
    """Runs a scenario against a fresh store of each kind."""
    server: RedisServer | None = request.getfixturevalue("redis_server") if request.param == "server" else None

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            store: LiveStore = MemoryStore(keys) if server is None else RedisStore(server.url, keys)
            try:
                await scenario(store)
            finally:
                await store.close()

        asyncio.run(main())

    return run


def test_aliases_and_trials_are_set_and_taken_away_as_a_whole(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        assert await read_aliases(store) == Aliases()
        assert await change_aliases(store, Aliases(), TRIED)
        assert await read_aliases(store) == TRIED
        assert await change_aliases(store, TRIED, replace(TRIED, shadow=None))
        assert not await change_aliases(store, TRIED, Aliases(B)), "the shadow is another"
        assert await read_aliases(store) == replace(TRIED, shadow=None)
        assert await change_aliases(store, replace(TRIED, shadow=None), Aliases(A))
        assert set(await store.read_all(store.keys.cluster())) == {"model"}

    check(scenario)


def test_of_two_who_begin_an_experiment_at_once_one_wins(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        before = Aliases(A, B)
        assert await change_aliases(store, Aliases(), before)
        wanted = [replace(before, experiment=replace(EXPERIMENT, id=f"x-{n}")) for n in range(2)]
        won = await asyncio.gather(*(change_aliases(store, before, one) for one in wanted))
        assert sorted(won) == [False, True]
        assert await read_aliases(store) == wanted[won.index(True)]

    check(scenario)


def test_facts_of_a_later_build_and_of_an_earlier_one_are_read(check: Callable[[Scenario], None]) -> None:
    async def scenario(store: LiveStore) -> None:
        later = {"model": B, "share": 0.5, "since_ms": 3, "colour": "blue"}
        await store.write(store.keys.cluster(), {"model": A.encode(), "shadow": orjson.dumps(later)})
        assert await read_aliases(store) == Aliases(A, shadow=Shadow(B, 0.5, 3))
        await store.remove(store.keys.cluster(), ["shadow"])
        assert await read_aliases(store) == Aliases(A)

    check(scenario)


def test_a_trial_is_of_the_models_that_have_the_aliases() -> None:
    """Builds that do not know trials stage, promote and roll back without ending them."""
    assert (TRIED.shadowed, TRIED.running) == (SHADOW, EXPERIMENT)
    for other in (replace(TRIED, challenger=C), replace(TRIED, challenger="")):
        assert other.shadowed is None and other.running is None
    assert replace(TRIED, champion=C).running is None and replace(TRIED, champion=C).shadowed == SHADOW
    assert replace(TRIED, experiment=replace(EXPERIMENT, until_ms=8)).running is None


def test_what_ends_keeps_what_its_results_need() -> None:
    over = replace(EXPERIMENT, until_ms=8)
    assert TRIED.ended(8) == replace(TRIED, experiment=over) == TRIED.ended(8).ended(9)
    assert TRIED.unstaged(8) == Aliases(A, "", C, 9, None, over)
    assert Aliases(A).ended(8) == Aliases(A)
    assert TRIED.untried == Aliases(A, B, C, 9)


IDS = {
    "counted": [f"u{number}" for number in range(20_000)],
    "padded": [f"user-{number:05}" for number in range(20_000)],
    "numbers": [str(7 * number) for number in range(20_000)],
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_a_share_is_one_whatever_the_ids_the_salt_and_the_partition(kind: str, share: float) -> None:
    """Within five standard deviations, also of those of one partition, and of those in two experiments."""
    users = IDS[kind]
    chosen = {
        salt: [in_share(share, salt, user) for user in users] for salt in ("0123456789abcdef", "fedcba9876543210")
    }
    first, second = chosen.values()
    even = [(murmur2(user.encode()) & 0x7FFFFFFF) % 2 == 0 for user in users]

    def is_one(found: int, of: int, wanted: float) -> bool:
        return abs(found - of * wanted) < 5 * sqrt(of * wanted * (1 - wanted))

    assert is_one(sum(first), len(users), share) and is_one(sum(second), len(users), share)
    assert is_one(sum(a and b for a, b in zip(first, even, strict=True)), sum(even), share)
    assert is_one(sum(a and b for a, b in zip(first, second, strict=True)), len(users), share * share)
    assert first == [in_share(share, "0123456789abcdef", user) for user in users]


def test_a_larger_share_has_all_users_of_a_smaller_one() -> None:
    users = IDS["counted"]
    small, large = ({user for user in users if in_share(share, "salt", user)} for share in (0.05, 0.2))
    assert small < large
    assert not any(in_share(0, "salt", user) for user in users) and all(in_share(1, "salt", user) for user in users)


def test_trials_are_stored_as_they_were() -> None:
    assert SHADOW.encode() == b'{"model":"m-0000000b","share":0.01,"since_ms":5}'
    assert EXPERIMENT.encode() == (
        b'{"id":"x-1","champion":"m-0000000a","model":"m-0000000b","share":0.1,"salt":"salt","since_ms":7,"until_ms":0}'
    )


def test_the_arms_of_an_experiment_are_fixed_for_ever() -> None:
    """They decide what users are shown while several builds of the API are running."""
    arms = [EXPERIMENT.arm(f"u{number}") for number in range(40)]
    assert [number for number, arm in enumerate(arms) if arm == "challenger"] == [3, 18, 25, 30]
