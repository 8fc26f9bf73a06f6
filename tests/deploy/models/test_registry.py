"""The registry: artefacts under their versions, whole or not at all, and aliases by compare-and-set."""

from __future__ import annotations

import asyncio
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.models.registry import Registry, first_aliases, first_champion, open_registry
from deploy.roles.worker import name_champion
from deploy.settings import load
from encoder.model.artefact import load as load_model
from index.state.aliases import Aliases
from index.state.memory_store import MemoryStore
from tests.support.saved_models import saved_model


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def files(registry: Registry) -> list[str]:
    """Everything in the registry, hidden and half-made things too."""
    root = Path(registry.name)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_added_model_is_there_with_its_card_and_can_be_opened(registry: Registry, tmp_path: Path) -> None:
    folder = saved_model(tmp_path, data="shop", before_ms=7, refit="m-00000000")
    version = registry.add(folder, {"note": "the first"})
    assert version == folder.name
    assert registry.versions() == [version]
    assert load_model(registry.folder(version))[1]["version"] == version
    names = ("card.json", "model.json", "model.safetensors")
    assert files(registry) == [f"models/{version}/{name}" for name in names]
    card = registry.card(version)
    assert card.pop("created_ms") == (folder / "model.json").stat().st_mtime_ns // 1_000_000
    assert card == {
        "version": version,
        "embedder": "hashed",
        "d_text": 8,
        "kinds": ["view", "cart", "purchase", "like", "dislike", "remove"],
        "window": 200,
        "slack": 56,
        "d_model": 64,
        "items": 0,
        "parent": "m-00000000",
        "data": "shop",
        "before_ms": 7,
        "metrics": {"ndcg@10": 0.5},
        "note": "the first",
    }


def test_an_equal_artefact_is_added_once(registry: Registry, tmp_path: Path) -> None:
    folder = saved_model(tmp_path)
    assert registry.add(folder) == registry.add(shutil.copytree(folder, tmp_path / "copy"), {"note": "too late"})
    assert "note" not in registry.card(folder.name)
    assert registry.versions() == [folder.name]


def test_many_who_add_at_once_all_succeed(registry: Registry, tmp_path: Path) -> None:
    folders = [saved_model(tmp_path, seed) for seed in range(3)]
    with ThreadPoolExecutor(12) as pool:
        added = list(pool.map(registry.add, folders * 4))
    assert sorted(set(added)) == registry.versions() == sorted(folder.name for folder in folders)
    assert len(files(registry)) == 9, "nothing half-made is left"


def spoil(folder: Path, how: str) -> None:
    document = json.loads((folder / "model.json").read_text())
    match how:
        case "no folder":
            shutil.rmtree(folder)
        case "no tensors":
            (folder / "model.safetensors").unlink()
        case "no document":
            (folder / "model.json").unlink()
        case "half of the tensors":
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        case "half of the document":
            (folder / "model.json").write_text((folder / "model.json").read_text()[:100])
        case "another format":
            (folder / "model.json").write_text(json.dumps({**document, "format": 1}))
        case "a list":
            (folder / "model.json").write_text("[1, 2]")
        case "of somebody else":
            (folder / "model.json").write_text(json.dumps({"format": 2, "sha256": document["sha256"]}))
        case "a strange version":
            (folder / "model.json").write_text(json.dumps({**document, "version": "../../m-00000000"}))
        case "a strange config":
            (folder / "model.json").write_text(json.dumps({**document, "config": {"heads": 1}}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "holds no (readable )?model .*; train one or name another folder"),
        ("no tensors", "holds no (readable )?model .*; train one"),
        ("no document", "holds no (readable )?model .*; train one"),
        ("half of the tensors", "does not belong to its model.json; copy the folder again"),
        ("half of the document", "holds no readable model"),
        ("another format", "has model format 1, not 2; train again"),
        ("a list", "holds no readable model"),
        ("of somebody else", "does not belong to its model.json"),
        ("a strange version", "which no training gives"),
        ("a strange config", "unknown model setting 'heads'"),
    ],
)
def test_what_is_no_complete_model_is_refused_in_one_line_and_leaves_nothing(
    registry: Registry, tmp_path: Path, how: str, message: str
) -> None:
    folder = saved_model(tmp_path)
    spoil(folder, how)
    with pytest.raises(ValueError, match=message) as caught:
        registry.add(folder)
    assert "\n" not in str(caught.value)
    assert files(registry) == []
    assert registry.versions() == []


def test_a_model_that_is_damaged_in_the_registry_is_named_with_the_remedy(registry: Registry, tmp_path: Path) -> None:
    folder = saved_model(tmp_path)
    version = registry.add(folder)
    spoil(registry.folder(version), "half of the tensors")
    for use in (lambda: registry.folder(version), lambda: registry.add(folder)):
        with pytest.raises(ValueError, match=f"remove the folder .*{version} and add the model again"):
            use()
    shutil.rmtree(Path(registry.name) / "models" / version)
    assert registry.add(folder) == version


def test_a_folder_that_somebody_copies_in_is_none_of_ours_until_it_is_complete(
    registry: Registry, tmp_path: Path
) -> None:
    folder = saved_model(tmp_path)
    half = Path(registry.name) / "models" / folder.name
    half.mkdir(parents=True)
    (half / "model.json").write_text("{}")
    assert registry.versions() == []
    with pytest.raises(ValueError, match="holds no complete model; remove that folder"):
        registry.add(folder)


@pytest.mark.parametrize("version", ["m-12345678", "", "..", "../models", "/etc"])
def test_a_version_that_is_not_there_is_named_with_those_that_are(
    registry: Registry, tmp_path: Path, version: str
) -> None:
    there = registry.add(saved_model(tmp_path))
    for use in (registry.folder, registry.card):
        with pytest.raises(ValueError, match=f"has no model {version!r} .it has {there}.; add it by `perseid models"):
            use(version)


def test_aliases_change_as_a_whole_and_only_from_what_they_are(registry: Registry) -> None:
    first, second = Aliases("m-a"), Aliases("m-b", "m-c", "m-a", 17)
    assert registry.aliases() == Aliases()
    assert registry.set_aliases(Aliases(), first)
    assert not registry.set_aliases(Aliases(), second)
    assert registry.aliases() == first
    assert registry.set_aliases(first, second)
    assert registry.set_aliases(first, second), "as it was asked for"
    assert registry.aliases() == second
    assert files(registry) == [".lock", "aliases.json"]


def test_of_many_who_change_aliases_at_once_one_succeeds(registry: Registry) -> None:
    before = Aliases()
    for turn in range(5):
        wanted = [Aliases(f"m-{turn}-{number}") for number in range(8)]
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(registry.set_aliases, [before] * 8, wanted))
        assert sum(done) == 1
        before = wanted[done.index(True)]
        assert registry.aliases() == before


def test_damaged_aliases_are_named(registry: Registry) -> None:
    registry.set_aliases(Aliases(), Aliases("m-a"))
    (Path(registry.name) / "aliases.json").write_text("{")
    with pytest.raises(ValueError, match=r"aliases.json of registry .* is damaged"):
        registry.aliases()


def test_an_empty_state_begins_with_the_named_model_else_with_the_registrys_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load({"PERSEID_STATE": str(tmp_path / "state")})
    with pytest.raises(ValueError, match=r"no model to begin with: .* and registry .*state/registry has no champion"):
        first_champion(settings)
    registry = open_registry(settings)
    version = registry.add(saved_model(tmp_path))
    registry.set_aliases(Aliases(), Aliases(version))
    assert first_champion(settings) == registry.folder(version)
    assert first_champion(load(settings.environment())) == registry.folder(version), "as a child process sees it"
    other = tmp_path / "other"
    assert first_champion(load(settings.environment(), model=other)) == other, "also where it is not there: it is said"
    Path(".perseid/model").mkdir(parents=True)
    assert first_champion(settings) == Path(".perseid/model")


def test_an_emptied_state_goes_on_with_what_was_promoted_unless_another_model_is_named(tmp_path: Path) -> None:
    first, second, third = (saved_model(tmp_path, seed) for seed in range(3))
    settings = load({"PERSEID_STATE": str(tmp_path / "state")}, model=first)
    registry = open_registry(settings)
    begun = asyncio.run(name_champion(MemoryStore(), settings))
    assert begun == Aliases(first.name) == first_aliases(settings)
    promoted = Aliases(registry.add(second), "", first.name)
    registry.set_aliases(registry.aliases(), promoted)
    assert first_aliases(settings) == promoted
    assert asyncio.run(name_champion(MemoryStore(), settings)) == promoted, "FLUSHALL, or another Redis"
    assert first_aliases(settings) == promoted, "the note stays"
    another = load(settings.environment(), model=third)
    assert first_aliases(another) == Aliases(third.name)
    shutil.rmtree(tmp_path / "state" / "registry" / "models" / second.name)
    assert first_aliases(settings) == Aliases(first.name), "what is gone cannot be served"
    assert asyncio.run(name_champion(MemoryStore(), another)) == Aliases(third.name)


def test_the_registry_is_where_the_setting_says(tmp_path: Path) -> None:
    assert open_registry(load({})).name == ".perseid/registry"
    assert open_registry(load({"PERSEID_MODELS": str(tmp_path)})).name == str(tmp_path)
