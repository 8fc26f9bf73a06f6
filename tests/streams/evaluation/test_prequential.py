"""Prequential equals offline: replay through the live pipeline gives the lists of evaluation, question by question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from context.features import ContextFeatures
from deploy.settings import load
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.slices import Facts
from streams.folder.reader import Folder
from tests.bench.prequential import Answer, both, compare
from tests.support.folders import write_vectors
from tests.support.replay_world import CONFIG, PARTITIONS, shop, vectors_of

SETTINGS = load({}, partitions=PARTITIONS, embedders="toy:4", device="cpu", cache_mb=4)
ASK = QuestionSettings(slots=("next", "general", "mixed"), ks=(5, 10), plain=True)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Contexts, profiles, a hidden item, items that arrive, start and end on the way, kinds that are no choice."""
    found = shop(tmp_path / "shop", events=600, timed=True)
    vectors = vectors_of(found)
    write_vectors(tmp_path / "shop", [vectors.body(row, int(found.arrivals_ms[row])) for row in range(40)])
    return found


@pytest.fixture
def model(tmp_path: Path, folder: Folder) -> Iterator[Path]:
    """Untrained, with a context that counts and a window that is cut on the way."""
    features = ContextFeatures.build(folder.contexts)
    config = replace(CONFIG, context_features=features.names)
    torch.manual_seed(0)
    encoder = StarsEncoder(config).eval()
    with torch.no_grad():
        encoder.context.normal_(std=0.1)
    metadata = {"embedder": "toy", "context_features": features.to_list(), "data": "shop"}
    save(encoder, tmp_path / "model", {**metadata, "before_ms": folder.split_ms(0.3)})
    yield tmp_path / "model"


def test_both_paths_give_the_same_lists_event_by_event(tmp_path: Path, folder: Folder, model: Path) -> None:
    live, offline, skipped = both(tmp_path / "shop", model, SETTINGS, {}, ASK, 0.0)
    agreement = compare(live, offline, ("next", "general"))
    assert agreement.questions > 40 and agreement.personal > 30
    assert agreement.unexplained == [] and agreement.share <= 0.01
    assert skipped["live"] == skipped["offline"] and skipped["live"]["seen before"] > 10
    for one, other in zip(live, offline, strict=True):
        if all(one.lists[slot] == other.lists[slot] for slot in ("next", "general")):
            assert one.lists["mixed"] == other.lists["mixed"]


def test_the_serving_score_would_not_agree(tmp_path: Path, folder: Folder, model: Path) -> None:
    """The comparison can fail: with popularity in the score the lists differ by more than rounding."""
    live, _, _ = both(tmp_path / "shop", model, SETTINGS, {}, replace(ASK, plain=False), 0.0)
    _, offline, _ = both(tmp_path / "shop", model, SETTINGS, {}, ASK, 0.0)
    assert len(compare(live, offline, ("next", "general")).unexplained) > 10


def answer(first: str, second: str, **scores: float) -> Answer:
    return Answer("a", {"next": [first, second]}, Facts("u"), {"next": scores})


def test_only_a_small_gap_explains_another_order() -> None:
    close = compare([answer("a", "b", a=0.5, b=0.4999)], [answer("b", "a")], ["next"])
    assert (close.other_lists, close.other_ranks, close.unexplained) == (1, 1, [])
    assert close.gaps == [pytest.approx(1e-4)]
    far = compare([answer("a", "b", a=0.5, b=0.49)], [answer("b", "a")], ["next"])
    assert far.unexplained == ["question 0 of u, next: gap 0.010000000000000009"]
    assert compare([answer("a", "b", a=1, b=0)], [answer("a", "c")], ["next"]).unexplained
    with pytest.raises(ValueError, match="not the same questions"):
        compare([answer("a", "b")], [], ["next"])
