"""Results of an experiment from a real Kafka: what was shown and clicked before, meanwhile and too late."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from deploy.jobs.experiment import experiment_results
from deploy.servers.topics import create_topics
from deploy.settings import Settings, load
from index.state.keys import partition_of
from index.state.trials import Experiment
from streams.events import CLICKSTREAM, EXPOSURES
from streams.kafka.config import KafkaConfig

PARTITIONS, USERS = 4, 200
BEGAN_MS = 1_790_000_000_000
MINUTE_MS = 60_000
EXPERIMENT = Experiment("x-2", "m-0000000a", "m-0000000b", 0.3, "0123456789abcdef", BEGAN_MS)


def settings_of(access: KafkaConfig) -> Settings:
    return load({}, kafka=access.bootstrap, topic_prefix=access.topic_prefix, partitions=PARTITIONS)


def history() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each user's list of an earlier experiment and of this one; who has an even number clicks, in both, and late."""
    for number in range(USERS):
        user = f"u{number}"
        arm = EXPERIMENT.arm(user)
        model = EXPERIMENT.model if arm == "challenger" else EXPERIMENT.champion
        for name, ts_ms in (("x-1", BEGAN_MS - 600 * MINUTE_MS), ("x-2", BEGAN_MS + number)):
            shown = {"recommendation_id": f"{name}-{number}", "user_id": user, "items": [{"item_id": "a"}]}
            yield EXPOSURES, user, {**shown, "ts_ms": ts_ms, "model": model, "experiment": name, "arm": arm}
            if number % 2 == 0:
                click = {"user_id": user, "item_id": "a", "kind": "purchase" if number % 4 == 0 else "view"}
                for at, later_ms in (("in time", MINUTE_MS), ("late", 300 * MINUTE_MS)):
                    yield CLICKSTREAM, user, {**click, "event_id": f"{name} {at} {number}", "ts_ms": ts_ms + later_ms}


def fill(access: KafkaConfig) -> None:
    create_topics(access, PARTITIONS)
    producer = Producer({**access.librdkafka(), "enable.idempotence": True})
    for topic, user, body in sorted(history(), key=lambda sent: sent[2]["ts_ms"]):  # as they would come
        place = partition_of(user, PARTITIONS)
        producer.produce(access.topic(topic), orjson.dumps(body), user.encode(), place, timestamp=body["ts_ms"])
    assert producer.flush(60) == 0


def test_the_results_are_those_of_the_experiment_alone(kafka_config: KafkaConfig) -> None:
    settings = settings_of(kafka_config)
    fill(kafka_config)
    with pytest.raises(ValueError, match="topic exposures has no list of experiment x-3 yet"):
        experiment_results(replace(EXPERIMENT, id="x-3"), settings)
    found = experiment_results(EXPERIMENT, settings, hours=2.0)
    arms = found["arms"]
    for arm in ("champion", "challenger"):
        numbers = [number for number in range(USERS) if EXPERIMENT.arm(f"u{number}") == arm]
        assert arms[arm]["users"] == arms[arm]["lists"] == len(numbers) > 40
        assert arms[arm]["clicked"] == sum(number % 2 == 0 for number in numbers)
        assert arms[arm]["bought"] == arms[arm]["buyers"] == sum(number % 4 == 0 for number in numbers)
    assert found["differences"]["click_through"]["p"] > 0.05 and found["sample_ratio"]["passed"]
    assert found["experiment"]["id"] == "x-2" and found["hours"] == 2.0
    assert found["records"][CLICKSTREAM] == USERS // 2, "what came in time"
    assert found["records"][EXPOSURES] == USERS
    late = experiment_results(EXPERIMENT, settings, hours=6.0)["arms"]
    assert late["champion"]["bought"] == 2 * arms["champion"]["bought"]
    assert late["champion"]["clicked"] == arms["champion"]["clicked"]
