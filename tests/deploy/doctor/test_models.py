"""The doctor on models and endpoints: what fits, what does not, and keys that nobody sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.doctor.finding import Finding
from deploy.doctor.models import check_model, check_text
from deploy.models.registry import open_registry
from deploy.settings import load
from encoder.model.artefact import save
from encoder.model.config import preset
from encoder.model.encoder import StarsEncoder
from index.state.aliases import Aliases
from tests.support.fake_servers import pages
from tests.support.saved_models import saved_model

KEY = "a-key-nobody-may-see"
MODELS = {"data": [{"id": "small"}, {"id": "large"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(tmp_path_factory.mktemp("model")) / "m"
    save(StarsEncoder(preset("nano", d_text=384)), folder, {"embedder": "minilm-l6-v2", "context_features": []})
    return folder


def embedder(url: str, name: str = "small", key: str = KEY) -> list[Finding]:
    return check_text(load({}, embed_url=url, embed_model=name, embed_key=key, embedders="small:384,gone:384"))


def test_a_model_is_named_with_its_version(model: Path) -> None:
    (finding,) = check_model(load({}, model=model))
    assert (finding.state, finding.address) == ("ok", str(model)) and finding.version.startswith("m-")


def test_a_missing_model_comes_with_a_remedy(tmp_path: Path) -> None:
    (finding,) = check_model(load({}, model=tmp_path))
    assert finding.state == "wrong" and "perseid train" in finding.remedy


def test_without_one_of_its_own_the_registrys_champion_is_looked_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    registry = open_registry(load({}))
    version = registry.add(model)
    registry.set_aliases(Aliases(), Aliases(version))
    (finding,) = check_model(load({}))
    assert (finding.state, finding.version, finding.address) == ("ok", version, str(registry.folder(version)))


def test_a_model_of_an_embedder_that_nobody_can_ask_is_wrong(model: Path, tmp_path: Path) -> None:
    known = {"embed_url": "http://127.0.0.1:1/v1", "embed_model": "small", "embedders": "small:384,minilm-l6-v2:384"}
    assert [finding.state for finding in check_model(load({}, model=model, **known))] == ["ok"], "MiniLM is always here"
    small = saved_model(tmp_path / "made", embedder="small", sizes={"d_text": 384, "d_reduced": 4})
    assert [finding.state for finding in check_model(load({}, model=small, **known))] == ["ok"]
    _, finding = check_model(load({}, model=small, embedders=known["embedders"]))
    assert "was trained on vectors of 'small', the embed role makes those of 'minilm-l6-v2'" in finding.what


def test_the_local_text_model_is_found() -> None:
    (finding,) = check_text(load({}))
    assert (finding.state, finding.what) == ("ok", "MiniLM")


def test_an_endpoint_with_the_model_is_well() -> None:
    with pages({"/v1/models": (200, MODELS)}, {}, f"Bearer {KEY}") as url:
        (finding,) = embedder(f"{url}/v1")
    assert (finding.state, finding.address, finding.version) == ("ok", f"{url}/v1", "small")


def test_a_wrong_key_is_named_and_not_shown() -> None:
    with pages({"/v1/models": (200, MODELS)}, {}, f"Bearer {KEY}") as url:
        (finding,) = embedder(f"{url}/v1", key="another-key-nobody-may-see")
    assert finding.state == "wrong" and "PERSEID_EMBED_KEY" in finding.remedy
    assert "nobody-may-see" not in str(finding)


def test_an_endpoint_that_is_away_or_without_the_model_is_wrong() -> None:
    (finding,) = embedder("http://127.0.0.1:1/v1")
    assert finding.state == "wrong" and "PERSEID_EMBED_URL" in finding.remedy
    with pages({"/v1/models": (200, MODELS)}, {}) as url:
        (finding,) = embedder(f"{url}/v1", "gone")
    assert finding.what == "does not list 'gone'" and "large, small" in finding.remedy
    with pages({"/v1/models": (503, {})}, {}) as url:
        (finding,) = embedder(f"{url}/v1")
    assert finding.state == "wrong" and "503" in finding.what


def test_an_endpoint_without_a_list_is_a_note() -> None:
    with pages({}, {}) as url:
        (finding,) = embedder(f"{url}/v1")
    assert finding.state == "note"


def test_an_unknown_dimension_and_a_missing_name_are_wrong() -> None:
    with pages({"/v1/models": (200, MODELS)}, {}) as url:
        _, finding = check_text(load({}, embed_url=f"{url}/v1", embed_model="large"))
        assert "large:<dimension>" in finding.remedy
        findings = check_text(load({}, chat_url=f"{url}/v1"))
    assert (findings[1].name, findings[1].state) == ("tagger", "wrong")
    assert "PERSEID_CHAT_MODEL" in findings[1].remedy
