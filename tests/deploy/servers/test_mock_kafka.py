"""The embedded broker as its clients see it: seven topics, records kept exactly, its limits, a fresh log each start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from deploy.servers.mock_kafka import Broker, MockCluster, find_librdkafka, topic_partitions
from deploy.servers.supervisor import Role, StartError, Supervisor, log_tail

pytestmark = pytest.mark.servers

PARTITIONS = 4


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(topic_partitions(PARTITIONS), tmp_path_factory.mktemp("broker") / "broker.log") as broker:
        yield broker


@pytest.fixture
def producer(broker: Broker) -> Producer:
    return Producer({"bootstrap.servers": broker.address, "linger.ms": 0})


def until(happened: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


def consume(broker: Broker, topic: str, count: int, partition: int = 0, offset: int = 0) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "reader", "fetch.wait.max.ms": 5})
    consumer.assign([TopicPartition(topic, partition, offset)])
    messages: list[Message] = []
    deadline = time.monotonic() + 20
    while len(messages) < count and time.monotonic() < deadline:
        messages += consumer.consume(count, 0.1)
    consumer.close()
    return messages


def watermarks(broker: Broker, topic: str) -> tuple[int, int]:
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "reader"})
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    consumer.close()
    return low, high


def cluster_id(address: str) -> str:
    return str(AdminClient({"bootstrap.servers": address}).list_topics(timeout=10).cluster_id)


def test_the_eight_topics_have_their_partitions(broker: Broker) -> None:
    topics = AdminClient({"bootstrap.servers": broker.address}).list_topics(timeout=10).topics
    assert {name: len(topic.partitions) for name, topic in topics.items()} == {
        **dict.fromkeys(("clickstream", "users", "exposures"), PARTITIONS),
        **dict.fromkeys(("catalog", "item-vectors", "context", "rules", "dead-letters"), 1),
    }


def test_it_listens_on_loopback_only(broker: Broker) -> None:
    assert broker.address.startswith("127.0.0.1:")
    port = int(broker.address.partition(":")[2])
    listening = {line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if line.split()[3] == "0A"}
    assert {address for address in listening if address.endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}


def test_keys_nulls_headers_and_timestamps_come_back_as_they_were_sent(broker: Broker, producer: Producer) -> None:
    headers: list[tuple[str, str | bytes | None]] = [("reason", b"too long"), ("empty", b"")]
    producer.produce("catalog", key=b"i1", value=b"\x00bytes\xff", headers=headers, timestamp=1_700_000_000_123)
    producer.produce("catalog", key=b"i1", value=None, timestamp=1_700_000_000_124)
    producer.produce("catalog", key=None, value=b"")
    assert producer.flush(10) == 0
    first, second, third = consume(broker, "catalog", 3)
    assert (first.key(), first.value(), first.headers()) == (b"i1", b"\x00bytes\xff", headers)
    assert first.timestamp() == (1, 1_700_000_000_123)  # 1: create time
    assert (second.key(), second.value(), second.offset()) == (b"i1", None, 1)
    assert (third.key(), third.value()) == (None, b"")


def test_a_record_near_one_megabyte_passes(broker: Broker) -> None:
    producer = Producer({"bootstrap.servers": broker.address, "message.max.bytes": 1_100_000})
    producer.produce("item-vectors", value=b"x" * 1_048_000)
    assert producer.flush(10) == 0
    (record,) = consume(broker, "item-vectors", 1)
    assert len(record.value() or b"") == 1_048_000


def test_kafka_python_works_with_the_documented_api_version(broker: Broker) -> None:
    code = (
        "import sys\n"
        "from kafka import KafkaProducer\n"
        "producer = KafkaProducer(bootstrap_servers=sys.argv[1], api_version=(2, 3))\n"
        "print(producer.send('dead-letters', key=b'k', value=b'from outside').get(10).offset)\n"
        "producer.close()"
    )
    argv = [sys.executable, "-c", code, broker.address]
    sent = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    (record,) = consume(broker, "dead-letters", 1)
    assert (sent.stdout.strip(), record.value()) == ("0", b"from outside")


def test_old_records_leave_silently_after_five_mebibytes(broker: Broker, producer: Producer) -> None:
    for _ in range(80):
        producer.produce("context", value=b"x" * 100_000)
        producer.flush(10)
    low, high = watermarks(broker, "context")
    assert high == 80
    assert 50 <= high - low <= 53


MEMBER = """
import asyncio, sys, time
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

class PatientLeader(RoundRobinPartitionAssignor):
    @classmethod
    def assign(cls, cluster, members):
        if len(members) > 1:
            time.sleep(0.1)  # the followers must have asked for their assignment before the leader answers
        return super().assign(cluster, members)

class Report(ConsumerRebalanceListener):
    async def on_partitions_revoked(self, revoked):
        print("revoked", flush=True)
    async def on_partitions_assigned(self, assigned):
        print("assigned", *sorted(p.partition for p in assigned), flush=True)

async def main():
    consumer = AIOKafkaConsumer(
        bootstrap_servers=sys.argv[1], group_id="pair", session_timeout_ms=1500, heartbeat_interval_ms=300,
        partition_assignment_strategy=[PatientLeader], enable_auto_commit=False,
    )
    consumer.subscribe(["clickstream"], listener=Report())
    await consumer.start()
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_group_of_two_shares_the_partitions_and_one_takes_over(broker: Broker, tmp_path: Path) -> None:
    """Members are processes, as workers are. A rebalance takes the session timeout less one second."""

    def partitions(name: str) -> list[int] | None:
        reports = log_tail(tmp_path / name).splitlines()[-1:] or ["nothing yet"]
        words = reports[0].split()
        return [int(word) for word in words[1:]] if words[0] == "assigned" else None

    def has_partitions(name: str) -> bool:
        return bool(partitions(name))

    with Supervisor() as group:
        pids = {}
        for name in ("first", "second"):
            pids[name] = group.start(Role(name, (sys.executable, "-c", MEMBER, broker.address), tmp_path / name))
            until(partial(has_partitions, name), 20)
        until(lambda: partitions("first") is not None)
        mine, others = partitions("first"), partitions("second")
        assert mine is not None and others is not None
        assert sorted(mine + others) == [0, 1, 2, 3]
        assert len(mine) == len(others) == 2
        os.kill(pids["second"], signal.SIGKILL)
        until(lambda: partitions("first") == [0, 1, 2, 3], 20)


def test_each_start_is_a_new_log_under_a_new_cluster_id(tmp_path: Path) -> None:
    broker = Broker({"catalog": 2}, tmp_path / "log")
    seen = set()
    for end in (broker.stop, broker.kill, broker.stop):
        seen.add(cluster_id(broker.start()))
        assert watermarks(broker, "catalog") == (0, 0)
        end()
        assert broker.pid is None
    assert len(seen) == 3


def test_misuse_is_refused(broker: Broker, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="running already"):
        broker.start()
    stopped = Broker({"a": 1}, tmp_path / "log")
    with pytest.raises(ValueError, match="not running"):
        _ = stopped.address
    with pytest.raises(StartError, match=r"(?s)did not start.*'a' needs at least one partition, not 0"):
        Broker({"a": 0}, tmp_path / "log").start()


def test_a_cluster_can_live_in_this_process() -> None:
    cluster = MockCluster({"a": 3})
    topics = AdminClient({"bootstrap.servers": cluster.address}).list_topics(timeout=10).topics
    assert len(topics["a"].partitions) == 3
    cluster.close()
    assert find_librdkafka().name.startswith("librdkafka")


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from deploy.servers.mock_kafka import Broker\n"
        "broker = Broker({'a': 1}, Path(sys.argv[1]))\n"
        "broker.start()\n"
        "print(broker.pid, flush=True)\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    argv = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        status = Path(f"/proc/{int(parent.stdout.readline())}/stat")
        assert status.exists()
        parent.kill()
    until(lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z")
