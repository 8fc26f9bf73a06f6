"""Keeps artefacts of models under their versions, each with a card, and the aliases as the live state has them.

A registry is a folder, `models/<version>/{model.safetensors, model.json, card.json}` and `aliases.json`; a version
appears whole or not at all; only its ranker, `ranker.*`, may change. The live state decides; the aliases here are for
the day when it is emptied.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.disk_space import room_in
from deploy.settings import PREFIX, Settings
from encoder.model.config import ModelConfig
from encoder.model.document import DOCUMENT, TENSORS, load_serving, read_document, sync
from index.ranking.ranker import DOCUMENT as RANKER_DOCUMENT
from index.ranking.ranker import TENSORS as RANKER_TENSORS
from index.ranking.ranker import Ranker, load_ranker
from index.state.aliases import Aliases

CARD = "card.json"
ALIASES = "aliases.json"
NAMED = "named.json"
MODELS = "models"
RANKER_FILES = (RANKER_TENSORS, RANKER_DOCUMENT)  # in the order in which they are written
_LOCK = ".lock"
_VERSION = re.compile(r"m-[0-9a-f]{8}")  # it becomes the name of a folder


class Registry:
    """A registry in a local folder, made when something is added.

    Raises ValueError for what does not fit or is not there, with the remedy, and OSError where it cannot be reached.
    """

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._root, self._models = root, root / MODELS

    def versions(self) -> list[str]:
        """All that are there, by name."""
        found = (path.parent.name for path in self._models.glob(f"*/{CARD}"))
        return sorted(version for version in found if is_version(version))

    def add(self, folder: Path, card: Mapping[str, Any] | None = None) -> str:
        """Copies an artefact in and returns its version; nothing is done if it is there.

        What `card` says is put on the card in place of what the artefact says.
        """
        self._models.mkdir(parents=True, exist_ok=True)
        with room_in(self._root), _copy(folder, self._models) as (part, document):
            version = str(document["version"])
            if version not in self.versions():
                known = {**card_of(document), "created_ms": _written_ms(folder / DOCUMENT), **(card or {})}
                (part / CARD).write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", "utf-8")
                self._publish(part, version)
            if self._checksum(version) != document["sha256"]:
                raise ValueError(f"registry {self.name} holds another model as {version}; {folder} is not added")
        return version

    def folder(self, version: str) -> Path:
        """Where the artefact of a version is on this machine, complete and checked."""
        if not is_version(version) or not (self._models / version / CARD).is_file():
            raise ValueError(self._missing(version))
        found = self._models / version
        try:
            there = read_document(found)["version"]
        except ValueError as error:
            raise ValueError(
                f"{error.__cause__ or error}: remove the folder {found} and add the model again"
            ) from error
        if there != version:
            raise ValueError(f"{found} holds {there}: remove that folder and add {version} again")
        return found

    def card(self, version: str) -> dict[str, Any]:
        """What is known of a version, as of `card_of`."""
        return self._json(version, CARD)

    def add_ranker(self, folder: Path) -> Ranker:
        """Puts the ranker of an artefact beside its encoder, in place of the one before."""
        ranker = load_ranker(folder)
        if ranker.encoder not in self.versions():
            raise ValueError(f"{ranker.version} belongs to {ranker.encoder}: {self._missing(ranker.encoder)}")
        for name, content in ranker.dump().items():
            self._put(f"{MODELS}/{ranker.encoder}/{name}", content)
        return ranker

    def ranker(self, version: str) -> dict[str, bytes] | None:
        """The files of a version's ranker by name, unchecked; None without one."""
        if not is_version(version):
            return None
        found = {name: self._read(f"{MODELS}/{version}/{name}") for name in RANKER_FILES}
        return {name: content or b"" for name, content in found.items()} if any(found.values()) else None

    def remove_ranker(self, version: str) -> None:
        """Removes a version's ranker; nothing happens if there is none."""
        for name in reversed(RANKER_FILES):
            if is_version(version):
                self._delete(f"{MODELS}/{version}/{name}")

    def aliases(self) -> Aliases:
        """As they were noted last; none in a registry that has none."""
        return decoded(self._read(ALIASES), self.name)

    def set_aliases(self, before: Aliases, after: Aliases) -> bool:
        """Notes aliases if `before` are noted now, as a whole; whether they are `after` then."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            noted = self.aliases()
            if noted == before.untried:
                _write(self._root / ALIASES, encoded(after))
            return noted in (before.untried, after.untried)

    def remove(self, version: str) -> None:
        """Removes a version; nothing happens if it is not there. Raises ValueError for one that has an alias."""
        if version in self.aliases().versions:
            raise ValueError(f"{version} has an alias in registry {self.name}: retire it first")
        if is_version(version) and (self._models / version).is_dir():
            gone = Path(tempfile.mkdtemp(prefix=".gone-", dir=self._models))
            (self._models / version).rename(gone / version)  # at once: nobody finds half of it
            shutil.rmtree(gone)

    def _checksum(self, version: str) -> str:
        """Of the tensors that are kept as this version."""
        return str(read_document(self.folder(version))["sha256"])

    def _publish(self, part: Path, version: str) -> None:
        """Makes a complete folder the one of its version."""
        for name in (TENSORS, DOCUMENT, CARD):
            sync(part / name)
        try:
            part.replace(self._models / version)
        except OSError as error:
            if version in self.versions():
                return  # somebody else has just added it
            where = self._models / version
            raise ValueError(f"{where} holds no complete model; remove that folder and add it again") from error
        sync(self._models)

    def named(self) -> str:
        """The version that PERSEID_MODEL named when a live state began with it; "" where that is not noted."""
        try:
            return str(json.loads(self._read(NAMED) or b"{}").get("version", ""))
        except (ValueError, AttributeError):
            return ""

    def note_named(self, version: str) -> None:
        """Notes it, so that what was promoted since is told apart from another model that somebody names."""
        if self.named() != version:
            self._put(NAMED, json.dumps({"version": version}).encode() + b"\n")

    def _json(self, version: str, name: str) -> dict[str, Any]:
        path = f"{MODELS}/{version}/{name}"
        content = self._read(path) if is_version(version) else None
        if content is None:
            raise ValueError(self._missing(version))
        try:
            found: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{path} of registry {self.name} is damaged ({error}); remove it and add again") from error
        return found

    def _read(self, path: str) -> bytes | None:
        """A file of the registry; None where there is none."""
        try:
            return (self._root / path).read_bytes()
        except FileNotFoundError:
            return None

    def _put(self, path: str, content: bytes) -> None:
        """Writes a file of a version that is there, or one beside all versions."""
        self._root.mkdir(parents=True, exist_ok=True)
        _write(self._root / path, content)

    def _delete(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    def _missing(self, version: str) -> str:
        has = ", ".join(self.versions()) or "none"
        return f"registry {self.name} has no model {version!r} (it has {has}); add it by `perseid models add FOLDER`"


def open_registry(settings: Settings) -> Registry:
    """The registry that PERSEID_MODELS names. Raises ValueError when an object store is named and cannot be used."""
    if "://" not in settings.registry:
        return Registry(Path(settings.registry))
    try:
        from deploy.models.bucket import open_bucket
    except ImportError as error:
        raise ValueError(f"registry {settings.registry} needs obstore: pip install 'perseid[remote]'") from error
    return open_bucket(settings.registry, settings.state / "registry-cache")


def first_champion(settings: Settings) -> Path:
    """The artefact that becomes the champion of a live state without one.

    PERSEID_MODEL where it is given or there, else the champion of the registry. Raises ValueError when there is none.
    """
    if settings.model != Settings.model_fields["model"].default or settings.model.exists():
        return settings.model
    registry = open_registry(settings)
    champion = registry.aliases().champion
    if not champion:
        raise ValueError(
            f"no model to begin with: {settings.model} is not there and registry {registry.name} has no champion; "
            f"add one by `perseid models add FOLDER --champion`, or set {PREFIX}MODEL to an artefact"
        )
    return registry.folder(champion)


def first_aliases(settings: Settings) -> Aliases:
    """The aliases of a live state that has none: the registry's, or what `first_champion` finds alone.

    Another champion of the registry was promoted since, unless PERSEID_MODEL names another model than it did then.
    Raises ValueError when there is no model to begin with.
    """
    champion, registry = str(read_document(first_champion(settings))["version"]), open_registry(settings)
    noted = registry.aliases()
    promoted = registry.named() == champion and noted.champion in registry.versions()
    return noted if promoted or noted.champion == champion else Aliases(champion)


def artefact(settings: Settings, version: str) -> Path:
    """The artefact of a version, PERSEID_MODEL or in the registry. Raises ValueError when it is in neither."""
    if (settings.model / DOCUMENT).is_file() and read_document(settings.model)["version"] == version:
        return settings.model
    return open_registry(settings).folder(version)


def card_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's card says, from `model.json`: what it reads, what it was made from and how well it did.

    Raises ValueError when it is no model's.
    """
    try:
        config, metadata = ModelConfig.from_dict(document["config"]), dict(document["metadata"])
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{DOCUMENT} of {document['version']!r} describes no model ({error})") from error
    return {
        "version": document["version"],
        "embedder": metadata.get("embedder"),
        "d_text": config.d_text,
        "kinds": list(config.kinds),
        "window": config.window,
        "slack": config.slack,
        "d_model": config.d_model,
        "items": len(document["item_ids"]),
        "parent": metadata.get("parent") or metadata.get("refit"),
        "data": metadata.get("data"),
        "before_ms": metadata.get("before_ms"),
        "metrics": metadata.get("metrics", {}),
    }


@contextmanager
def _copy(folder: Path, beside: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A checked copy of an artefact in a hidden folder, and its document; what is not moved away is removed."""
    part = Path(tempfile.mkdtemp(prefix=".add-", dir=beside))
    try:
        read_document(folder)  # an error is to name what the user named
        for name in (TENSORS, DOCUMENT):
            shutil.copyfile(folder / name, part / name)
        _, document = load_serving(part)  # also where the folder was written to meanwhile
        if not is_version(str(document["version"])):
            raise ValueError(f"{folder / DOCUMENT} has the version {document['version']!r}, which no training gives")
        part.chmod(0o755)
        yield part, document
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_version(name: str) -> bool:
    """Whether it is a version as training gives them, which may become the name of a folder."""
    return _VERSION.fullmatch(name) is not None


def encoded(aliases: Aliases) -> bytes:
    """As they are kept; how a staged model is tried is of no use without the live state."""
    found = asdict(aliases.untried)
    return json.dumps({name: value for name, value in found.items() if value}, indent=1).encode() + b"\n"


def decoded(content: bytes | None, name: str) -> Aliases:
    """Inverse of `encoded` for registry `name`. Raises ValueError when they are damaged."""
    try:
        return Aliases(**json.loads(content or b"{}"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{ALIASES} of registry {name} is damaged ({error}); remove it") from error


def _written_ms(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000


def _write(path: Path, content: bytes) -> None:
    """A file, complete or not at all, on the disk when this returns."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    sync(part)
    part.replace(path)
    sync(path.parent)
