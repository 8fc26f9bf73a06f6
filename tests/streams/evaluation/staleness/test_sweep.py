"""Staleness: against brute force, against the plain evaluator, and on a stream in which each event gives the next."""

from __future__ import annotations

import doctest
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streams.evaluation.staleness.delays
from encoder.inference.batching import EncodeRequest
from index.query.question import Weights
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.rankers import OfflineModel
from streams.evaluation.staleness.delays import DELAYS, FRESH, NOW, PARTS, Arm, Delay, arms, parse_delay, parse_part
from streams.evaluation.staleness.sweep import POPULAR, Sweep, list_name, sweep
from streams.evaluation.timeline import evaluate
from streams.folder.reader import Folder, read_folder
from streams.item_vectors import ItemVectors
from tests.support.folders import START_S, item, write_folder
from tests.support.replay_world import RULES, encoder, offline
from tests.support.staleness_world import STEP_MS, Oracle, offset_of, stream, vectors_of
from tests.support.staleness_world import asked as lattice_asked

HEADER = "user_id,item_id,event_type,timestamp,location"
ITEMS, USERS, EVENTS = 30, 4, 120
DAY_S = 86_400
Row = tuple[str, str, str, int, str]


def vectors(ids: Sequence[str]) -> ItemVectors:
    matrix = np.random.default_rng(0).standard_normal((ITEMS, 4)).astype(np.float32)
    return ItemVectors("toy", ids, matrix[[int(name[1:]) for name in ids]], [[] for _ in ids])


def rows() -> list[Row]:
    """Bursts of a few seconds and pauses of hours."""
    rng, second, made = random.Random(3), START_S, list[Row]()
    for _ in range(EVENTS):
        second += rng.choice((2, 7, 40, 500, 20_000))
        arrived = [n for n in range(ITEMS) if born(n) <= second]
        kind = rng.choice(("view", "view", "purchase"))
        made.append((f"u{rng.randrange(USERS)}", f"i{rng.choice(arrived)}", kind, second, rng.choice(("oslo", ""))))
    return made


def born(number: int) -> int:
    return START_S if number < 10 else START_S + number * 15_000


def folder_of(path: Path, clicks: Sequence[Row]) -> Folder:
    starts_s = [START_S + n * 9_000 for n in range(90)]
    weather: list[dict[str, Any]] = [
        {"location": "oslo", "ts_ms": second * 1000, "valid_until_ms": (second + 8_000) * 1000,
         "weather": {"sky": "blue" if second % 2000 else "grey"}, "events": [], "promotions": []} for second in starts_s
    ]  # fmt: skip
    items = [item(f"i{n}", first_seen=born(n)) for n in range(ITEMS)]
    profiles = [{"user_id": "u1", "categorical": {"location": "oslo"}, "ts_ms": START_S * 1000}]
    path.mkdir(exist_ok=True)
    return read_folder(write_folder(path, clicks, items, header=HEADER, context=weather, users=profiles), RULES)


def asked(repeats: bool = True, ks: tuple[int, ...] = (ITEMS,), **more: Any) -> QuestionSettings:
    return QuestionSettings(("mixed", "next", "general"), ks, repeats=repeats, **more)


def swept(folder: Folder, chosen: Sequence[Arm], ask: QuestionSettings, popularity: float = 0.0) -> Sweep:
    return sweep(held(folder, ask), offline(popularity), chosen)


def held(folder: Folder, ask: QuestionSettings) -> HeldOut:
    return HeldOut(folder, vectors([entry["item_id"] for entry in folder.items]), RULES, ask, Weights())


def ranks(run: Sweep, arm: Arm, way: str) -> list[int]:
    return [int(rank) for rank in run.comparison.outcomes.ranks(list_name(arm, way))]


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(streams.evaluation.staleness.delays).failed == 0


@pytest.mark.parametrize(("repeats", "popularity"), [(True, 0.0), (False, 0.0), (False, 0.4)])
def test_without_delay_the_sweep_is_the_evaluation(tmp_path: Path, repeats: bool, popularity: float) -> None:
    folder, ask = folder_of(tmp_path / "f", rows()), asked(repeats, (1, 5))
    run = swept(folder, arms(("user",), [parse_delay("1h")]), ask, popularity)
    expected = evaluate(held(folder, ask), offline(popularity))
    found = run.comparison.result(run.catalogue_size)
    assert found["questions"] == expected["questions"] > 40 and found["catalogue"] == expected["catalogue"]
    assert dict(run.skipped) == expected["skipped"]
    for way in (*ask.slots, POPULAR):
        assert found["lists"][list_name(FRESH, way)] == expected["lists"][way], way


# Each part late by a delay of its own, so that none can stand in for another.
OWN_DELAYS = Arm("each its own", *(Delay(f"{n} steps", n * STEP_MS) for n in (3, 2, 4, 1, 5)))
LATE = ("user", "seen", "vectors", "context", "popularity")


def lattice_run(folder: Folder, chosen: Sequence[Arm], repeats: bool, popularity: float = 0.0) -> Sweep:
    return sweep(*lattice(folder, repeats, popularity), chosen)


def lattice(folder: Folder, repeats: bool, popularity: float) -> tuple[HeldOut, OfflineModel]:
    model = OfflineModel(encoder(), offset_of(folder), Weights(popularity=popularity))
    return HeldOut(folder, vectors_of(folder), RULES, lattice_asked(repeats), model.weights), model


@pytest.mark.parametrize(("repeats", "popularity"), [(True, 0.0), (False, 0.0), (False, 0.4)])
def test_each_answer_is_the_one_found_by_brute_force(tmp_path: Path, repeats: bool, popularity: float) -> None:
    folder = stream(tmp_path / "f")
    chosen = [*arms(PARTS, [parse_delay(name) for name in ("10s", "daily")]), OWN_DELAYS]
    run, oracle = lattice_run(folder, chosen, repeats, popularity), Oracle(folder, repeats, popularity)
    assert len(run.comparison.outcomes) == len(oracle.questions) > 40
    for arm in chosen:
        expected = oracle.ranks(arm)
        assert {way: ranks(run, arm, way) for way in expected} == expected, arm.name


def wrong_arms() -> Iterator[tuple[str, Arm]]:
    """What a sweep would answer for OWN_DELAYS if it ignored a delay, mistook one for another or were 1 ms off."""
    for part in LATE:
        right: Delay = getattr(OWN_DELAYS, part)
        assert right.ms is not None
        for delay in (NOW, Delay("1 ms less", right.ms - 1), Delay("1 ms more", right.ms + 1)):
            changed: dict[str, Any] = {part: delay}
            yield f"{part} {delay.name}", replace(OWN_DELAYS, **changed)
    for one, other in combinations(LATE, 2):
        swapped: dict[str, Any] = {one: getattr(OWN_DELAYS, other), other: getattr(OWN_DELAYS, one)}
        yield f"{one} and {other} swapped", replace(OWN_DELAYS, **swapped)


def test_the_brute_force_tells_every_wrong_delay_apart(tmp_path: Path) -> None:
    oracle = Oracle(stream(tmp_path / "f"), repeats=False)
    right = oracle.ranks(OWN_DELAYS)
    assert [name for name, wrong in wrong_arms() if oracle.ranks(wrong) == right] == []


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, chosen = folder_of(tmp_path / "f", rows()), arms(("user", "all"), [parse_delay(name) for name in DELAYS])
    together = swept(folder, chosen, asked()).comparison.outcomes.state_dict()
    monkeypatch.setattr("streams.evaluation.staleness.sweep._BATCH", 1)
    assert swept(folder, chosen, asked()).comparison.outcomes.state_dict() == together


def planted(path: Path, gap_s: int, steps: int = 12, start_s: int = START_S) -> Folder:
    """One user, who always takes what an encoding of everything so far puts first: it takes the last event to know."""
    model, taken = encoder(), ["i0"]
    known = vectors([f"i{n}" for n in range(ITEMS)])
    model.items.put(known.item_ids, known.vectors, known.tags)
    matrix = model.items.retrieval(known.item_ids)
    for _ in range(steps):
        times = [(start_s + n * gap_s) * 1000 for n in range(len(taken))]
        request = EncodeRequest("u", taken, [0] * len(taken), times, None, 0)
        scores = matrix @ model.encode_whole([request]).vectors[0, 0]
        scores[[int(name[1:]) for name in taken]] = -np.inf
        taken = [*taken, f"i{int(scores.argmax())}"]
    clicks = [("u", name, "view", start_s + n * gap_s) for n, name in enumerate(taken)]
    return read_folder(write_folder(path, clicks, [item(f"i{n}", first_seen=START_S) for n in range(ITEMS)]), RULES)


def hits(folder: Folder, delays: Sequence[str], part: str = "user") -> dict[str, float]:
    """Share of the questions after the second event whose target comes first, by delay."""
    from context.features import ContextFeatures
    from context.offsets import ContextOffset

    still = ContextOffset(np.zeros((16, 0), np.float32), ContextFeatures([]))
    chosen = arms((part,), [parse_delay(name) for name in delays])  # type: ignore[arg-type]
    ask = QuestionSettings(("next",), (1,), folder.events.ts_ms[2])
    run = sweep(held(folder, ask), OfflineModel(encoder(), still), chosen)
    result = run.comparison.result(ITEMS)["lists"]
    return {arm.name.rpartition(" ")[2]: result[list_name(arm, "next")]["hr@1"] for arm in chosen}


def test_a_delay_longer_than_the_gap_between_events_loses_everything(tmp_path: Path) -> None:
    found = hits(planted(tmp_path / "f", gap_s=5), ("1s", "10s", "1m", "1h"))
    # Who does not know the last event answers with it: it was the best guess before, and seems unseen.
    assert found == {"0": 1.0, "1s": 1.0, "10s": 0.0, "1m": 0.0, "1h": 0.0}
    assert hits(planted(tmp_path / "g", gap_s=120), ("1m", "2m", "10m")) == {"0": 1.0, "1m": 1.0, "2m": 1.0, "10m": 0.0}


def test_a_nightly_batch_knows_what_happened_before_midnight(tmp_path: Path) -> None:
    midnight_s = START_S // DAY_S * DAY_S + DAY_S
    one_a_day = planted(tmp_path / "days", gap_s=DAY_S, start_s=midnight_s + 9 * 3600)
    assert hits(one_a_day, ("1h", "1d", "daily")) == {"0": 1.0, "1h": 1.0, "1d": 1.0, "daily": 1.0}
    four_a_day = planted(tmp_path / "more", gap_s=DAY_S // 4, start_s=midnight_s)
    assert hits(four_a_day, ("daily",))["daily"] == pytest.approx(3 / 11, abs=1e-6)  # the first of each day: 4, 8, 12


def test_only_the_late_part_is_late(tmp_path: Path) -> None:
    folder = planted(tmp_path / "f", gap_s=5)
    for part in ("context", "popularity"):
        assert hits(folder, ("1h",), part)["1h"] == 1.0
    assert hits(folder, ("1h",), "user-vectors")["1h"] < 1.0


@pytest.mark.parametrize("text", ["", "10", "1w", "-1s", "1.5h", "nightly"])
def test_a_delay_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give 0, a number with"):
        parse_delay(text)


def test_arms_are_each_part_with_each_delay_and_the_fresh_one() -> None:
    found = arms(("user", "all"), [parse_delay(name) for name in ("0", "1s", "daily")])
    assert [arm.name for arm in found] == ["0", "user 1s", "user daily", "all 1s", "all daily"]
    assert found[0] == FRESH
    second, daily = Delay("1s", 1000), Delay("daily", None)
    assert found[1] == Arm("user 1s", user=second, seen=second)
    assert found[4] == Arm("all daily", daily, daily, daily, daily, daily)
    assert arms(("user-vectors", "vectors", "context", "popularity"), [second])[1:] == [
        Arm("user-vectors 1s", user=second),
        Arm("vectors 1s", vectors=second),
        Arm("context 1s", context=second),
        Arm("popularity 1s", popularity=second),
    ]
    with pytest.raises(ValueError, match="part 'weights' cannot be late"):
        parse_part("weights")
    with pytest.raises(ValueError, match="named twice"):
        arms(("user",), [parse_delay("1s"), parse_delay("1s")])
