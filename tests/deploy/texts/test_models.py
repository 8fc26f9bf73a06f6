"""Who embeds and tags, by the settings; training through an endpoint; an embed process killed while it pays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from confluent_kafka import Consumer, Producer

from deploy.cli import run
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.servers.redis import RedisServer
from deploy.settings import load
from deploy.texts.item_vectors import item_vectors, known_items
from deploy.texts.models import LEDGER, TextSource, embedder_key, known_vectors
from deploy.traffic.plan import TrafficPlan
from encoder.model.artefact import save
from encoder.model.config import preset
from encoder.model.document import read_document
from encoder.model.encoder import StarsEncoder
from encoder.text.item_text import VocabularyTagger
from encoder.text.ledger import Ledger
from encoder.text.limits import BudgetError, EndpointError
from streams.events import CATALOG, ITEM_VECTORS
from streams.folder.reader import read_folder
from tests.conftest import eventually
from tests.support.folders import START_S, item, write_folder
from tests.support.llm_server import CHAT_MODEL, DIMENSION, MODEL, Fault, LlmServer, letters

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[3]
KEY = "sk-very-secret-0123456789"


@pytest.fixture
def server() -> Iterator[LlmServer]:
    running = LlmServer(letters, KEY).start()
    yield running
    running.stop()


def environment(server: LlmServer, state: Path, chat: bool = True) -> dict[str, str]:
    found = {
        "PERSEID_STATE": str(state),
        "PERSEID_EMBED_URL": server.url,
        "PERSEID_EMBED_MODEL": MODEL,
        "PERSEID_EMBED_KEY": KEY,
        "PERSEID_EMBEDDERS": f"minilm-l6-v2:384,{MODEL}:{DIMENSION}",
        "PERSEID_LLM_TIMEOUT_S": "10",
    }
    if chat:
        found |= {"PERSEID_CHAT_URL": server.url, "PERSEID_CHAT_MODEL": CHAT_MODEL, "PERSEID_CHAT_KEY": KEY}
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = [
        item(
            f"i{number}",
            title=f"{'red' if number % 2 else 'blue'} lamp {number}",
            brand="Acme",
            category=["AB"[number % 2]],
        )
        for number in range(8)
    ]
    rows = [
        (f"u{user}", f"i{(user + step) % 8}", "view", START_S + 60 * step + user)
        for step in range(9)
        for user in range(6)
    ]
    return write_folder(tmp_path / "shop", sorted(rows, key=lambda row: row[3]), items)


def test_training_asks_the_endpoints_once_and_names_them(
    server: LlmServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(server, tmp_path / "state").items():
        monkeypatch.setenv(name, value)
    train = ["train", str(folder), "--epochs", "1", "--threads", "1", "--quiet", "--out"]
    assert run([*train, str(tmp_path / "one")]) == 0, capsys.readouterr().err
    paid = len(server.requests)
    assert set(server.texts.values()) == {1} and len(server.texts) == len(server.tagged) == 8
    (artefact,) = (tmp_path / "one").glob("m-*")
    document = read_document(artefact)
    assert document["metadata"]["embedder"] == MODEL and document["metadata"]["tagger"] == CHAT_MODEL
    assert document["config"]["d_text"] == DIMENSION
    assert run([*train, str(tmp_path / "two")]) == 0
    assert run(["evaluate", "timeline", str(folder), "--model", str(artefact), "--split", "0.5", "--json"]) == 0, (
        capsys.readouterr().err
    )
    assert len(server.requests) == paid, "what was paid for once is used again"
    plan = TrafficPlan("data", str(folder), 1 << 60, "k", str(artefact), str(tmp_path / "state" / "texts"))
    server.key = "changed"
    known = known_vectors(read_folder(folder), plan, load(environment(server, tmp_path / "state")))
    assert (len(known.item_ids), known.embedder, len(server.requests)) == (8, MODEL, paid), "and asks nobody"


def test_a_training_that_goes_on_keeps_the_vocabulary_of_a_chat_model(
    server: LlmServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(server, tmp_path / "state").items():
        monkeypatch.setenv(name, value)
    train = ["train", str(folder), "--epochs", "1", "--threads", "1", "--quiet", "--out"]
    assert run([*train, str(tmp_path / "one"), "--split", "0.5"]) == 0
    (parent,), paid = (tmp_path / "one").glob("m-*"), len(server.requests)
    all_again = ["--set", "since_ms=null"]
    assert run([*train, str(tmp_path / "two"), "--split", "0.5", "--from", str(parent), *all_again]) == 0
    assert len(server.requests) == paid
    (child,) = (tmp_path / "two").glob("m-*")
    assert read_document(child)["config"]["tags"] == read_document(parent)["config"]["tags"]
    assert run([*train, str(tmp_path / "three"), "--from", str(parent)]) == 0
    assert len(server.requests) - paid <= 2 * 8, "new items alone are asked about"


def test_training_leaves_out_what_has_no_answer_and_ends_with_one_line_when_nothing_has(
    server: LlmServer, folder: Path, tmp_path: Path
) -> None:
    items = known_items(read_folder(folder), None)
    with TextSource(load(environment(server, tmp_path, chat=False))) as source:
        server.broken = lambda texts: Fault(400) if any("lamp 3" in text for text in texts) else None
        found = item_vectors(items, source.embedder, VocabularyTagger([]), source.memory)
        assert sorted(found.item_ids) == [f"i{number}" for number in range(8) if number != 3]
    with TextSource(load(environment(server, tmp_path / "new", chat=False))) as source:
        server.broken = lambda texts: Fault(400, body=b"no such input")
        with pytest.raises(ValueError, match="no such input"):
            item_vectors(items, source.embedder, VocabularyTagger([]), source.memory)


def test_what_was_paid_for_before_labels_were_folded_is_not_paid_for_again(server: LlmServer, tmp_path: Path) -> None:
    before, now = ({"item_id": "a", "title": "red lamp", "brand": brand} for brand in ("Cafe\u0301", "Caf\u00e9"))
    with TextSource(load(environment(server, tmp_path))) as source:
        tagger = source.tagger(["brand:caf\u00e9", "category:lamp", "word:red"])
        first = item_vectors([before], source.embedder, tagger, source.memory)
        paid = len(server.requests)
        assert paid == 2, "a vector and tags"
        again = item_vectors([now], source.embedder, tagger, source.memory)
        assert len(server.requests) == paid and again.tags == first.tags
        np.testing.assert_array_equal(again.vectors, first.vectors)


def test_without_endpoints_it_is_the_local_model(tmp_path: Path) -> None:
    with TextSource(load({"PERSEID_STATE": str(tmp_path)})) as source:
        assert source.names == {"embedder": "minilm-l6-v2", "tagger": "vocabulary"}
    assert list(tmp_path.iterdir()) == [], "and no ledger"
    assert embedder_key(load({})) == ""


def test_an_embedder_that_is_not_the_models_is_refused_with_the_remedy(server: LlmServer, tmp_path: Path) -> None:
    document = {"metadata": {"embedder": "minilm-l6-v2"}, "config": {"tags": []}}
    settings = load(environment(server, tmp_path))
    with TextSource(settings) as source, pytest.raises(ValueError, match=r"minilm-l6-v2.*train a new model"):
        source.model(document)
    assert embedder_key(settings) == f"embed={MODEL};chat={CHAT_MODEL};"


def test_the_embed_role_serves_any_known_embedder_within_a_part_of_the_limits(
    server: LlmServer, tmp_path: Path
) -> None:
    known = f"minilm-l6-v2:384,{MODEL}:{DIMENSION},larger:{DIMENSION}"
    limits = {"PERSEID_EMBEDDERS": known, "PERSEID_LLM_TOKENS_PER_DAY": "100"}

    def document(name: str) -> dict[str, Any]:
        return {"metadata": {"embedder": name}, "config": {"tags": []}}

    with TextSource(load(environment(server, tmp_path, chat=False) | limits)) as source:
        first, _ = source.model_beside(document(MODEL))
        second, memory = source.model_beside(document("larger"), 0.5)
        local, _ = source.model_beside(document("minilm-l6-v2"), 0.5)
        assert (first.name, second.name, local.name) == (MODEL, "larger", "minilm-l6-v2")
        second.embed(["lamp"])
        assert [body["model"] for body in server.requests] == ["larger"] and len(memory) == 1
        with pytest.raises(BudgetError, match=r"of 50 tokens of this day that the texts of a staged model may cost"):
            second.embed(["a text that costs a little more than half of a day's tokens" * 3])
        first.embed(["a text that costs a little less than half of a day's" * 2])
        assert len(server.requests) == 2, "the champion's texts have the rest"
        assert second.seconds_for(100, 1) > 0 and first.counts["llm_requests"] == second.counts["llm_requests"] == 1
        second.close()
        first.embed(["pot"])
        with pytest.raises(EndpointError, match="ending"):
            second.embed(["pot"])
        with pytest.raises(ValueError, match=r"'unknown' is not known: add unknown:<dimension> to PERSEID_EMBEDDERS"):
            source.model_beside(document("unknown"))
    said = r"of 'larger' come from an endpoint: set PERSEID_EMBED_URL"
    with TextSource(load({"PERSEID_STATE": str(tmp_path)})) as source, pytest.raises(ValueError, match=said):
        source.model_beside(document("larger"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"PERSEID_EMBEDDERS": "minilm-l6-v2:384"}, r"test-embedder:<dimension> to PERSEID_EMBEDDERS"),
        ({"PERSEID_EMBED_MODEL": ""}, "PERSEID_EMBED_MODEL.*name of a model"),
        ({"PERSEID_EMBED_URL": "ftp://user:hidden@host"}, "PERSEID_EMBED_URL.*http://"),
    ],
)
def test_settings_that_do_not_fit_say_so(
    server: LlmServer, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        TextSource(load(environment(server, tmp_path) | changed))
    assert "hidden" not in str(caught.value) and KEY not in str(caught.value)


class Deployment:
    """Broker, Redis, a model of the endpoint's embedder, and embed processes."""

    def __init__(self, broker: Broker, redis: RedisServer, server: LlmServer, folder: Path) -> None:
        self.broker, self.folder, self.server = broker, folder, server
        model = folder / "model"
        save(StarsEncoder(preset("nano", d_text=DIMENSION)), model, {"embedder": MODEL, "context_features": []})
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "PERSEID_KAFKA": broker.address,
            "PERSEID_REDIS": redis.url,
            "PERSEID_PREFIX": f"embed-{os.getpid()}",
            "PERSEID_MODEL": str(model),
            **environment(server, folder / "state", chat=False),
        }
        self.log = folder / "embed.log"

    @contextmanager
    def embed(self) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "deploy.cli", "embed"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def list_items(self, *titles: str) -> None:
        producer = Producer({"bootstrap.servers": self.broker.address})
        for number, title in enumerate(titles):
            body = {"item_id": f"i{number}", "title": title, "ts_ms": START_S * 1000}
            producer.produce(CATALOG, orjson.dumps(body), f"i{number}")
        assert producer.flush(10) == 0

    def vectors(self, count: int) -> list[str]:
        """The items of all vector records, once there are so many."""
        options = {"group.id": f"read-{time.time_ns()}", "auto.offset.reset": "earliest", "log_level": 0}
        consumer = Consumer({"bootstrap.servers": self.broker.address, **options})
        consumer.subscribe([ITEM_VECTORS])
        found: list[str] = []

        def enough() -> bool:
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                found.append(orjson.loads(message.value() or b"{}")["item_id"])
            return len(found) >= count

        eventually(enough, 60, f"{count} vectors; {self.log.read_text()[-2000:]}")
        consumer.close()
        return found


@pytest.fixture
def deployment(redis_server: RedisServer, server: LlmServer, tmp_path: Path) -> Iterator[Deployment]:
    broker = Broker(topic_partitions(2), tmp_path / "broker.log")
    broker.start()
    yield Deployment(broker, redis_server, server, tmp_path)
    broker.stop()


def test_an_answer_that_was_paid_for_survives_a_kill_before_it_is_published(
    deployment: Deployment, server: LlmServer
) -> None:
    """The broker stands still from before the answer until after the kill, so nothing can be published between."""
    server.released.clear()
    deployment.list_items("lamp", "chair", "pot")
    child = deployment.broker._child
    assert child is not None
    broker = child.pid
    with deployment.embed() as process:
        eventually(lambda: bool(server.requests), 60, f"the endpoint is asked; {deployment.log.read_text()[-2000:]}")
        os.kill(broker, signal.SIGSTOP)
        try:
            server.released.set()
            ledger = Ledger(deployment.folder / "state" / LEDGER)
            vectors = ledger.vectors(MODEL, DIMENSION)
            eventually(lambda: len(vectors) == 3, 20, "the answer is on disk")
            spent = ledger.spent_today()
            process.send_signal(signal.SIGKILL)
            process.wait()
        finally:
            os.kill(broker, signal.SIGCONT)
    with deployment.embed() as process:
        assert deployment.vectors(3) == ["i0", "i1", "i2"], "in catalogue order"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert server.texts == {"lamp": 1, "chair": 1, "pot": 1}, "no text was paid for twice"
    assert ledger.spent_today() == spent > 0, "and the day's spending is still known"
    ledger.close()
    assert KEY not in deployment.log.read_text()


def test_a_process_that_waits_for_its_budget_says_so_and_stops_when_asked(
    deployment: Deployment, server: LlmServer
) -> None:
    deployment.environment["PERSEID_LLM_TOKENS_PER_DAY"] = "3"
    deployment.list_items("lamp")
    with deployment.embed() as process:
        eventually(lambda: "tokens of this day are spent" in deployment.log.read_text(), 60, "it says why it waits")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert server.requests == []
    deployment.environment["PERSEID_LLM_TOKENS_PER_DAY"] = "3000"
    with deployment.embed():
        assert deployment.vectors(1) == ["i0"], "nothing was dropped"
