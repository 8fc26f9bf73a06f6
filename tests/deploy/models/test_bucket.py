"""A registry in an object store keeps the same promises; what was fetched is kept, checked, and fetched again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from deploy.models.bucket import BucketRegistry
from deploy.models.registry import open_registry
from deploy.settings import load
from encoder.model.artefact import load as load_model
from index.state.aliases import Aliases
from tests.support.saved_models import saved_model

Machine = Callable[[str], BucketRegistry]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def on(store: MemoryStore, tmp_path: Path) -> Machine:
    """The registry as a machine with a cache of its own sees it."""
    return lambda name: BucketRegistry("memory", store, tmp_path / "caches" / name)


def paths(store: MemoryStore) -> list[str]:
    return sorted(found["path"] for page in obstore.list(store) for found in page)


def test_a_model_that_one_machine_adds_is_opened_on_another(on: Machine, store: MemoryStore, tmp_path: Path) -> None:
    here, there = on("a"), on("b")
    folder = saved_model(tmp_path)
    version = here.add(folder, {"parent": "m-00000000"})
    assert here.add(folder) == there.add(folder) == version
    assert paths(store) == [f"models/{version}/{name}" for name in ("card.json", "model.json", "model.safetensors")]
    assert there.versions() == [version]
    assert there.card(version)["parent"] == "m-00000000"
    assert there.folder(version).parent == tmp_path / "caches" / "b"
    assert load_model(there.folder(version))[1]["version"] == version


def test_what_was_fetched_once_needs_no_store(on: Machine, store: MemoryStore, tmp_path: Path) -> None:
    version = on("a").add(saved_model(tmp_path))
    on("b").folder(version)
    obstore.delete(store, paths(store))
    assert load_model(on("b").folder(version))[1]["version"] == version


def test_a_damaged_cache_is_fetched_again(on: Machine, tmp_path: Path) -> None:
    version = on("a").add(saved_model(tmp_path))
    cached = on("b").folder(version) / "model.safetensors"
    cached.write_bytes(cached.read_bytes()[:-1])
    load_model(on("b").folder(version))


def test_a_model_that_is_damaged_in_the_store_is_not_taken(on: Machine, store: MemoryStore, tmp_path: Path) -> None:
    version = on("a").add(saved_model(tmp_path))
    obstore.put(store, f"models/{version}/model.safetensors", b"half")
    with pytest.raises(ValueError, match=f"{version} is damaged in registry memory: remove it there and add it again"):
        on("b").folder(version)
    assert list((tmp_path / "caches" / "b").iterdir()) == []


def test_an_upload_that_ended_early_is_no_version_and_can_be_repeated(
    on: Machine, store: MemoryStore, tmp_path: Path
) -> None:
    folder = saved_model(tmp_path)
    obstore.put(store, f"models/{folder.name}/model.safetensors", b"half")
    assert on("a").versions() == []
    with pytest.raises(ValueError, match=r"has no model .* \(it has none\); add it by"):
        on("a").folder(folder.name)
    assert on("a").add(folder) == folder.name
    load_model(on("b").folder(folder.name))


def test_what_is_no_model_is_refused_and_nothing_is_written(on: Machine, store: MemoryStore, tmp_path: Path) -> None:
    folder = saved_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"does not belong to its model\.json"):
        on("a").add(folder)
    assert paths(store) == []
    with pytest.raises(ValueError, match=r"has no model '\.\./x'"):
        on("a").folder("../x")


def test_many_who_add_at_once_all_succeed(on: Machine, store: MemoryStore, tmp_path: Path) -> None:
    folders = [saved_model(tmp_path, seed) for seed in range(2)]
    registries = [on("a"), on("b"), on("a")]
    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(lambda registry, folder: registry.add(folder), registries * 2, folders * 3))
    assert sorted(set(added)) == on("c").versions() == sorted(folder.name for folder in folders)
    for version in added:
        load_model(on("c").folder(version))


def test_of_many_who_change_aliases_at_once_one_succeeds(on: Machine) -> None:
    before = Aliases()
    for turn in range(5):
        wanted = [Aliases(f"m-{turn}-{number}", "m-x", before.champion, turn) for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(on("a").set_aliases, [before] * 8, wanted))
        assert sum(done) == 1
        before = wanted[done.index(True)]
        assert on("b").aliases() == before
    assert not on("a").set_aliases(Aliases(), Aliases("m-z"))
    assert on("a").set_aliases(Aliases("long ago"), before), "as it was asked for"


def test_a_store_that_cannot_be_used_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-phrase")
    registry = open_registry(load({"PERSEID_STATE": str(tmp_path), "PERSEID_MODELS": "s3://shop/models"}))
    for use in (registry.versions, registry.aliases, lambda: registry.add(saved_model(tmp_path))):
        with pytest.raises(OSError, match="registry s3://shop/models: Generic S3 error") as caught:
            use()
        assert "\n" not in str(caught.value) and "a-phrase" not in str(caught.value)
    with pytest.raises(ValueError, match="registry az://shop: Generic MicrosoftAzure error: Account must be specified"):
        open_registry(load({"PERSEID_MODELS": "az://shop"}))
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("address", ["http://shop/models", "file:///models", "s3:///models"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"PERSEID_MODELS=.*: expected a folder, s3://bucket/path"):
        load({"PERSEID_MODELS": address})


def test_a_model_is_removed_from_store_and_cache(on: Machine, store: MemoryStore, tmp_path: Path) -> None:
    here = on("a")
    version = here.add(saved_model(tmp_path))
    here.folder(version)
    assert here.set_aliases(Aliases(), Aliases(version))
    with pytest.raises(ValueError, match="has an alias in registry memory"):
        here.remove(version)
    assert here.set_aliases(Aliases(version), Aliases())
    here.remove(version)
    here.remove(version)
    assert paths(store) == ["aliases.json"] and list((tmp_path / "caches" / "a").iterdir()) == []
