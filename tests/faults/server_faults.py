"""What is done to servers under a living worker: Kafka killed, a topic recreated, Redis killed, silent or set back.

Each function waits until events are applied, breaks something, and says what must have happened for the run to mean
anything. What is true afterwards is judged by `tests.faults.runs`.
"""

from __future__ import annotations

import signal

from streams.events import CLICKSTREAM
from tests.faults.stage import Stage
from tests.faults.traffic import item_record
from tests.faults.worker_faults import moment

_NEW_ITEM = 1_000_000  # beyond the items of any traffic


def broker_killed(stage: Stage, kills: int) -> None:
    """Kafka is killed and comes back with its data; producers go on sending what was not acknowledged."""
    worker = stage.start()
    share = len(stage.records) // (kills + 2)
    for _ in range(kills):
        stage.wait_applied(stage.random.randint(share // 2, share))
        moment(stage, 0.1)
        stage.must_have_work()
        stage.broker.kill()
        moment(stage, 1.0)
        stage.broker.restart()
        stage.first_write()
    assert worker.alive, worker.log_tail()


def topic_recreated(stage: Stage) -> None:
    """The clickstream is deleted and created again, once below a living worker, or in its absence under a backlog."""
    worker = stage.start()
    first = len(stage.records) // 2
    if stage.random.random() < 0.5:
        stage.traffic.limit = first
        stage.wait(stage.settled, "the first half is applied")
        _recreate(stage)
    else:
        stage.wait_applied(first // 2)
        worker.kill()
        stage.traffic.limit = first  # what comes from here on is the backlog
        stage.wait(lambda: stage.traffic.idle, "the first half is sent")
        stage.must_have_work()
        _recreate(stage)
        worker = stage.start()
    before = sum(stage.live.positions().values())
    stage.traffic.limit = first + first // 8  # fewer than were applied: a new log that is read stays the shorter one
    stage.recoveries_s.append(
        stage.wait(lambda: _starts_anew(stage) and stage.live.progress() != before, "the new log is read")
    )
    stage.traffic.limit = len(stage.records)
    assert worker.alive, worker.log_tail()


def _recreate(stage: Stage) -> None:
    stage.keep_former_log()
    assert sum(map(len, stage.former.applied.values())), "nothing of the old log was applied: the fault missed"
    stage.broker.delete(stage.access, CLICKSTREAM)
    stage.broker.create(stage.access, CLICKSTREAM, stage.options.partitions)


def _starts_anew(stage: Stage) -> bool:
    """Whether a clickstream position is within a new log that was shorter than what was applied of the old one."""
    applied = {key: len(log) for key, log in stage.former.applied.items()}
    return any(0 < position < applied[key] for key, position in stage.live.positions().items() if key in applied)


def redis_killed(stage: Stage) -> None:
    """Redis is killed and restarted under a living worker; every write it confirmed is on disk."""
    stage.live.setting("appendfsync", "always")
    worker = stage.start()
    for _ in range(3):
        stage.wait_applied(len(stage.records) // 10)
        moment(stage, 0.1)
        stage.must_have_work()
        stage.redis.kill()
        moment(stage, 1.0)
        stage.restart_redis()
        stage.live.setting("appendfsync", "always")
        stage.first_write()
    assert worker.alive, worker.log_tail()


def redis_paused(stage: Stage) -> None:
    """Redis is silent for longer than a worker waits for an answer: the write it gave up on is done afterwards."""
    worker = stage.start()
    stage.wait_applied(len(stage.records) // 4)
    stage.must_have_work()
    missed = worker.count("store_retries")
    stage.signal_redis(signal.SIGSTOP)
    stage.wait(lambda: worker.count("store_retries") > missed, "a write is not answered in time")
    stage.signal_redis(signal.SIGCONT)
    stage.first_write()
    assert worker.alive, worker.log_tail()


def redis_set_back(stage: Stage) -> None:
    """Redis is killed and loses the end of its append-only file, twice under load and once when all was applied."""
    worker = stage.start()
    share = len(stage.records) // 10
    for _ in range(2):
        stage.wait_applied(share)
        written = stage.live.written()
        _change_an_item(stage)
        stage.wait_applied(stage.random.randint(share, 2 * share))
        stage.must_have_work()
        _set_back(stage, written)
    stage.wait_applied(share)
    written = stage.live.written()
    _change_an_item(stage)
    stage.hurry()
    stage.wait(stage.settled, "everything is applied")
    _set_back(stage, written)
    assert worker.alive, worker.log_tail()


def _change_an_item(stage: Stage) -> None:
    """Sends a new item: the traffic's own may be applied already, long before its clicks."""
    before = stage.live.item_log()[1]
    stage.traffic.add(item_record(_NEW_ITEM + before))
    stage.wait(lambda: stage.live.item_log()[1] > before, "an item changes")


def _set_back(stage: Stage, written: int) -> None:
    stage.redis.kill()
    lost = stage.live.cut(written)  # looked at here: once Redis is back, a fast worker may have written it again
    assert b"pos:" in lost, "Redis loses no position: the fault missed"
    assert b"item_position" in lost, "Redis loses nothing of the item log: the fault missed"
    stage.restart_redis()
    stage.first_write()


def redis_emptied(stage: Stage) -> None:
    """FLUSHALL under a living worker, under load and again when all was applied: rebuilt from Kafka's beginning."""
    worker = stage.start()
    stage.wait_applied(len(stage.records) // 3)
    stage.must_have_work()
    _empty(stage)
    stage.hurry()
    stage.wait(stage.settled, "everything is applied")
    _empty(stage)
    assert worker.alive, worker.log_tail()


def _empty(stage: Stage) -> None:
    assert stage.live.progress(), "nothing was applied: the fault missed"
    stage.live.flush()
    stage.first_write()


def elasticsearch_killed(stage: Stage) -> None:
    """Elasticsearch is killed while items change, and comes back with its data; nothing else waits for it."""
    indexer = stage.start_indexer()
    stage.start()
    stage.wait_applied(len(stage.records) // 5)
    stage.wait(lambda: indexer.position > 0, "the index is filled")
    stage.must_have_work()
    stage.elastic.kill()
    before = indexer.position
    _change_an_item(stage)
    stage.wait_applied(len(stage.records) // 5)
    stage.elastic.restart()
    stage.recoveries_s.append(stage.wait(lambda: indexer.position > before, "Elasticsearch takes writes again"))


def storm(stage: Stage, every: int) -> None:
    """Worker, broker and Redis are killed in random order, about every so many applied records, until all is sent."""
    worker = stage.start()
    while not stage.settled():
        stage.wait_applied(stage.random.randint(every // 2, 3 * every // 2))
        if stage.settled():
            break
        what = stage.random.choice(("worker", "broker", "redis"))
        if what == "worker":
            worker.kill()
            worker = stage.start()
        elif what == "broker":
            stage.broker.kill()
            stage.broker.restart()
        else:
            stage.redis.kill()
            stage.restart_redis()
        stage.first_write()
    assert worker.alive, worker.log_tail()
