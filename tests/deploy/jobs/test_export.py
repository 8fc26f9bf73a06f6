"""Topics exported from a broker: the folder they were made from comes back, replays alike, and can be trained on."""

from __future__ import annotations

import gzip
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from confluent_kafka import Producer

from deploy.cli import run
from deploy.jobs.evaluate import evaluate_folder
from deploy.jobs.export import FACTS, ExportPlan, export_topics
from deploy.jobs.replay import replay_folder, replay_topics
from deploy.jobs.replay_checkpoint import ReplayPlan
from deploy.jobs.train import TrainPlan, train_folder
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.settings import Settings, load
from deploy.shop.shop import Shop, ShopConfig
from deploy.texts.item_vectors import known_items
from encoder.model.artefact import save
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from encoder.text.cache import TextMemory
from encoder.text.item_text import canonical_text, text_hash
from encoder.training.options import TrainOptions
from index.state.keys import partition_of
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.sessions.sessions import read_sessions
from streams.events import CLICKSTREAM, EXPOSURES, PARTITIONED, Rules
from streams.folder.reader import Folder, read_folder
from streams.folder.records import SourceRecord, records
from streams.folder.training import context_features, training_data
from streams.kafka.topic_merge import Place
from streams.kafka.topic_reader import Span
from tests.streams.folder.test_export import rows_in
from tests.support.folders import write_vectors
from tests.support.replay_world import vectors_of

pytestmark = pytest.mark.servers

PARTITIONS, DAY_MS, END_MS = 3, 86_400_000, 1_760_000_000_000
SHOP = ShopConfig(n_items=48, n_users=15, n_categories=6, n_locations=2, sessions_per_user_day=2.0)
MODEL = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, d_text=4, d_reduced=4)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated shop's history, with vectors."""
    path = Path(tmp_path_factory.mktemp("data")) / "shop"
    Shop(3, SHOP).write_history(path, END_MS, days=4)
    folder = read_folder(path)
    vectors = vectors_of(folder)
    write_vectors(path, [vectors.body(row, int(ms)) for row, ms in enumerate(folder.arrivals_ms)])
    return path


@pytest.fixture(scope="module")
def broker(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Its history as the topics would have held it, with what was shown."""
    with Broker(topic_partitions(PARTITIONS), tmp_path_factory.mktemp("broker") / "log") as running:
        folder = read_folder(original)
        produce(running, [*records(folder), *map(exposure, folder.impressions)])
        yield running


@pytest.fixture
def settings(broker: Broker) -> Settings:
    return load({}, kafka=broker.address, partitions=PARTITIONS, embedders="toy:4", device="cpu", cache_mb=4)


@pytest.fixture(scope="module")
def copy(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = load({}, kafka=broker.address, partitions=PARTITIONS, embedders="toy:4")
    out = Path(tmp_path_factory.mktemp("exported")) / "shop"
    facts = export_topics(out, ExportPlan(vectors="toy"), settings)
    assert facts["malformed"] == facts["log_starts"] == facts["lost_to_retention"] == {} and facts["misrouted"] == 0
    assert set(facts["removed"].values()) == {0}
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = Path(tmp_path_factory.mktemp("model"))
    save(StarsEncoder(MODEL).eval(), out, {"embedder": "toy", "context_features": []})
    return out


def exposure(page: dict[str, Any]) -> SourceRecord:
    items = [{"item_id": item, "slot": "next", "score": 0.0} for item in page["shown"]]
    names = {name: page[name] for name in ("user_id", "page_id", "ts_ms", "location")}
    body = {"recommendation_id": page["page_id"], "items": items, "model": "shop", "served_by": "personal", **names}
    return SourceRecord(EXPOSURES, page["user_id"].encode(), orjson.dumps(body), page["ts_ms"])


def produce(broker: Broker, found: Sequence[SourceRecord]) -> None:
    producer = Producer({"bootstrap.servers": broker.address, "compression.type": "gzip"})
    for topic, key, value, timestamp_ms in found:
        partition = partition_of(key.decode(), PARTITIONS) if topic in PARTITIONED else 0
        producer.produce(topic, value, key, partition, timestamp=timestamp_ms)
    assert producer.flush(30) == 0


def columns(folder: Folder) -> list[Any]:
    details = [folder.events.detail(name) for name in ("session_id", "location", "page_id")]
    return [rows_in(folder), *details]


def test_the_folder_comes_back_as_it_was(original: Path, copy: Path) -> None:
    first, second = read_folder(original), read_folder(copy)
    assert len(first.events) > 200 and columns(first) == columns(second)
    assert first.contexts == second.contexts and first.profiles == second.profiles
    arrivals = [dict(zip(f.item_ids, f.arrivals_ms.tolist(), strict=True)) for f in (first, second)]
    assert arrivals[0] == arrivals[1]
    assert {b["item_id"]: b["vector"] for b in first.vectors} == {b["item_id"]: b["vector"] for b in second.vectors}
    facts = orjson.loads((copy / FACTS).read_bytes())
    assert facts["lines"]["events"] == facts["records"][CLICKSTREAM] == len(second.events)


def test_the_same_is_learned_from_it(original: Path, copy: Path) -> None:
    found = []
    for path in (original, copy):
        folder = read_folder(path)
        vectors = vectors_of(read_folder(original))
        prepared = training_data(folder, vectors, context_features(folder))
        data = prepared.data
        assert data.pages is not None and data.context is not None
        pages = [[data.item_ids[number] for number in page] for page in data.pages]
        names = [data.item_ids[number] for number in data.items]
        found.append((prepared.user_ids, data.user_ptr.tolist(), names, data.kinds.tolist(), data.ts_ms.tolist(),
                      pages, data.context.tolist(), data.profiles))  # fmt: skip
    assert found[0] == found[1] and sum(map(len, found[0][5])) > 500


@pytest.mark.parametrize("choice", ["click", "view"])
def test_it_has_the_same_sessions(original: Path, copy: Path, choice: str) -> None:
    first, second = (read_sessions(read_folder(path), choice) for path in (original, copy))
    assert all(len(slates) > 30 for slates in first.slates.values())
    assert first.slates == second.slates and first.left_out == second.left_out


def test_it_replays_as_the_topics_do(copy: Path, model: Path, settings: Settings) -> None:
    plan = ReplayPlan(model, QuestionSettings(every=3))
    topics, folder = replay_topics(plan, settings), replay_folder(copy, plan, settings, {})
    assert topics.complete and topics.digest == folder.digest
    assert topics.answers is not None and topics.answers["questions"] > 50 and topics.answers == folder.answers


def test_it_evaluates_as_the_original_does(original: Path, copy: Path, model: Path, settings: Settings) -> None:
    ask = QuestionSettings(every=2)
    first, second = (evaluate_folder(path, model, settings, {}, 0.2, ask) for path in (original, copy))
    assert first["questions"] > 50 and first == second


def test_a_range_is_that_of_replay(original: Path, settings: Settings, tmp_path: Path) -> None:
    folder = read_folder(original)
    start_ms, stop_ms = folder.split_ms(0.4), folder.split_ms(0.7)
    export_topics(tmp_path / "part", ExportPlan(start_ms, stop_ms), settings)
    part = read_folder(tmp_path / "part")
    assert rows_in(part) == [row for row in rows_in(folder) if start_ms <= row[0] < stop_ms]
    assert [page["ts_ms"] for page in part.impressions] == [
        page["ts_ms"] for page in folder.impressions if start_ms <= page["ts_ms"] < stop_ms
    ]
    assert part.contexts == [context for context in folder.contexts if context["ts_ms"] < stop_ms]
    assert not part.vectors
    spans: dict[Place, Span] = {(CLICKSTREAM, p): Span(0, 0) for p in range(1, PARTITIONS)}
    facts = export_topics(tmp_path / "piece", ExportPlan(spans=spans | {(CLICKSTREAM, 0): Span(5, 12)}), settings)
    home = [row for row in rows_in(folder) if partition_of(row[1], PARTITIONS) == 0]
    assert rows_in(read_folder(tmp_path / "piece")) == home[5:12]
    assert facts["offsets"]["clickstream[0]"] == (5, 12)


def test_a_model_is_trained_from_an_exported_folder(copy: Path, tmp_path: Path) -> None:
    memory = TextMemory()
    for line in known_items(read_folder(copy), None):
        key = text_hash(canonical_text(line))
        memory[key] = np.random.default_rng(int(key[:8], 16)).normal(size=384).astype(np.float32)
    options = TrainOptions(epochs=1, threads=1)
    result = train_folder(TrainPlan(copy, tmp_path / "models", 0.8, options=options), Rules(), memory)
    found = load({}, device="cpu", cache_mb=4)
    (copy / "item-vectors.jsonl.gz").rename(copy / "aside")  # vectors of another embedder than the model's
    try:
        report = evaluate_folder(copy, result.folder, found, memory, None, QuestionSettings(every=3))
    finally:
        (copy / "aside").rename(copy / "item-vectors.jsonl.gz")
    assert report["questions"] > 5 and report["metrics"]["hr@10"] > 0


def test_the_command_prints_what_is_in_the_folder(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert run(["export", str(tmp_path / "deep" / "folder")]) == 0
    shown = orjson.loads(capsys.readouterr().out)
    assert shown["lines"]["events"] == len(read_folder(tmp_path / "deep" / "folder").events)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["folder"]
    assert {path.name for path in (tmp_path / "deep" / "folder").iterdir()} == {
        FACTS, "events.csv.gz", "items.jsonl.gz", "impressions.jsonl.gz", "context.jsonl.gz", "users.jsonl.gz",
    }  # fmt: skip
    assert run(["export", str(tmp_path / "deep" / "folder")]) == 1
    assert "is there already; name a folder that does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(["export", str(tmp_path / "empty"), "--from", "2033-01-01"]) == 1
    assert "nothing to export: of 0 records of the clickstream" in capsys.readouterr().err
    assert list((tmp_path / "empty").iterdir()) == []
    assert run(["export", str(tmp_path / "x"), "--vectors", "other"]) == 1
    assert "embedder 'other' is none of toy; add it to PERSEID_EMBEDDERS" in capsys.readouterr().err
    assert run(["export", str(tmp_path / "x"), "--offsets", "clickstream[7]:0-1"]) == 1
    assert "clickstream[7] does not exist: it has partitions 0 to 2" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty"]
    assert run(["export", str(tmp_path / "bare"), "--offsets", "catalog[0]:0-10"]) == 0
    said = capsys.readouterr()
    lone = orjson.loads(said.out)["without_record"]
    written = len(read_folder(tmp_path / "bare").events)
    assert 0 < lone["events"] < written == shown["lines"]["events"] and lone["first"].startswith("clickstream[")
    line = f"written, but of {lone['items']} items without a record: {lone['events']} events (first: {lone['first']})"
    assert said.err.splitlines() == [line]


def test_the_same_log_gives_the_same_bytes(settings: Settings, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_topics(tmp_path / name, ExportPlan(), settings)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_full_disk_leaves_nothing_behind(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = gzip.GzipFile.write, itertools.count()

    def full(self: gzip.GzipFile, data: Any) -> int:
        if next(calls) == 50:  # in the middle of the events
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(OSError, match=r"is full: an export needs room .* on another disk"):
        export_topics(tmp_path / "out", ExportPlan(), settings)
    assert list(tmp_path.iterdir()) == []


def test_exporting_loads_no_torch() -> None:
    code = "import sys, deploy.jobs.export, deploy.commands.data; print(sorted({'torch', 'faust'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
