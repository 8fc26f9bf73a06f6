"""Replay of a real Kafka: by offsets and by time, killed and resumed, and nothing of the live group touched."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis
import torch
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient
from pydantic import SecretStr

from deploy.commands.replay import new_store
from deploy.jobs.replay import replay_topics
from deploy.jobs.replay_checkpoint import FILE, ReplayPlan
from deploy.servers.redis import RedisServer
from deploy.settings import PREFIX, Settings, load
from encoder.model.artefact import save
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from index.state.keys import Keys
from index.state.redis_store import RedisStore
from streams.evaluation.held_out import QuestionSettings
from streams.events import CATALOG, CLICKSTREAM, CONSUMED
from streams.kafka.config import KafkaConfig
from streams.kafka.log_identity import LogLookup
from streams.kafka.topic_reader import Span, TopicReader
from streams.replay.report import ReplayReport
from tests.conftest import eventually
from tests.support.replay_log import DIM, EMBEDDER, START_MS, STEP_MS, fill

PARTITIONS, EVENTS, ITEMS = 4, 20_000, 300
MODEL = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, d_text=DIM, d_reduced=DIM, window=20, slack=4)


@pytest.fixture(scope="module")
def filled(kafka_server: str) -> KafkaConfig:
    """A history that no test changes."""
    access = KafkaConfig(kafka_server, topic_prefix=f"replayed-{os.getpid()}-")
    fill(access, EVENTS, PARTITIONS, items=ITEMS, users=2_000)
    return access


@pytest.fixture
def settings(filled: KafkaConfig) -> Settings:
    return load(
        {},
        kafka=filled.bootstrap,
        topic_prefix=filled.topic_prefix,
        partitions=PARTITIONS,
        embedders=f"{EMBEDDER}:{DIM}",
        device="cpu",
        cache_mb=4,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(StarsEncoder(MODEL).eval(), tmp_path / "model", {"embedder": EMBEDDER, "context_features": []})
    return tmp_path / "model"


def without_time(report: ReplayReport) -> dict[str, Any]:
    return {name: value for name, value in report.to_dict().items() if name != "seconds"}


def read(access: KafkaConfig, **more: Any) -> tuple[list[tuple[str, int, int, int]], TopicReader]:
    """(topic, partition, offset, timestamp) of all records."""
    with TopicReader(access, **more) as reader:
        return [(r.topic, r.partition, r.offset, r.timestamp_ms) for r in reader.records()], reader


def test_records_come_in_the_order_of_their_times_however_the_reading_is_cut(filled: KafkaConfig) -> None:
    whole, reader = read(filled)
    assert len(whole) == reader.total and [r[3] for r in whole] == sorted(r[3] for r in whole)
    with TopicReader(filled) as first:
        records = first.records()
        begun = [next(records) for _ in range(7_777)]
        resume_state = orjson.loads(orjson.dumps(first.resume_state))
    rest, _ = read(filled, resume=resume_state)
    assert [(r.topic, r.partition, r.offset, r.timestamp_ms) for r in begun] + rest == whole


def test_times_are_looked_up_at_the_broker(filled: KafkaConfig) -> None:
    start_ms, stop_ms = START_MS + 5_000 * STEP_MS, START_MS + 6_000 * STEP_MS
    whole, _ = read(filled)
    found, reader = read(filled, start_ms=start_ms, stop_ms=stop_ms)
    assert found == [r for r in whole if start_ms <= r[3] < stop_ms] and len(found) == reader.total > 900
    found, reader = read(filled, start_ms=start_ms, stop_ms=stop_ms, whole=(CATALOG,))
    assert found == [r for r in whole if r[3] < stop_ms and (r[3] >= start_ms or r[0] == CATALOG)]
    assert read(filled, start_ms=int(time.time() * 1000) + 86_400_000)[0] == []  # in the future
    assert read(filled, start_ms=start_ms, stop_ms=start_ms)[0] == []
    with pytest.raises(ValueError, match="lies before the start"):
        read(filled, start_ms=stop_ms, stop_ms=start_ms)


def test_offsets_cut_a_piece_and_what_is_not_there_is_refused(filled: KafkaConfig) -> None:
    found, reader = read(filled, topics=(CLICKSTREAM,), spans={(CLICKSTREAM, p): Span(0, 0) for p in range(1, 4)})
    assert found and {r[1] for r in found} == {0}
    found, reader = read(filled, topics=(CATALOG,), spans={(CATALOG, 0): Span(10, 20)})
    assert [r[2] for r in found] == list(range(10, 20)) and not reader.covers["catalog[0]"].complete
    with pytest.raises(ValueError, match=r"clickstream\[9\] does not exist: it has partitions 0 to 3"):
        read(filled, spans={(CLICKSTREAM, 9): Span(0, 1)})
    with pytest.raises(ValueError, match=r"catalog\[0\] cannot end at 10000000"):
        read(filled, spans={(CATALOG, 0): Span(0, 10**7)})


def test_a_log_whose_start_has_left_is_said_and_a_start_before_it_refused(kafka_config: KafkaConfig) -> None:
    fill(kafka_config, 2_000, PARTITIONS, items=20)
    with TopicReader(kafka_config) as early:
        records = early.records()
        for _ in range(10):
            next(records)
        resume_state = early.resume_state
    admin = AdminClient(kafka_config.librdkafka())
    gone = TopicPartition(kafka_config.topic(CLICKSTREAM), 0, 100)
    for future in admin.delete_records([gone]).values():
        future.result(20)
    found, reader = read(kafka_config)
    assert reader.covers["clickstream[0]"].first == 100 and not reader.covers["clickstream[0]"].complete
    assert min(r[2] for r in found if r[:2] == (CLICKSTREAM, 0)) == 100
    with pytest.raises(ValueError, match=r"clickstream\[0\] cannot start at 7: its log holds 100 to"):
        read(kafka_config, spans={(CLICKSTREAM, 0): Span(7)})
    assert read(kafka_config, resume=resume_state)[1].covers["clickstream[0]"].lost == 100


def test_unknown_topics_and_another_partition_count_are_refused(settings: Settings) -> None:
    with pytest.raises(ValueError, match="does not exist on this broker"):
        replay_topics(ReplayPlan(), settings.model_copy(update={"topic_prefix": "nobody-"}))
    with pytest.raises(ValueError, match=f"has {PARTITIONS} partitions.*set PERSEID_PARTITIONS={PARTITIONS}"):
        replay_topics(ReplayPlan(), settings.model_copy(update={"partitions": 7}))


def command(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", "replay", "--json", *arguments],
        env={**environ, **settings.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def larger(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size > size


def test_killed_and_resumed_is_as_never_killed(settings: Settings, model: Path, tmp_path: Path) -> None:
    stop_ms, ask = START_MS + 5_000 * STEP_MS, QuestionSettings(every=10)
    plan = ReplayPlan(model, ask, checkpoint=tmp_path / "through", part=1_000)
    through = replay_topics(plan, settings, stop_ms=stop_ms)
    assert through.answers is not None and through.answers["questions"] > 50
    kept = tmp_path / "killed" / FILE
    arguments = ["--model", str(model), "--every", "10", "--to", str(stop_ms), "--part", "1000"]
    for size in range(150_000, 400_000, 50_000):  # a part that is still being written is no checkpoint
        with command(settings, *arguments, "--checkpoint", str(kept.parent)) as child:
            eventually(partial(larger, kept, size), 100, "a checkpoint")
            child.kill()
        assert child.returncode == -signal.SIGKILL
        with closing(sqlite3.connect(kept)) as file:
            if file.execute("SELECT count(*) FROM document").fetchone() == (1,):
                break
    with command(settings, *arguments, "--checkpoint", str(kept.parent)) as resumed:
        out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0 and b"going on behind" in err, err
    found = orjson.loads(out)
    found.pop("seconds")
    assert found == orjson.loads(orjson.dumps(without_time(through)))


def test_a_checkpoint_of_another_replay_is_refused(settings: Settings, tmp_path: Path) -> None:
    plan = ReplayPlan(checkpoint=tmp_path, part=10_000)
    first = replay_topics(plan, settings)
    again = replay_topics(plan, settings)  # nothing is left to do
    assert without_time(first) == without_time(again) and first.complete
    with pytest.raises(ValueError, match="holds another replay: its span was"):
        replay_topics(plan, settings, stop_ms=START_MS + 50)
    with pytest.raises(ValueError, match="its part was 10000, now it is 5"):
        replay_topics(ReplayPlan(checkpoint=tmp_path, part=5), settings)
    assert first.digest == replay_topics(ReplayPlan(), settings).digest


def test_the_live_group_is_as_it_was_and_no_group_is_left(settings: Settings, filled: KafkaConfig) -> None:
    topics = [filled.topic(topic) for topic in CONSUMED]
    live = Consumer({**filled.librdkafka(), "group.id": "live-group", "enable.auto.commit": False})
    live.commit(offsets=[TopicPartition(topic, 0, 5) for topic in topics], asynchronous=False)
    admin = AdminClient(filled.librdkafka())

    def state() -> tuple[set[str], list[tuple[str, int, int]]]:
        groups = {group.group_id for group in admin.list_consumer_groups().result().valid}
        (future,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("live-group")]).values()
        return groups, sorted((tp.topic, tp.partition, tp.offset) for tp in future.result().topic_partitions)

    before = state()
    assert "live-group" in before[0] and len(before[1]) == len(topics)
    replay_topics(ReplayPlan(), settings, start_ms=START_MS + 10_000 * STEP_MS)
    assert state() == before
    live.close()


def test_live_keys_are_as_they_were_and_only_an_unused_prefix_is_written(
    settings: Settings, redis_server: RedisServer, keys: Keys
) -> None:
    async def live_state() -> None:
        store = RedisStore(redis_server.url, keys)
        await store.write(keys.cluster(), {"partitions": b"4", "model": b"live"})
        await store.close()

    asyncio.run(live_state())
    client = redis.Redis.from_url(redis_server.url)
    live = settings.model_copy(update={"prefix": keys.prefix, "redis": SecretStr(redis_server.url)})
    before = {key: client.dump(key) for key in client.keys(f"{keys.prefix}:*")}
    spans = {(CLICKSTREAM, p): Span(0, 200) for p in range(PARTITIONS)}
    with new_store(live, f"{keys.prefix}-again") as store:
        in_redis = replay_topics(ReplayPlan(store=store), live, spans=spans)
    assert in_redis.digest == replay_topics(ReplayPlan(), live, spans=spans).digest
    assert {key: client.dump(key) for key in client.keys(f"{keys.prefix}:*")} == before
    assert client.exists(f"{keys.prefix}-again:cluster")
    with pytest.raises(ValueError, match="there is a live state below the prefix"), new_store(live, keys.prefix):
        pass
    client.close()


def test_a_topic_made_anew_does_not_go_on_from_an_old_checkpoint(
    settings: Settings, filled: KafkaConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = ReplayPlan(checkpoint=tmp_path, part=10_000)
    replay_topics(plan, settings)
    known = LogLookup._identities

    def other(self: LogLookup, topics: Any) -> Any:
        return {topic: type(found)(found.cluster_id, "anew") for topic, found in known(self, topics).items()}

    monkeypatch.setattr(LogLookup, "_identities", other)
    with pytest.raises(ValueError, match="holds another replay: its logs was"):
        replay_topics(plan, settings)
