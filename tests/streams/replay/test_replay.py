"""Replay: the live digest again, questions before their events, and the same lists as a plain evaluation."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from index.query.question import Weights
from index.state.keys import Keys, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import STATE
from index.state.user_columns import decode_state
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.prequential import PrequentialEvaluator
from streams.evaluation.timeline import evaluate
from streams.events import CATALOG, CLICKSTREAM, CONSUMED, Click, Record, Rules
from streams.folder.records import records
from streams.kafka.topic_merge import Covers
from streams.pipeline.digest import digest
from streams.pipeline.user_state import EngineSettings, WindowLimits
from streams.replay.replay import SilentSink, folder_logs, numbered, open_engine
from streams.replay.report import ReplayReport
from tests.support.replay_world import (
    CONFIG,
    PARTITIONS,
    RULES,
    encoder_thread,
    held_out,
    lived,
    offline,
    replay,
    served,
    shop,
    vectors_of,
)
from tests.support.streams_world import MemoryBroker, fill

LOGS = folder_logs("test")
PLAIN = Weights(popularity=0.0, promotion=0.0)
SETTINGS = EngineSettings(limits=WindowLimits(CONFIG.window, CONFIG.slack), half_vectors=False)


def state_only(source: Iterable[Record], **more: Any) -> ReplayReport:
    async def run() -> ReplayReport:
        sink = SilentSink()
        engine = await open_engine(MemoryStore(), Rules(), PARTITIONS, sink, None, LOGS)
        return await replay("test", source, engine, sink, **more)

    return asyncio.run(run())


def asked(
    source: Iterable[Record],
    ask: QuestionSettings,
    make: Callable[..., PrequentialEvaluator] = PrequentialEvaluator,
    weights: Weights = PLAIN,
    store: MemoryStore | None = None,
) -> ReplayReport:
    async def run() -> ReplayReport:
        sink, thread, live = SilentSink(), encoder_thread(), store or MemoryStore()
        engine = await open_engine(live, RULES, PARTITIONS, sink, thread, LOGS, SETTINGS)
        evaluator = make(live, served(), RULES, PARTITIONS, SETTINGS.bucket_ms, ask, thread, weights)
        try:
            return await replay("test", source, engine, sink, evaluator)
        finally:
            evaluator.close()
            thread.close()

    return asyncio.run(run())


def merged(broker: MemoryBroker) -> list[Record]:
    """All logs by timestamp, each in its own order."""
    heads = dict.fromkeys(sorted(broker.logs), 0)
    found: list[Record] = []
    while any(at < len(broker.logs[name]) for name, at in heads.items()):
        open_logs = [name for name, at in heads.items() if at < len(broker.logs[name])]
        name = min(open_logs, key=lambda name: (broker.logs[name][heads[name]].timestamp_ms, name))
        found.append(broker.logs[name][heads[name]])
        heads[name] += 1
    return found


@pytest.mark.parametrize("seed", range(3))
def test_replaying_a_log_gives_the_live_digest(seed: int) -> None:
    broker, store = MemoryBroker(), MemoryStore()
    fill(broker, PARTITIONS, seed, events=1500)

    async def live() -> str:
        await lived(broker, store, random.Random(seed))
        return (await digest(store, PARTITIONS)).hex

    log = merged(broker)
    expected = asyncio.run(live())
    log = merged(broker)  # with what was forwarded
    report = state_only(log)
    assert report.digest.hex == expected, f"seed {seed}"
    assert report.counts["misrouted"] > 0 and report.complete
    assert state_only(log[:-1]).digest.hex != expected


def test_asking_changes_nothing(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop")
    source = list(numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS))
    often, never = (asked(source, QuestionSettings(every=every)) for every in (1, 10**9))
    assert often.answers is not None and often.answers["questions"] > 100
    assert never.answers is not None and never.answers["questions"] == 0
    assert often.digest == never.digest
    assert "all questions" in often.table() and "all questions" not in never.table()


class Watching(PrequentialEvaluator):
    """Notes how much of its user was known at each question."""

    known: ClassVar[list[tuple[str, str, int]]] = []

    async def ask(self, click: Click, now_ms: int) -> None:
        user = await self._reader.read(click.user_id)
        self.known.append(
            (click.event_id, click.user_id, len(user.state.evicted) + len(user.state.hashes) + len(user.state.folded))
        )
        assert user.vectors is not None or not user.state.hashes
        await super().ask(click, now_ms)


def test_a_question_knows_every_event_before_it_and_not_its_own(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=150)
    Watching.known = []
    ask = QuestionSettings(every=2, start_ms=folder.split_ms(0.3))
    asked(numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS), ask, Watching)
    rows = [folder.user_ids[user] for user in folder.events.users]
    assert len(Watching.known) > 20
    for event_id, user_id, known in Watching.known:
        before = rows[: int(event_id.removeprefix("shop:")) - 1]
        assert known == Counter(before)[user_id], event_id


@pytest.mark.parametrize("repeats", [False, True])
def test_replay_and_plain_evaluation_give_the_same_metrics(tmp_path: Path, repeats: bool) -> None:
    folder = shop(tmp_path / "shop", timed=True)
    vectors = vectors_of(folder)
    ask = QuestionSettings(("mixed", "next", "general"), (1, 5), folder.split_ms(0.05), repeats=repeats)
    report = asked(numbered(records(folder, vectors=vectors), PARTITIONS), ask)
    expected = evaluate(held_out(folder, ask), offline())
    answers = report.answers
    assert answers is not None and answers["questions"] == expected["questions"] > 40
    # Not cold users: they get the popular list, which live comes with context.
    for name in ("history 2-3", "history 4-5", "history 6-20"):
        found, plain = answers["slices"][name], expected["slices"][name]
        assert found["questions"] == plain["questions"] > 5, name
        for way, means in plain["lists"].items():
            assert found["lists"][way] == pytest.approx(means, abs=1e-6), (name, way)
    assert answers["lists"]["next"] != answers["lists"]["general"] != answers["lists"]["mixed"]
    assert answers["skipped"] == expected["skipped"]
    assert sum(answers["targets_out_of_reach"].values()) == sum(expected["targets_out_of_reach"].values()) > 20


@pytest.mark.parametrize("popularity", [0.1, 1.0])
def test_replay_and_evaluation_add_the_same_popularity(tmp_path: Path, popularity: float) -> None:
    folder = shop(tmp_path / "shop", timed=True)
    vectors = vectors_of(folder)
    ask = QuestionSettings(("next",), (1, 5), folder.split_ms(0.05), popularity_ms=0, popularity_events=0)
    weights = Weights(popularity=popularity, promotion=0)
    answers = asked(numbered(records(folder, vectors=vectors), PARTITIONS), ask, weights=weights).answers
    expected = evaluate(held_out(folder, ask), offline(popularity))
    plain = evaluate(held_out(folder, ask), offline())
    assert answers is not None
    # Not cold users: they get the popular list, which live comes with context.
    for name in ("history 2-3", "history 4-5", "history 6-20"):
        found, wanted = (result["slices"][name]["lists"]["next"] for result in (answers, expected))
        assert found == pytest.approx(wanted, abs=1e-6), name
    assert expected["slices"]["history 6-20"]["lists"] != plain["slices"]["history 6-20"]["lists"]


def test_events_that_are_no_question_are_counted_by_reason(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop")
    report = asked(
        numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS),
        QuestionSettings(every=3, start_ms=folder.split_ms(0.5)),
    )
    assert report.answers is not None
    skipped = report.answers["skipped"]
    assert skipped["before the start"] == folder.events.before(folder.split_ms(0.5))
    assert sum(skipped.values()) + report.answers["questions"] == len(folder.events)
    late = folder.events.kinds[folder.events.before(folder.split_ms(0.5)) :]
    assert skipped["not a choice"] == int((late == folder.kind_names.index("dislike")).sum())
    assert skipped["seen before"] > 0
    with pytest.raises(ValueError, match="every is 0"):
        asked([], QuestionSettings(every=0))


def test_targets_that_no_list_can_hold_are_misses_and_reported(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop")
    source = [r for r in numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS) if r.key != b"i3"]
    report = asked(source, QuestionSettings())
    assert report.answers is not None
    clicked = Counter(folder.events.items.tolist())
    out = report.answers["targets_out_of_reach"]
    assert 0 < out["not in the catalogue"] <= clicked[folder.item_ids.index("i3")]
    assert 0 < out["not to be shown"] <= clicked[folder.item_ids.index("i7")]
    assert "not in the catalogue" in report.table()


def test_records_that_nobody_accepts_are_counted_and_sent_nowhere() -> None:
    broker = MemoryBroker()
    fill(broker, PARTITIONS, 0, events=50)
    bad = Record(CATALOG, 0, 0, 1_700_000_000_000, b"i", b"no json")
    report = state_only([bad, *merged(broker)])
    assert report.records[CATALOG] == 1 and report.counts["malformed"] == 1
    (reason,) = report.dead_letters
    assert reason.startswith("catalog: value: not JSON") and f"1 x {reason}" in report.table()


def test_a_log_that_begins_late_is_accepted_and_said_to_be_incomplete() -> None:
    broker = MemoryBroker()
    fill(broker, PARTITIONS, 0, events=300)
    log = [record for record in merged(broker) if record.offset >= 20]
    covers = {f"{CLICKSTREAM}[0]": Covers(20, 20, 40, 40)}
    report = state_only(log, covers=lambda: covers)
    assert report.counts["gaps"] > 0 and not report.complete
    text = report.table()
    assert "no longer covers everything: clickstream[0] from 20" in text and "(of a part of the log)" in text


def test_a_report_is_json(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=60)
    report = asked(numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS), QuestionSettings())
    body = orjson.loads(orjson.dumps(report.to_dict()))
    assert body["digest"] == report.digest.hex and body["model"] == "m-00000001" and body["complete"]
    assert body["records"]["clickstream"] == 60


def test_numbered_records_are_at_home_and_count_from_zero(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=80)
    found = list(numbered(records(folder), PARTITIONS))
    for topic in CONSUMED:
        for partition in range(PARTITIONS):
            offsets = [r.offset for r in found if (r.topic, r.partition) == (topic, partition)]
            assert offsets == list(range(len(offsets)))
    assert state_only(found).counts["misrouted"] == 0


def test_a_replay_keeps_to_its_own_keys(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=30)
    store = MemoryStore(Keys("mine"))
    asked(numbered(records(folder, vectors=vectors_of(folder)), PARTITIONS), QuestionSettings(), store=store)

    async def read() -> list[int]:
        counts = []
        for tag in map(partition_tag, range(PARTITIONS)):
            users = await store.scores(store.keys.users(tag))
            rows = await store.read([(store.keys.user(tag, user), (STATE,)) for user in users])
            counts += [len(decode_state(row[0]).items) for row in rows]
        return counts

    assert sum(asyncio.run(read())) == 30
