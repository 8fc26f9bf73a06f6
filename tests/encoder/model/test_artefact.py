"""Artefacts: what is loaded is what was saved, under a version that names its content, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model import artefact
from encoder.model.config import ModelConfig
from encoder.model.document import load_serving
from encoder.model.encoder import StarsEncoder

CONFIG = ModelConfig(
    d_model=8,
    n_layers=1,
    n_heads=2,
    d_ff=8,
    d_text=4,
    d_reduced=3,
    tags=("red",),
    context_features=("heat", "rain"),
    profile_buckets=16,
)


def model(seed: int = 0) -> StarsEncoder:
    torch.manual_seed(seed)
    made = StarsEncoder(CONFIG, ["a", "b"])
    with torch.no_grad():
        made.context.normal_()
    return made


def test_a_loaded_model_answers_as_the_saved_one(tmp_path: Path) -> None:
    saved = model()
    version = artefact.save(saved, tmp_path / "model", {"embedder": "test", "quality": {"recall@10": 0.5}})
    loaded, metadata = artefact.load(tmp_path / "model")
    assert metadata == {"embedder": "test", "quality": {"recall@10": 0.5}, "version": version}
    assert loaded.config == CONFIG and loaded.tower.item_ids == ["a", "b"]
    answers = []
    for each in (saved, loaded):
        encoder = IncrementalEncoder(each, cache_bytes=10**6, device="cpu")
        encoder.items.put(["a", "c"], np.ones((2, 4), dtype=np.float32), [["red"], []])
        answers.append(encoder.encode([EncodeRequest(0, ["a", "c"], [0, 1], [10**12, 10**12 + 5], None, 0)]).vectors)
    assert np.array_equal(answers[0], answers[1])


def test_version_is_a_hash_of_the_content(tmp_path: Path) -> None:
    first = artefact.save(model(0), tmp_path / "first", {})
    assert first.startswith("m-") and len(first) == 10
    assert artefact.save(model(0), tmp_path / "again", {"note": "other words, same model"}) == first
    assert artefact.save(model(1), tmp_path / "other", {}) != first
    assert artefact.save_version(model(0), tmp_path, {}) == (tmp_path / first, first)
    served: list[dict[str, Any]] = [
        {"slot": "next"},
        {"slot": "mixed"},
        {"slot": "next", "popularity": 0.1},
    ]
    versions = [artefact.save_version(model(0), tmp_path, metadata)[1] for metadata in served]
    assert len({first, *versions}) == 4


def test_a_folder_with_another_model_is_not_overwritten(tmp_path: Path) -> None:
    first = artefact.save(model(0), tmp_path / "model", {})
    assert artefact.save(model(0), tmp_path / "model", {}) == first
    with pytest.raises(ValueError, match="already holds"):
        artefact.save(model(1), tmp_path / "model", {})
    assert artefact.load(tmp_path / "model")[1]["version"] == first


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        artefact.save(model(), tmp_path / "model", {"unsavable": object()})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    artefact.save(model(), folder, {})
    tensors = folder / "model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(ValueError, match="does not belong"):
        artefact.load(folder)
    with pytest.raises(ValueError, match="holds no model"):
        artefact.load(tmp_path / "nowhere")
    document = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        artefact.load(folder)


def test_serving_arrays_need_no_torch(tmp_path: Path) -> None:
    saved = model()
    artefact.save(saved, tmp_path / "model", {})
    arrays, document = load_serving(tmp_path / "model")
    expected = artefact.serving_arrays(saved)
    assert arrays["context.weight"].shape == (8, 2)
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected) and set(arrays) == set(expected)
    assert document["config"]["context_features"] == ["heat", "rain"]
    code = (
        f"import sys, pathlib, encoder.model.document as s; s.load_serving(pathlib.Path({str(tmp_path / 'model')!r}))"
    )
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
