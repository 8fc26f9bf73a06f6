"""A tiny shop and an untrained model for replay and evaluation tests: no quality, but exact lists to compare."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from context.features import ContextFeatures
from context.offsets import ContextOffset
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from index.query.model import ServedModel
from index.query.question import Weights
from index.state.keys import partition_tag
from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.evaluation.comparison import KS
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.leave_one_out import LeaveOneOut, Part, rank_all
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.prequential import PrequentialEvaluator
from streams.evaluation.rankers import ModelRanker, OfflineModel
from streams.events import Record, Rules, topics_of
from streams.folder.reader import Folder, read_folder
from streams.item_vectors import ItemVectors
from streams.kafka.topic_merge import Covers
from streams.pipeline.encoder_thread import EncoderThread
from streams.pipeline.engine import Engine
from streams.replay.replay import SilentSink, feed, report
from streams.replay.report import ReplayCounts, ReplayReport
from tests.support.folders import START_S, item, write_folder
from tests.support.streams_world import MemoryBroker

PARTITIONS, VERSION = 3, "m-00000001"
RULES = Rules(embedders={"toy": 4})
CONFIG = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=16, d_text=4, d_reduced=4, window=20, slack=4)
HEADER = "user_id,item_id,event_type,timestamp,location"


def shop(path: Path, seed: int = 0, events: int = 400, items: int = 40, users: int = 12, timed: bool = False) -> Folder:
    """Users with a favourite corner of the catalogue, some kinds that are no choice, items that arrive on the way.

    `timed`: some have a time window that opens or closes exactly at an event.
    """
    rng = random.Random(seed)
    rows = []
    for n in range(events):
        user = rng.randrange(users)
        number = (user * 3 + rng.randrange(8)) % items if rng.random() < 0.8 else rng.randrange(items)
        kind = rng.choice(("view", "view", "view", "add_to_cart", "purchase", "dislike"))
        rows.append((f"u{user}", f"i{number}", kind, START_S + n * 50, rng.choice(("oslo", ""))))
    return read_folder(
        write_folder(
            path,
            rows,
            [item(f"i{n}", available=n != 7, **(_window(n, events) if timed else {})) for n in range(items)],
            header=HEADER,
            context=[_weather(START_S + n * 5000) for n in range(4)],
            users=[{"user_id": "u1", "categorical": {"location": "oslo"}}],
        ),
        RULES,
    )


def _window(number: int, events: int) -> dict[str, int]:
    """Of each five items one that ends, one that starts and one that does both on the way."""
    early, late = ((START_S + events * tenths // 10 * 50) * 1000 for tenths in (4, 8))
    windows: list[dict[str, int]] = [{"ends_ms": late}, {"starts_ms": early}, {"starts_ms": early, "ends_ms": late}]
    return windows[number % 5] if number % 5 < 3 else {}


def _weather(second: int) -> dict[str, Any]:
    return {
        "location": "oslo",
        "ts_ms": second * 1000,
        "valid_until_ms": (second + 4000) * 1000,
        "weather": {"sky": "blue"},
        "events": [],
        "promotions": [],
    }


def vectors_of(folder: Folder, seed: int = 0) -> ItemVectors:
    matrix = np.random.default_rng(seed).standard_normal((len(folder.item_ids), 4)).astype(np.float32)
    return ItemVectors("toy", folder.item_ids, matrix, [[] for _ in folder.item_ids])


def encoder(seed: int = 0) -> IncrementalEncoder:
    torch.manual_seed(seed)
    return IncrementalEncoder(StarsEncoder(CONFIG).eval(), cache_bytes=1 << 22, device="cpu")


def offline(popularity: float = 0.0) -> OfflineModel:
    """The model as offline evaluation asks it."""
    return OfflineModel(encoder(), served().offset, Weights(popularity=popularity))


def held_out(folder: Folder, ask: QuestionSettings) -> HeldOut:
    return HeldOut(folder, vectors_of(folder), RULES, ask, Weights())


def encoder_thread() -> EncoderThread:
    return EncoderThread(encoder(), VERSION)


def served() -> ServedModel:
    """A model whose offset is as long as a user's vector, along the four axes that untrained items lie on."""
    features = ContextFeatures.build([_weather(START_S)])
    weight = np.random.default_rng(5).standard_normal((CONFIG.d_model, len(features))).astype(np.float32)
    weight[CONFIG.d_text :] = 0
    return ServedModel(VERSION, CONFIG.d_model, ContextOffset(weight, features, max_norm=1.0))


async def lived(broker: MemoryBroker, store: MemoryStore, rng: random.Random, rules: Rules = RULES) -> Engine:
    """Applies a broker's logs partition by partition in random order, forwarding as it goes."""
    engine = Engine(store, rules, PARTITIONS, broker)
    for tag in map(partition_tag, range(PARTITIONS)):
        await engine.claim(tag, 1, dict.fromkeys(topics_of(tag), LogIdentity("live")))
    while True:
        behind = [
            log[at : at + rng.choice((1, 7, 30))]
            for (topic, partition), log in list(broker.logs.items())
            if (at := engine.leases[partition_tag(partition)].positions[topic]) < len(log)
        ]
        if not behind:
            return engine
        await engine.apply(rng.choice(behind))


def rank_targets(encoder: IncrementalEncoder, data: LeaveOneOut, part: Part, ks: Sequence[int] = KS) -> Outcomes:
    """`rank_all` of the model's lists."""
    ranker = ModelRanker(encoder, data.vectors, ("next", "general", "mixed"))
    return rank_all([ranker], data, part, ks, window=encoder.model.config.window)


async def replay(
    source: str,
    records: Iterable[Record],
    engine: Engine,
    sink: SilentSink,
    evaluator: PrequentialEvaluator | None = None,
    covers: Callable[[], Mapping[str, Covers]] = dict,
) -> ReplayReport:
    """Applies all records in one part and reports; `covers` says afterwards what was read."""
    counts = ReplayCounts(dead_letters=sink.dead_letters)
    await feed(records, engine, counts, evaluator)
    return await report(source, engine, counts, evaluator, covers())
