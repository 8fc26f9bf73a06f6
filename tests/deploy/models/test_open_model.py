"""An opened model has what its artefact says: encoder, offset, list and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from context.features import ContextFeatures
from deploy.models.open_model import open_model, served_model
from deploy.settings import load
from encoder.inference.batching import EncodeRequest
from encoder.inference.native_forward import COMPILED
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from tests.support.replay_world import CONFIG, shop

SETTINGS = load({}, device="cpu", cache_mb=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    features = ContextFeatures.build(shop(tmp_path / "shop", events=20).contexts)
    torch.manual_seed(0)
    model = StarsEncoder(replace(CONFIG, context_features=features.names)).eval()
    with torch.no_grad():
        model.context.normal_()
    metadata = {"embedder": "toy", "context_features": features.to_list(), "popularity": 0.5, "slot": "next"}
    save(model, tmp_path / "model", metadata)
    return tmp_path / "model"


def test_evaluation_and_the_api_read_the_same_model(folder: Path) -> None:
    opened, served = open_model(folder, SETTINGS), served_model(folder, SETTINGS)
    offline = opened.offline()
    assert opened.version == served.version and opened.metadata["slot"] == served.slot == "next"
    assert offline.weights == served.weights and offline.weights.popularity == 0.5
    delta = offline.offset.offset(1_600_000_000_000, None).delta
    assert np.array_equal(delta, served.offset.offset(1_600_000_000_000, None).delta) and np.any(delta)
    assert opened.offline(plain=True).weights == replace(offline.weights, popularity=0.0, negative=0.0)


def test_the_thread_reads_the_embedder_of_the_training_only(folder: Path) -> None:
    opened = open_model(folder, SETTINGS)
    thread = opened.thread()
    assert (thread.version, thread.reads("toy"), thread.reads("other")) == (opened.version, True, False)
    request = EncodeRequest("u", ["i1"], [0], [1_600_000_000_000], None, 0)
    assert opened.encoder.encode([request]).vectors.shape == (1, 2, CONFIG.d_model)
    thread.close()


def test_a_worker_caches_twice_the_users_and_a_replay_is_exact(tmp_path: Path) -> None:
    save(StarsEncoder(replace(CONFIG, d_model=32, n_heads=2, bias="none")).eval(), tmp_path, {"context_features": []})
    live, exact = open_model(tmp_path, SETTINGS, live=True).encoder, open_model(tmp_path, SETTINGS).encoder
    requests = [EncodeRequest("u", ["i1"], [0], [1_600_000_000_000], None, 0)]
    found, expected = live.encode(requests).vectors, exact.encode(requests).vectors
    assert exact._cache.storage.dtype == torch.float32
    if COMPILED:
        assert live._cache.count == 2 * exact._cache.count
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_tags_of_an_older_vocabulary_are_known_folded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tags = ("brand:cafe\u0301", "tag:red", "brand:caf\u00e9")
    save(StarsEncoder(replace(CONFIG, tags=tags)).eval(), tmp_path / "model", {"context_features": []})
    opened = open_model(tmp_path / "model", SETTINGS)
    rows = opened.encoder.model.tower.tag_rows([["brand:caf\u00e9", "tag:red"], ["brand:cafe\u0301"]])
    assert rows.tolist() == [[1, 2], [0, 0]]  # whoever looks up is folded before
    assert "is the same label as a name before it" in caplog.text
    assert opened.encoder.model.config.tags == tags


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no model \(there is no model\.json\); train one"):
        open_model(tmp_path, SETTINGS)


def test_a_model_of_another_length_than_its_embedder_gives_is_refused(folder: Path) -> None:
    settings = load({}, device="cpu", cache_mb=4, embedders=f"toy:{CONFIG.d_text + 1}")
    with pytest.raises(
        ValueError, match=rf"reads text vectors of {CONFIG.d_text} numbers.*toy gives {CONFIG.d_text + 1}"
    ):
        open_model(folder, settings)
    assert open_model(folder, load({}, device="cpu", cache_mb=4, embedders=f"toy:{CONFIG.d_text}"))
