"""Five dislikes of a category on the generated shop, with its labels and texts, and as sessions without either."""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from context.units import DAY_MS
from deploy.shop.shop import ShopConfig
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.artefact import load
from encoder.model.config import preset
from encoder.training.holdout import LEAST_ASKED, NEGATIVE
from encoder.training.loop import train
from encoder.training.options import TrainOptions
from index.items.catalogue import Catalogue
from index.query.counts.popularity import Popularity
from index.query.model import own_weights
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import recommend
from index.query.second_stage import ListRanker, SecondStage
from index.ranking.features import event_classes
from index.state.keys import LOCATION_SEPARATOR, partition_tag
from index.state.memory_store import MemoryStore
from index.state.records import ItemRecord
from index.state.user_columns import UserState
from streams.evaluation.feedback import penalties_of
from streams.evaluation.rankers import retrieval_vectors
from streams.events import Rules
from streams.folder.reader import Folder, read_folder
from streams.folder.training import training_data
from streams.item_vectors import ItemVectors
from tests.support.folders import write_folder
from tests.support.known_shop import KnownShop
from tests.support.simple_rankers import scorer

END_MS = 1_760_054_400_000
CATEGORIES, WORDS, OF = 10, 64, 20
RULES = Rules()
CODE = {kind.name: code for code, kind in enumerate(RULES.kinds)}
KIND_WEIGHTS = [kind.weight for kind in RULES.kinds]
REMEMBERED = [kind.remembered for kind in RULES.kinds]


def words_of(record: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A text vector: the sum of what each word is hashed to."""
    words = f"{record.get('title', '')} {record.get('description', '')}".lower().split()
    seeds = [int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") for word in words]
    total = np.sum([np.random.default_rng(seed).standard_normal(WORDS) for seed in seeds], axis=0)
    return np.asarray(total / np.linalg.norm(total), np.float32)


def sessions_of(folder: Path, out: Path, item_ids: Sequence[str]) -> Path:
    """The shop as a hotel search would have it: each session is a user, and of items nothing but the id is known."""
    with gzip.open(folder / "events.csv.gz", "rt") as file:
        names = ("session_id", "item_id", "event_type", "timestamp", "ts_ms")
        rows = [[row[name] for name in names] for row in csv.DictReader(file)]
    items = [{"item_id": item_id, "title": item_id} for item_id in item_ids]
    return write_folder(out, rows, items, header="user_id,item_id,event_type,timestamp,ts_ms")


def viewed(events: Sequence[tuple[str, str]]) -> bool:
    """Whether something was looked at and not only disliked."""
    return any(kind == "view" for _, kind in events)


@dataclass
class Served:
    """A trained model with its items, as an API process serves them."""

    shop: KnownShop
    encoder: IncrementalEncoder
    catalogue: Catalogue
    popularity: Popularity
    weights: Weights
    metadata: dict[str, Any]

    def share(
        self,
        category: str,
        events: Sequence[tuple[str, str]],
        weights: Weights | None = None,
        ranker: ListRanker | None = None,
    ) -> int:
        """How many of the next OF items are of a category, after (item, kind) one a minute; a cold user has none."""
        state = UserState(
            items=[item for item, _ in events],
            kinds=[CODE[kind] for _, kind in events],
            ts_ms=[END_MS - 60_000 * (len(events) - at) for at in range(len(events))],
        )
        vectors = None
        if events:
            request = EncodeRequest("u", state.items, state.kinds, state.ts_ms, None, 0)
            vectors = self.encoder.encode_whole([request]).vectors[0]
        view = UserView.of(vectors, state, KIND_WEIGHTS)
        served = view, self.catalogue, ContextView(), self.popularity, END_MS, weights or self.weights
        found = recommend(Query(OF), *served, ranker)
        assert ranker is None or not viewed(events) or found.ranked_by == ranker.version
        return sum(self.shop.category_of(entry.item_id) == category for entry in found.items)


async def _popularity(folder: Folder) -> Popularity:
    store, tag = MemoryStore(), partition_tag(0)
    recent = folder.events.ts_ms > END_MS - 3 * DAY_MS
    counts = Counter(folder.item_ids[item] for item in folder.events.items[recent].tolist())
    fields = {f"{LOCATION_SEPARATOR}{item}": str(count).encode() for item, count in counts.items()}
    await store.write(store.keys.popularity(tag, 0), fields)
    await store.write(store.keys.popularity_buckets(tag), {"0": b"1"})
    found = Popularity(store)
    await found.refresh(1, 1, 0)
    return found


@pytest.fixture(scope="module", params=["shop", "sessions"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    path = tmp_path_factory.mktemp(request.param)
    shop = KnownShop(3, ShopConfig(n_items=400, n_users=800, n_categories=CATEGORIES, n_brands=20))
    shop.write_history(path / "shop", END_MS, days=30)
    labelled = request.param == "shop"
    source = path / "shop" if labelled else sessions_of(path / "shop", path / "sessions", shop.goods.ids)
    folder = read_folder(source, RULES)
    matrix = np.stack([words_of(record) for record in folder.items]) if labelled else np.zeros((400, WORDS), np.float32)
    vectors = ItemVectors("words", folder.item_ids, matrix, [[] for _ in folder.item_ids])
    records = {record["item_id"]: record for record in folder.items}
    parts = ("text", "ids") if labelled else ("ids",)
    config = preset(
        "nano", d_text=WORDS, d_reduced=16, d_model=32, n_layers=1, d_ff=64, parts=parts, kinds=folder.kind_names
    )
    data = training_data(folder, vectors).data
    penalties = penalties_of(data, records, folder.kind_weights, config.window)
    options = TrainOptions(epochs=3 if labelled else 12, threads=1, holdout=0.1)
    result = train(data, config, options, out=path / "model", penalties=penalties, metadata={"context_features": []})
    model, metadata = load(result.folder)
    encoder = IncrementalEncoder(model, cache_bytes=1 << 24, device="cpu")
    retrieval = retrieval_vectors(encoder, vectors)
    catalogue = Catalogue(result.version, config.d_model)
    fields = ("title", "brand", "category", "subclass")
    known = [{name: records[item_id].get(name) for name in fields} for item_id in vectors.item_ids]
    rows = zip(vectors.item_ids, known, retrieval, strict=True)
    catalogue.apply([ItemRecord(name, 1, body, None, (), "words", None, None, vector) for name, body, vector in rows])
    return Served(shop, encoder, catalogue, asyncio.run(_popularity(folder)), own_weights(metadata), metadata)


@pytest.mark.parametrize("kind", ["dislike", "remove"])
@pytest.mark.parametrize("views_before", [0, 5])
def test_five_dislikes_turn_the_list_away_from_a_category(served: Served, kind: str, views_before: int) -> None:
    """Less of it than after views alone, without the weight, and than whoever has no history gets."""
    table = []
    for category in served.shop.categories:
        items = served.shop.items_of(category)
        views = [(item, "view") for item in items[5:10]]
        events = [*views[:views_before], *((item, kind) for item in items[:5])]
        off = served.share(category, events, replace(served.weights, negative=0))
        before, nobody = served.share(category, views), served.share(category, [])
        table.append((before, off, nobody, served.share(category, events)))
    assert sum(min(before, off) for before, off, _, _ in table) > 2 * sum(nobody for _, _, nobody, _ in table), table
    assert sum(after < before for before, _, _, after in table) >= CATEGORIES - 1, table
    assert sum(after < off for _, off, _, after in table) >= CATEGORIES - 1, table
    if kind == "dislike" and not views_before:
        assert sum(after < nobody or not after for _, _, nobody, after in table) >= CATEGORIES - 1, table


@pytest.mark.parametrize("feature", ["near_recent", "next"])
@pytest.mark.parametrize("views_before", [0, 5])
def test_a_list_that_is_ranked_turns_away_too(served: Served, feature: str, views_before: int) -> None:
    """Also by a ranker that knows nothing of dislikes and wants more of whatever was touched last."""
    stage = SecondStage(served.catalogue, served.popularity, event_classes(KIND_WEIGHTS, REMEMBERED))
    ranker = ListRanker(stage, scorer(feature, low=-1.0, high=1.0), "r-1")
    table = []
    for category in served.shop.categories:
        items = served.shop.items_of(category)
        views = [(item, "view") for item in items[5:10]]
        events = [*views[:views_before], *((item, "dislike") for item in items[:5])]
        before, after = (served.share(category, some, ranker=ranker) for some in (views, events))
        table.append((before, after, served.share(category, [])))
    assert sum(before for before, _, _ in table) > 2 * sum(nobody for _, _, nobody in table), table
    assert sum(after < before for before, after, _ in table) >= CATEGORIES - 1, table
    assert views_before or sum(after < nobody or not after for _, after, nobody in table) >= CATEGORIES - 1, table


def test_five_dislikes_of_somebody_with_a_long_history_bring_no_more_of_a_category(served: Served) -> None:
    """The last events decide what comes next, also when they are dislikes, whatever was viewed before."""
    table = []
    for category in served.shop.categories:
        rest = sorted(set(served.shop.goods.ids) - set(served.shop.items_of(category)[:5]))
        views = [(item, "view") for item in np.random.default_rng(1).choice(rest, 100, replace=False).tolist()]
        events = [*views, *((item, "dislike") for item in served.shop.items_of(category)[:5])]
        off = served.share(category, events, replace(served.weights, negative=0))
        table.append((served.share(category, views), off, served.share(category, events)))
    assert sum(off > before for before, off, _ in table) > CATEGORIES / 2, table
    assert sum(after <= before for before, _, after in table) >= CATEGORIES - 1, table
    assert sum(after < off for _, off, after in table) >= CATEGORIES - 1, table


def test_training_chose_the_weight_where_enough_was_asked_after_dislikes(served: Served) -> None:
    asked = served.metadata["metrics"].get("disliking_events", 0)
    assert (served.metadata.get("negative") in NEGATIVE) == (asked >= LEAST_ASKED)
    assert served.weights.negative == served.metadata.get("negative", Weights().negative)
