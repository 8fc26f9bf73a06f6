"""Retraining: which events are learned and asked about, when a new model is good enough, and what becomes of it."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from deploy.cli import run as perseid
from deploy.commands.retrain import lines_of
from deploy.jobs.retrain import RetrainPlan, gaps, retrain
from deploy.jobs.train import TrainPlan, train_folder
from deploy.jobs.verdict import STATE_FILE, RetrainOutcome, Stretch, Verdict
from deploy.models.registry import Registry
from deploy.models.rollout import Rollout
from deploy.runtime.process import open_store
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from deploy.settings import Settings, load
from deploy.shop.shop import Shop, ShopConfig
from deploy.texts.item_vectors import known_items
from encoder.model.document import DOCUMENT, read_document
from encoder.text.cache import TextMemory
from encoder.text.item_text import canonical_text, text_hash
from encoder.training.options import TrainOptions
from index.ranking.ranker import DOCUMENT as RANKER
from index.state.aliases import Aliases, change_aliases, read_aliases
from streams.events import CLICKSTREAM, Rules
from streams.folder.reader import read_folder
from streams.folder.records import SourceRecord, records
from tests.deploy.jobs.test_export import produce

DAY_MS, END_MS, PARTITIONS = 86_400_000, 1_760_000_000_000, 3
SHOP = ShopConfig(n_items=150, n_users=100, n_categories=6, n_locations=2, sessions_per_user_day=1.0)
PLAN = RetrainPlan(least_new=50, margin=1.0, recipe={"threads": 1})
SPLIT = 0.6


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = Path(tmp_path_factory.mktemp("data")) / "shop"
    Shop(5, SHOP).write_history(path, END_MS, days=6)
    return path


@pytest.fixture(scope="module")
def texts(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of all texts, with vectors that need no text model."""
    path = Path(tmp_path_factory.mktemp("texts")) / "texts"
    memory = TextMemory(path)
    for line in known_items(read_folder(shop), None):
        key = text_hash(canonical_text(line))
        memory[key] = np.random.default_rng(int(key[:8], 16)).normal(size=384).astype(np.float32)
    memory.close()
    return path


@pytest.fixture(scope="module")
def champion(shop: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = TrainOptions(epochs=3, threads=1)
    plan = TrainPlan(shop, Path(tmp_path_factory.mktemp("models")), SPLIT, options=options)
    return train_folder(plan, Rules(), TextMemory(texts)).folder


@pytest.fixture
def settings(tmp_path: Path, champion: Path) -> Settings:
    return load({}, state=tmp_path / "state", model=champion, device="cpu", cache_mb=4)


def run(plan: RetrainPlan, settings: Settings, texts: Path) -> dict[str, Any]:
    return retrain(plan, settings, TextMemory(texts))


@pytest.mark.parametrize(
    ("known_ms", "newest_ms", "expected"),
    [
        (0, 30, Stretch(100, 70, 30)),  # the newest part
        (0, 80, Stretch(100, 50, 50)),  # the newer half, where less than twice as much is new
        (90, 30, Stretch(10, 95, 5)),
        (99, 30, Stretch(1, 99, 1)),
        (100, 30, Stretch(0, 100, 0)),
    ],
)
def test_the_newest_events_are_asked_about_and_at_most_half_of_what_is_new(
    known_ms: int, newest_ms: int, expected: Stretch
) -> None:
    assert Stretch.of(np.arange(100, dtype=np.int64), known_ms, newest_ms) == expected


def test_new_events_of_one_time_are_not_learned_as_there_is_nothing_to_ask_about() -> None:
    found = Stretch.of(np.array([1, 2, 5, 5, 5]), known_ms=3, newest_ms=30)
    assert (found.new, found.asked, found.learned) == (3, 3, 0)


def compared(low: float, high: float, users: int = 100) -> dict[str, Any]:
    """A comparison in which both models are served with other lists, the champion's at NDCG@10 .2."""
    difference = {"mean": (low + high) / 2, "interval": [low, high], "p": 0.5}
    other = {"list": "new next", "baseline": "champion next", "differences": {"ndcg@10": {**difference, "mean": 9.0}}}
    against = {"list": "new mixed", "baseline": "champion next", "differences": {"ndcg@10": difference}}
    lists = {"champion next": {"ndcg@10": 0.2}, "new mixed": {"ndcg@10": 0.2 + (low + high) / 2}}
    own = {"champion": "champion next", "new": "new mixed"}
    return {"users": users, "own": own, "versus": [other, against], "lists": lists}


@pytest.mark.parametrize(
    ("low", "high", "passed", "said"),
    [
        (0.001, 0.02, True, "it is better: ndcg@10 +0.0105 (+0.0010 to +0.0200) beside the champion's 0.2000"),
        (-0.01, 0.02, True, "it is not worse"),
        (-0.0101, 0.05, False, "it may be worse"),
        (-0.05, -0.02, False, "the lower end has to be -0.0100 or more"),
    ],
)
def test_a_model_is_good_enough_when_its_interval_does_not_reach_below_the_margin(
    low: float, high: float, passed: bool, said: str
) -> None:
    found = Verdict.of(compared(low, high), 0.05)
    assert (found.passed, found.low, found.high, found.champion) == (passed, low, high, 0.2)
    assert said in found.said


def test_a_handful_of_users_is_no_verdict() -> None:
    found = Verdict.of(compared(0.1, 0.2, users=29), 0.05)
    assert not found.passed and found.said == "only 29 users could be asked about; 30 are needed"


def test_a_newer_model_is_made_of_all_but_the_newest_events_and_goes_into_the_registry(
    shop: Path, champion: Path, settings: Settings, texts: Path
) -> None:
    plan = replace(PLAN, champion=champion, data=shop)
    found = run(plan, settings, texts)
    events, before = read_folder(shop).events, read_document(champion)
    new = events.ts_ms[events.ts_ms >= before["metadata"]["before_ms"]]
    asked_ms = max(int(new[-1]) + 1 - DAY_MS, int(new[len(new) // 2]))
    assert (found["new_events"], found["start_ms"], found["outcome"]) == (len(new), asked_ms, RetrainOutcome.ADDED)
    assert found["models"] == {"champion": before["version"], "new": found["model"]}
    assert found["left_out"] == {} and found["questions"] > 100 and set(found["seconds"]) == {"training", "evaluation"}
    registry = Registry(settings.state / "registry")
    document, card = read_document(registry.folder(found["model"])), registry.card(found["model"])
    metadata = document["metadata"]
    assert (metadata["parent"], metadata["before_ms"]) == (before["version"], asked_ms)
    assert (metadata["options"]["since_ms"], metadata["options"]["epochs"]) == (None, 1)
    assert card["compared"] == found["verdict"] and card["until_ms"] == metadata["until_ms"] < asked_ms
    assert registry.aliases() == Aliases()
    assert sorted(path.name for path in (settings.state / "retrain").iterdir()) == ["lock", "state.json"]
    again = run(plan, settings, texts)
    assert (again["outcome"], again["events_since_last"]) == (RetrainOutcome.NOTHING_NEW, 0)
    assert registry.versions() == [found["model"]]


def test_a_day_that_came_as_of_one_time_waits_for_the_next(
    shop: Path, champion: Path, settings: Settings, texts: Path, tmp_path: Path
) -> None:
    folder, known_ms = tmp_path / "at-once", read_document(champion)["metadata"]["before_ms"]
    shutil.copytree(shop, folder)
    with gzip.open(shop / "events.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if int(row["ts_ms"]) >= known_ms:
            row |= {name: rows[-1][name] for name in ("ts_ms", "timestamp")}
    with gzip.open(folder / "events.csv.gz", "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    found = run(replace(PLAN, champion=champion, data=folder), settings, texts)
    assert found["outcome"] == RetrainOutcome.NOTHING_NEW and found["new_events"] > 500
    assert "all new events are of one time" in found["unseen"][-1]


def test_what_nobody_has_seen_is_said() -> None:
    logs = {"clickstream": "one", "users": "one"}
    facts = {"logs": logs, "log_starts": {"clickstream[0]": 50, "clickstream[1]": 20, "users[0]": 3}}
    last = {"logs": logs, "offsets": {"clickstream[0]": [0, 40], "clickstream[1]": [5, 20]}}
    assert list(gaps(facts, last, 1_000, 1_000)) == [
        "left Kafka before any retraining read them: 10 records of clickstream[0]"
    ]
    other = {**last, "logs": {**logs, "clickstream": "two"}}
    assert list(gaps(facts, other, 1_000, 1_000)) == [
        "other logs than at the last retraining, what came between is not known: clickstream"
    ]
    assert list(gaps(facts, {}, 3_000, 1_000)) == [
        "the champion's knowledge ends at 1970-01-01 00:00:01 UTC, the data begin at 1970-01-01 00:00:03 UTC: what "
        "lies between is not known"
    ]
    assert list(gaps({}, last, 1_000, 2_000)) == []


def test_equal_data_give_an_equal_model(
    shop: Path, champion: Path, settings: Settings, texts: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, champion=champion, data=shop)
    first = run(plan, settings, texts)
    second = run(plan, load({}, state=tmp_path / "other", device="cpu", cache_mb=4), texts)
    assert {**first, "seconds": 0, "registry": 0} == {**second, "seconds": 0, "registry": 0}


def test_a_new_model_goes_on_from_a_retrained_one(
    shop: Path, champion: Path, settings: Settings, texts: Path, tmp_path: Path
) -> None:
    first = run(replace(PLAN, champion=champion, data=shop), settings, texts)
    parent = Registry(settings.state / "registry").folder(first["model"])
    found = run(replace(PLAN, champion=parent, data=shop, only_new=True), settings, texts)
    metadata = read_document(Registry(settings.state / "registry").folder(found["model"]))["metadata"]
    assert metadata["parent"] == first["model"] and metadata["options"]["epochs"] == 1
    assert metadata["options"]["since_ms"] == first["start_ms"] < found["start_ms"]


def test_a_champion_with_a_ranker_has_successors_with_one(
    shop: Path, champion: Path, settings: Settings, texts: Path
) -> None:
    plan = replace(PLAN, champion=champion, data=shop)
    first, registry = run(replace(plan, ranker=True), settings, texts), Registry(settings.state / "registry")
    assert first["ranker"]["refused"] is None and "ranker" in first["seconds"]
    assert any(first["ranker"]["version"] in line for line in lines_of(first))
    files = registry.ranker(first["model"])
    assert files is not None and orjson.loads(files[RANKER])["encoder"] == first["model"]
    learned = orjson.loads(files[RANKER])["metadata"]["slice"]
    assert learned["from_ms"] >= read_document(registry.folder(first["model"]))["metadata"]["until_ms"]
    parent = replace(plan, champion=registry.folder(first["model"]), least_new=1)
    second = run(parent, settings, texts)
    assert second["ranker"]["version"] not in (None, first["ranker"]["version"])
    (settings.state / "retrain" / STATE_FILE.name).unlink()  # so that the same events are new again
    said: list[str] = []
    few = replace(parent, newest_ms=1, recipe={**PLAN.recipe, "seed": 2})
    third = retrain(few, settings, TextMemory(texts), said.append)
    assert third["ranker"]["version"] is None and any("no second stage is made" in line for line in said)
    assert registry.ranker(third["model"]) is None
    assert not (settings.state / "retrain" / "rankers").exists()


def test_a_model_that_may_be_worse_stays_in_the_registry(
    shop: Path, champion: Path, settings: Settings, texts: Path
) -> None:
    bad = {"threads": 1, "lr": 1.0, "epochs": 1}
    found = run(replace(PLAN, champion=champion, data=shop, margin=0.0, stage=True, recipe=bad), settings, texts)
    assert found["outcome"] == RetrainOutcome.WORSE and not found["verdict"]["passed"]
    assert Registry(settings.state / "registry").versions() == [found["model"]]


def test_a_champion_that_does_not_say_what_it_knows_is_refused_with_the_remedy(
    shop: Path, champion: Path, settings: Settings, texts: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(champion, old)
    document = read_document(old)
    known_ms = document["metadata"].pop("before_ms")
    document["metadata"].pop("until_ms")
    (old / DOCUMENT).write_text(json.dumps(document))
    plan = replace(PLAN, champion=old, data=shop)
    with pytest.raises(ValueError, match=r"^m-\w+ does not say until when it was trained.*--known-until"):
        run(plan, settings, texts)
    found = run(replace(plan, known_ms=known_ms, only_new=True), settings, texts)
    metadata = read_document(Registry(settings.state / "registry").folder(found["model"]))["metadata"]
    assert (found["outcome"], metadata["options"]["since_ms"]) == (RetrainOutcome.ADDED, known_ms)


def test_two_retrainings_at_once_are_refused(shop: Path, settings: Settings, texts: Path) -> None:
    (settings.state / "retrain").mkdir(parents=True)
    with (settings.state / "retrain" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another retraining runs"):
            run(replace(PLAN, data=shop), settings, texts)


def test_the_command_ends_with_a_status_for_schedulers_and_a_page(
    shop: Path,
    champion: Path,
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"STATE": tmp_path / "state", "DEVICE": "cpu", "CACHE_MB": "4"}.items():
        monkeypatch.setenv(f"PERSEID_{name}", str(value))

    def invoke(*more: str) -> tuple[int, str]:
        common = ["retrain", "--champion", str(champion), "--data", str(shop), "--texts", str(texts), "--threads", "1"]
        return perseid([*common, *more]), capsys.readouterr().out

    status, said = invoke("--least-new", "999999")
    assert status == 4 and "nothing is retrained" in said
    assert invoke("--least-new", "999999", "--lenient")[0] == 0
    page = tmp_path / "page.html"
    status, said = invoke("--margin", "1", "--report", str(page))
    assert status == 0 and "is in registry" in said and "beside the champion's" in said
    text = page.read_text()
    assert "<h2>The new model beside the champion</h2>" in text and "<h2>Who is better</h2>" in text
    shutil.rmtree(tmp_path / "state" / "retrain")
    status, said = invoke("--margin", "0", "--epochs", "1", "--newest", "1h", "--json")
    found = orjson.loads(said)
    assert status == RetrainOutcome(found["outcome"]).exit_status == 3
    assert perseid(["retrain", "--newest", "daily"]) == 2
    assert "no length of time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "refused", "said"),
    [
        (RetrainOutcome.PROMOTED, None, "m-1 is served; `perseid models rollback` takes it back within 24 hours"),
        (
            RetrainOutcome.NOT_PROMOTED,
            "not through its gates in time: …",
            "m-1 is staged and not promoted: not through",
        ),
        (RetrainOutcome.NOT_STAGED, "m-2 is staged already", "m-1 is in registry r and not staged: m-2 is staged"),
        (RetrainOutcome.TOO_FEW, None, "m-1 is in registry r and stays there"),
    ],
)
def test_the_last_line_says_what_came_of_it(outcome: RetrainOutcome, refused: str | None, said: str) -> None:
    told = {"champion": "m-0", "champion_until_ms": END_MS, "events_since_last": 600, "questions": 9, "users": 9}
    found = {**told, "start_ms": END_MS, "seconds": {"training": 9.0}, "model": "m-1", "verdict": {"said": "better"}}
    *_, last = lines_of({**found, "registry": "r", "outcome": outcome, "refused": refused})
    assert last.startswith(said)


@pytest.fixture
def topics(shop: Path, tmp_path: Path) -> Iterator[Broker]:
    """The shop's history in a broker."""
    with Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as running:
        produce(running, list(records(read_folder(shop))))
        yield running


@pytest.mark.servers
def test_the_served_model_is_retrained_from_the_topics_and_staged(
    topics: Broker, redis_server: RedisServer, champion: Path, texts: Path, tmp_path: Path
) -> None:
    at = {"kafka": topics.address, "redis": redis_server.url, "prefix": f"retrain-{uuid.uuid4().hex}"}
    settings = load({}, state=tmp_path / "state", device="cpu", cache_mb=4, partitions=PARTITIONS, **at)
    registry = Registry(settings.state / "registry")
    version = registry.add(champion)

    async def begin() -> None:
        store = open_store(settings)
        await store.ensure_cluster(PARTITIONS, [kind.name for kind in Rules().kinds])
        await store.write(store.keys.cluster(), {"window": b"200+56"})
        assert await change_aliases(store, Aliases(), Aliases(version))
        await store.close()

    async def aliases() -> Aliases:
        store = open_store(settings)
        found = await read_aliases(store)
        await store.close()
        return found

    async def by_hand(staged: str) -> None:
        store = open_store(settings)
        await Rollout(store, registry).stage(staged, replace_other=True)
        await store.close()

    asyncio.run(begin())
    plan = replace(PLAN, stage=True)
    found = run(plan, settings, texts)
    assert found["outcome"] == RetrainOutcome.STAGED and set(found["seconds"]) == {"export", "training", "evaluation"}
    assert asyncio.run(aliases()) == Aliases(version, found["model"]) == registry.aliases()
    assert not (settings.state / "retrain" / "data").exists()
    (settings.state / "retrain" / ".data.0a1b2c3d").mkdir()  # what an export leaves that was killed
    assert run(plan, settings, texts)["outcome"] == RetrainOutcome.NOTHING_NEW
    assert not (settings.state / "retrain" / ".data.0a1b2c3d").exists()

    def more(count: int) -> None:
        first = more_of["clicks"]
        more_of["clicks"] += count
        produce(topics, [click(number, END_MS + number * 1000) for number in range(first, first + count)])

    more_of = {"clicks": 0}
    more(400)
    again = run(plan, settings, texts)
    assert again["events_since_last"] == 400 and again["outcome"] == RetrainOutcome.STAGED
    assert asyncio.run(aliases()) == Aliases(version, again["model"]), "in place of one that a retraining made"
    asyncio.run(by_hand(found["model"]))
    (Path(registry.name) / "models" / found["model"] / "card.json").write_text("{}")  # as of one that a person made
    more(60)
    refused = run(plan, settings, texts)
    assert refused["outcome"] == RetrainOutcome.NOT_STAGED
    assert refused["refused"].startswith(f"{found['model']} is staged already")
    assert asyncio.run(aliases()) == Aliases(version, found["model"])
    more(60)
    promoting = replace(plan, replace_other=True, promote=True, promote_within_s=0.0)
    waits = run(promoting, settings, texts)
    assert asyncio.run(aliases()) == Aliases(version, waits["model"])
    if waits["verdict"]["difference"] >= 0:
        said = "not through its gates in time: listed items with a vector: 0 of 0; no item has a vector"
    else:
        said = "its ndcg@10 is below the champion's"
    assert waits["outcome"] == RetrainOutcome.NOT_PROMOTED and waits["refused"].startswith(said)


@pytest.mark.servers
def test_a_retraining_that_is_stopped_leaves_the_processor_to_others_and_nothing_behind(
    topics: Broker, champion: Path, texts: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "state" / "retrain"
    here = {"KAFKA": topics.address, "STATE": str(kept.parent), "PARTITIONS": str(PARTITIONS), "DEVICE": "cpu"}
    command = ["retrain", "--champion", str(champion), "--texts", str(texts), "--threads", "1", "--nice", "7"]
    running = subprocess.Popen(
        [sys.executable, "-m", "deploy.cli", *command],
        env={**os.environ, **{f"PERSEID_{name}": value for name, value in here.items()}},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(kept.glob("*data*")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    assert os.getpriority(os.PRIO_PROCESS, running.pid) == min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19)
    running.send_signal(signal.SIGTERM)
    # Where an event loop was just being opened, asyncio adds a word about it.
    assert b"interrupted\n" in running.communicate(timeout=60)[1] and running.returncode == 130
    assert [path.name for path in kept.iterdir()] == ["lock"]


def click(number: int, ts_ms: int) -> SourceRecord:
    user = f"user-{number % 100:05d}"
    body = {"event_id": f"more-{number}", "user_id": user, "item_id": f"item-{number % 150:05d}", "kind": "view"}
    return SourceRecord(CLICKSTREAM, user.encode(), orjson.dumps({**body, "ts_ms": ts_ms}), ts_ms)


def test_the_live_state_has_to_say_what_is_served(settings: Settings, texts: Path) -> None:
    nowhere = load({}, state=settings.state, redis="redis://127.0.0.1:1/0")
    with pytest.raises(ValueError, match=r"does not say which model is served .*; name it by --champion"):
        run(PLAN, nowhere, texts)
