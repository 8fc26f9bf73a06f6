"""Training of a ranker: planted causes are learned, chance is not, and what the encoder knows is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from deploy.cli import run as perseid
from deploy.jobs.ranking.ranker_gain import RankerGain, importance
from deploy.jobs.ranking.train_ranker import RankerPlan, Slice, questions_of
from deploy.models.registry import Registry
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from index.ranking.features import FEATURES, GROUPS
from index.ranking.ranker import load_ranker
from index.state.keys import Keys
from streams.folder.reader import Folder
from streams.folder.records import records
from streams.ranking.pools import ListPool
from streams.ranking.walk import AskedPool, ChoiceQuestion
from tests.deploy.jobs.test_export import PARTITIONS, produce
from tests.support.folders import DAY_S, write_vectors
from tests.support.replay_world import CONFIG, vectors_of
from tests.support.session_world import MIDNIGHT_S, Cause, planted
from tests.support.simple_rankers import scorer

KNOWN_MS = (MIDNIGHT_S + 2 * DAY_S) * 1000
Train = Callable[..., dict[str, Any]]


def made(path: Path, cause: Cause, users: int = 40) -> Folder:
    """A planted shop that brings its own vectors, beside a model that has seen two of its eight days."""
    folder = planted(path / "shop", cause, users=users)
    vectors = vectors_of(folder)
    write_vectors(path / "shop", [vectors.body(row, folder.start_ms) for row in range(len(vectors.item_ids))])
    save_model(path / "model", before_ms=KNOWN_MS)
    return folder


def save_model(path: Path, **metadata: Any) -> str:
    torch.manual_seed(0)
    model = StarsEncoder(replace(CONFIG, window=200, slack=56)).eval()
    return save(model, path, {"embedder": "toy", "context_features": [], "data": "shop", "slot": "next", **metadata})


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    """Runs `perseid train-ranker` on the shop; its JSON."""
    monkeypatch.setenv("PERSEID_EMBEDDERS", "toy:4")
    monkeypatch.setenv("PERSEID_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PERSEID_DEVICE", "cpu")

    def call(*more: str, status: int = 0) -> dict[str, Any]:
        words = ["train-ranker", str(tmp_path / "shop"), "--model", str(tmp_path / "model"), "--json", "--threads", "1"]
        assert perseid([*words, "--out", str(tmp_path / "rankers"), *more]) == status
        out, err = capfd.readouterr()
        return {"said": err} if status else dict(orjson.loads(out), said=err)

    return call


def test_a_planted_cause_is_learned_and_the_artefact_says_how(tmp_path: Path, train: Train) -> None:
    made(tmp_path, "price")
    found = train("--split", "0.75", "--seed", "3")
    shown = found["lists"]["shown"]
    assert {"shown", "placed"} <= set(found["on"]) and shown["validation"]["better"]
    assert shown["test"]["ranker"] > 0.8 > 0.6 > shown["test"]["first_stage"]
    assert shown["test"]["low"] > 0.2 and 150 < shown["lists"] <= shown["questions"] <= 160
    assert next(iter(shown["importance"])) in ("price", "price_rank", "price_to_list", "level")
    ranker = load_ranker(Path(found["ranker"]))
    assert ranker.version == found["version"] and Path(found["ranker"]).name == ranker.version
    assert ranker.on == found["on"] and ranker.encoder == found["encoder"]
    assert ranker.metadata["slice"] == found["slice"] and found["slice"]["from_ms"] == KNOWN_MS
    assert ranker.metadata["options"]["seed"] == 3 and ranker.metadata["features_version"] == 1
    assert ranker.metadata["lists"]["shown"]["test"] == shown["test"]
    assert "position" in ranker.scorers["placed"].features and "position" not in ranker.scorers["shown"].features


def test_showings_are_read_where_they_are_counted(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "price")
    plain = train()
    monkeypatch.setenv("PERSEID_SHOWINGS", "true")
    found = train()
    ranker, before = (load_ranker(Path(one["ranker"])) for one in (found, plain))
    assert ranker.scorers["retrieved"].features == (*before.scorers["retrieved"].features, *GROUPS["showings"])
    assert ranker.metadata["features_version"] == 2 and before.metadata["features_version"] == 1
    assert found["lists"]["retrieved"]["importance"].keys() >= GROUPS["showings"].keys()
    for source in ("shown", "placed"):
        assert ranker.scorers[source].features == before.scorers[source].features
        assert found["lists"][source] == plain["lists"][source], "what else is learned stays as it is"


def test_places_decide_where_they_are_the_cause(tmp_path: Path, train: Train) -> None:
    made(tmp_path, "position")
    found = train()
    assert "placed" in found["on"] and "shown" not in found["on"]
    placed = found["lists"]["placed"]
    first, ranker, as_shown = (placed["validation"][name] for name in ("first_stage", "ranker", "as_shown"))
    assert first < 0.4 < 0.6 < ranker <= as_shown + 0.05 and next(iter(placed["importance"])) == "position"
    assert "test" not in placed, "nothing comes after the slice"


def test_where_nothing_is_to_be_learned_it_is_written_as_off(
    tmp_path: Path, train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, "nothing")
    found = train("--split", "0.75", "--seed", "1")  # chance makes one better now and then
    assert found["on"] == [] and load_ranker(Path(found["ranker"])).on == []
    words = ["train-ranker", str(tmp_path / "shop"), "--model", str(tmp_path / "model"), "--threads", "1"]
    more = ["--out", str(tmp_path / "again"), "--retrieved-only", "--split", "0.75"]
    assert perseid([*words, *more]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[1].startswith("retrieved lists: off, learned from ") and not any("shown" in line for line in lines)
    assert any(line.startswith("  validation: not better: NDCG@10 ") for line in lines)
    assert lines[-1] == f"artefact: {tmp_path / 'again' / lines[0].split()[0]}"


def test_a_run_is_a_function_of_data_and_seed(tmp_path: Path, train: Train) -> None:
    made(tmp_path, "price", users=20)
    first, again, other = train(), train(), train("--seed", "1")
    assert first["version"] == again["version"] != other["version"]
    assert first["lists"] == again["lists"]


@pytest.mark.parametrize(
    ("metadata", "more", "said"),
    [
        (
            {"before_ms": KNOWN_MS},
            ("--from", str(KNOWN_MS - 1)),
            "scores of known events look better than",
        ),
        ({"before_ms": None, "until_ms": 2**41}, (), "was trained on all that happened before"),
        ({"before_ms": KNOWN_MS}, ("--split", "0.1"), "train the encoder on the first part alone"),
        ({}, (), "does not say until when it was trained"),
        ({"before_ms": KNOWN_MS}, ("--split", "0.26"), "50 are needed to learn from"),
        ({"before_ms": KNOWN_MS, "embedder": "other"}, (), "was trained on"),
    ],
    ids=["known events", "all is known", "an early end", "an old model", "too few", "other vectors"],
)
def test_what_it_must_not_or_cannot_learn_from_is_refused_in_one_line(
    tmp_path: Path, train: Train, metadata: dict[str, Any], more: tuple[str, ...], said: str
) -> None:
    made(tmp_path, "nothing", users=20)
    save_model(tmp_path / "other", **metadata)
    found = train("--model", str(tmp_path / "other"), *more, status=1)
    (line,) = [line for line in found["said"].splitlines() if line.startswith("perseid: ")]
    assert said in line and not list((tmp_path / "rankers").glob("*"))


def test_what_is_too_little_of_one_kind_of_list_is_said_and_left_out(tmp_path: Path, train: Train) -> None:
    made(tmp_path, "price", users=30)
    found = train("--split", "0.5")  # some 48 pages to learn from
    assert found["lists"].keys() == {"retrieved"}
    assert found["said"].count("with a choice that was shown") == 1 and "with a choice that was placed" in found["said"]


def test_until_when_an_old_model_knows_can_be_said(tmp_path: Path, train: Train) -> None:
    made(tmp_path, "price", users=20)
    save_model(tmp_path / "old")
    found = train("--model", str(tmp_path / "old"), "--known-until", str(KNOWN_MS))
    assert found["slice"]["from_ms"] == KNOWN_MS


@pytest.mark.servers
def test_with_add_it_is_beside_its_model_in_the_registry(
    tmp_path: Path, train: Train, redis_server: RedisServer, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "price")
    monkeypatch.setenv("PERSEID_REDIS", redis_server.url)
    monkeypatch.setenv("PERSEID_PREFIX", keys.prefix)
    found = train("--add")
    registry = Registry(tmp_path / "state" / "registry")
    files = registry.ranker(found["encoder"])
    assert registry.versions() == [found["encoder"]] and files is not None
    assert orjson.loads(files["ranker.json"])["version"] == found["version"]
    assert f"{found['version']} is beside {found['encoder']} and orders lists" in found["said"]
    assert "in force when its encoder is staged or served" in found["said"]
    by_version = train("--model", found["encoder"])
    assert by_version["version"] == found["version"]


@pytest.mark.servers
def test_the_served_model_gets_a_ranker_of_what_the_topics_hold(
    tmp_path: Path,
    train: Train,
    redis_server: RedisServer,
    keys: Keys,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = made(tmp_path, "price", users=20)
    with Broker(topic_partitions(PARTITIONS), tmp_path / "broker.log") as broker:
        produce(broker, list(records(folder.undated_from_start(), vectors=vectors_of(folder))))
        monkeypatch.setenv("PERSEID_KAFKA", broker.address)
        monkeypatch.setenv("PERSEID_PARTITIONS", str(PARTITIONS))
        monkeypatch.setenv("PERSEID_REDIS", redis_server.url)
        monkeypatch.setenv("PERSEID_PREFIX", keys.prefix)
        monkeypatch.setenv("PERSEID_MODEL", str(tmp_path / "model"))
        words = ["train-ranker", "--json", "--threads", "1", "--out", str(tmp_path / "rankers")]
        assert perseid(words) == 0
    found, theirs = orjson.loads(capfd.readouterr().out), train("--retrieved-only")
    assert found["encoder"] == theirs["encoder"] and found["slice"] == theirs["slice"]
    assert found["lists"].keys() == {"retrieved"}, "nothing was exposed"
    assert found["seen_before"] == theirs["seen_before"] > 0
    for name in ("lists", "questions"):
        assert found["lists"]["retrieved"][name] == theirs["lists"]["retrieved"][name]
    assert not (tmp_path / "state" / "ranker-data").exists()


def test_questions_are_of_the_slice_and_spread_over_it(tmp_path: Path) -> None:
    folder = made(tmp_path, "nothing")
    judged_ms, until_ms = ((MIDNIGHT_S + days * DAY_S) * 1000 for days in (5, 6))
    part = Slice(KNOWN_MS, judged_ms, until_ms)
    found = questions_of(folder, part, True, 36)
    assert found.keys() == {"retrieved", "shown", "placed"}
    numbers = [one.number for some in found.values() for one in some]
    assert numbers == list(range(len(numbers)))
    for some in found.values():
        times = [one.ts_ms for one in some]
        assert times == sorted(times) and times[0] >= KNOWN_MS
        assert [sum(ts_ms in span for ts_ms in times) for span in part.spans] == [36, 36, 36]
        days = {ts_ms // 1000 // DAY_S for ts_ms in times if ts_ms < judged_ms}
        assert len(days) == 3, "of every day"
    assert all(one.positions is None for one in found["shown"])
    assert [one.shown for one in found["shown"]] == [one.shown for one in found["placed"]]
    assert questions_of(folder, part, False, 60).keys() == {"retrieved"}


def test_the_last_fifth_of_the_slice_judges(tmp_path: Path) -> None:
    folder = made(tmp_path, "nothing", users=20)
    metadata = {"version": "m-1", "metadata": {"before_ms": KNOWN_MS}}
    part = Slice.of(folder, metadata, RankerPlan(tmp_path, tmp_path, split=0.75))
    events = folder.events
    counts = [events.before(ms) for ms in (part.start_ms, part.judged_ms, part.until_ms)]
    assert part.start_ms == KNOWN_MS and part.until_ms == folder.split_ms(0.75)
    assert (counts[2] - counts[1]) / (counts[2] - counts[0]) == pytest.approx(0.2, abs=0.02)
    later = Slice.of(folder, metadata, RankerPlan(tmp_path, tmp_path, start_ms=KNOWN_MS + 1))
    assert (later.start_ms, later.until_ms) == (KNOWN_MS + 1, folder.stop_ms)


def asked(number: int, place: int, user: str, prices: list[float]) -> AskedPool:
    features = np.full((len(prices), len(FEATURES)), np.nan, np.float32)
    features[:, FEATURES.index("price")] = prices
    first = -0.1 * np.arange(len(prices), dtype=np.float64)[:, None]
    pool = ListPool([f"i{n}" for n in range(len(prices))], features, first, np.zeros(len(prices)))
    return AskedPool(ChoiceQuestion(number, number, user, f"i{place}"), pool, place)


def test_gains_of_known_lists() -> None:
    cheapest_last = [5.0, 4.0, 3.0, 2.0, 1.0]
    questions = [asked(n, 4, f"u{n}", cheapest_last) for n in range(40)] + [asked(40, -1, "u0", cheapest_last)]
    found = RankerGain.of(questions, scorer("price", -1.0))
    assert (found.questions, found.users, found.found) == (41, 40, 40)
    assert found.ranker == pytest.approx(40 / 41) and found.first_stage == pytest.approx(40 / 41 / np.log2(6))
    assert found.difference == pytest.approx(found.ranker - found.first_stage)
    assert 0 < found.low <= found.difference <= found.high and found.better and found.as_shown is None
    assert found.said.startswith("better: NDCG@10 0.9756 beside the first stage's 0.3774, +0.5982 (")
    lost = importance(questions, scorer("price", -1.0))
    assert lost.keys() == {"price"} and lost["price"] > 0.2
    worse = RankerGain.of(questions, scorer("price", 1.0))
    assert not worse.better and worse.difference == 0, "the first stage has the same order"
    few = RankerGain.of(questions[:5], scorer("price", -1.0))
    assert not few.better and few.said == "only 5 users could be asked about; 30 are needed"
    assert not RankerGain.of([], scorer("price")).better
