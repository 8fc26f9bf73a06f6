"""Keeps a registry in an object store, S3, Google Cloud Storage or Azure, through obstore.

A version is there when its card is, which is written last. Aliases change by conditional writes. An artefact is fetched
once into a folder of this machine. Credentials come from the environment, as obstore reads them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from deploy.models.registry import ALIASES, CARD, MODELS, Registry, decoded, encoded, is_version
from encoder.model.document import DOCUMENT, TENSORS, read_document
from index.state.aliases import Aliases

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ObjectStore

_FILES = (TENSORS, DOCUMENT, CARD)  # in the order in which they are written
# A command waits for these: a store that is there answers at the first or second try.
_RETRIES = 3
_PATIENCE = timedelta(seconds=30)


class BucketRegistry(Registry):
    """A registry in an object store; artefacts that were needed once are kept in `cache`, by version."""

    def __init__(self, name: str, store: ObjectStore, cache: Path) -> None:
        super().__init__(cache)
        self.name, self._store, self._models = name, store, cache

    def versions(self) -> list[str]:
        with self._translated():
            listed = [Path(found["path"]) for page in obstore.list(self._store, MODELS) for found in page]
        return sorted(path.parent.name for path in listed if path.name == CARD and is_version(path.parent.name))

    def folder(self, version: str) -> Path:
        try:
            return super().folder(version)
        except ValueError:  # not fetched yet, or damaged since
            self._fetch(version)
        return super().folder(version)

    def set_aliases(self, before: Aliases, after: Aliases) -> bool:
        content, tag = self._get(ALIASES)
        noted = decoded(content, self.name)
        if noted != before.untried:
            return noted == after.untried
        try:
            with self._translated():
                obstore.put(self._store, ALIASES, encoded(after), mode="create" if content is None else tag)
        except (AlreadyExistsError, PreconditionError):
            return self.aliases() == after.untried  # the answer to the first try was lost, or somebody was faster
        return True

    def remove(self, version: str) -> None:
        super().remove(version)
        if version in self.versions():
            for name in reversed(_FILES):  # without its card it is not there
                with self._translated():
                    obstore.delete(self._store, f"{MODELS}/{version}/{name}")
            self.remove_ranker(version)

    def _checksum(self, version: str) -> str:
        return str(self._json(version, DOCUMENT).get("sha256"))

    def _publish(self, part: Path, version: str) -> None:
        for name in _FILES:
            with self._translated():
                obstore.put(self._store, f"{MODELS}/{version}/{name}", part / name)
        super()._publish(part, version)

    def _fetch(self, version: str) -> None:
        """Replaces what the cache has of a version by what the store has."""
        if not is_version(version) or version not in self.versions():
            raise ValueError(self._missing(version))
        self._models.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".fetch-", dir=self._models))
        try:
            for name in _FILES:
                (part / name).write_bytes(self._read(f"{MODELS}/{version}/{name}") or b"")
            if not _is_whole(part, version):
                raise ValueError(f"{version} is damaged in registry {self.name}: remove it there and add it again")
            part.chmod(0o755)
            shutil.rmtree(self._models / version, ignore_errors=True)
            super()._publish(part, version)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _read(self, path: str) -> bytes | None:
        return self._get(path)[0]

    def _put(self, path: str, content: bytes) -> None:
        with self._translated():
            obstore.put(self._store, path, content)

    def _delete(self, path: str) -> None:
        with self._translated(), suppress(FileNotFoundError):
            obstore.delete(self._store, path)

    def _get(self, path: str) -> tuple[bytes | None, UpdateVersion]:
        """A file, and what a conditional write has to name to replace just this one."""
        try:
            with self._translated():
                found = obstore.get(self._store, path)
                content, meta = bytes(found.bytes()), found.meta
        except FileNotFoundError:
            return None, {}
        tag: UpdateVersion = {} if meta["version"] is None else {"version": meta["version"]}
        return content, tag if meta["e_tag"] is None else {**tag, "e_tag": meta["e_tag"]}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except BaseError as error:
            raise OSError(f"registry {self.name}: {_first_line(error)}") from error


def open_bucket(address: str, cache: Path) -> Registry:
    """The registry at `s3://bucket/path`, `gs://…` or `az://…`. Raises ValueError when the address cannot be used."""
    try:
        store = from_url(address, retry_config={"max_retries": _RETRIES, "retry_timeout": _PATIENCE})
    except BaseError as error:
        raise ValueError(f"registry {address}: {_first_line(error)}") from error
    return BucketRegistry(address, store, cache)


def _is_whole(folder: Path, version: str) -> bool:
    try:
        return bool(read_document(folder)["version"] == version)
    except ValueError:
        return False


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
