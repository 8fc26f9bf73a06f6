"""`TextMemory` keeps a bounded number of text vectors by hash, in the process and optionally in a file.

The file is a plain `.npz`, replaced atomically and merged with what another process wrote meanwhile. The least recently
used vectors go first. For one thread.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
_FORMAT: Final = "text-vectors-1"
_SAVE_AFTER: Final = 512  # new vectors, about five seconds of embedding, that a crash may lose


class TextMemory(MutableMapping[str, Vector]):
    """Text hash (64 hexadecimal digits) → vector float32 [d].

    `path` None: in the process only. `embedder`: the file of another one is not read but replaced. `most`: vectors kept
    (100,000 of 384 dimensions take 150 MB). Raises ValueError when the file is not one of ours.
    """

    def __init__(self, path: Path | None = None, embedder: str = "minilm-l6-v2", most: int = 250_000) -> None:
        if most < 1:
            raise ValueError(f"a memory of {most} vectors remembers nothing; allow at least one")
        self._path = path
        self._embedder = embedder
        self._most = most
        self._vectors = self._read()  # least recently used first
        self._unsaved = 0
        self._shrink()

    def __getitem__(self, key: str) -> Vector:
        vector = self._vectors.pop(key)
        self._vectors[key] = vector
        return vector

    def __setitem__(self, key: str, vector: Vector) -> None:
        self._vectors.pop(key, None)
        self._vectors[key] = np.asarray(vector, np.float32).copy()
        self._unsaved += 1
        self._shrink()
        # Each save writes everything: waiting for a tenth of it to be new keeps the work in proportion.
        if self._path is not None and self._unsaved >= max(_SAVE_AFTER, len(self._vectors) // 10):
            self.save()

    def __delitem__(self, key: str) -> None:
        del self._vectors[key]

    def __contains__(self, key: object) -> bool:
        return key in self._vectors

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._vectors))

    def __len__(self) -> int:
        return len(self._vectors)

    def save(self) -> None:
        """Write the file, together with what others have written there; nothing happens when nothing is new."""
        if self._path is None or not self._unsaved:
            return
        theirs = self._read()
        for key in self._vectors:
            theirs.pop(key, None)
        self._vectors = theirs | self._vectors  # theirs first: what we used last is forgotten last
        self._shrink()
        self._write(self._path)
        self._unsaved = 0

    def close(self) -> None:
        """Saves what is new."""
        self.save()

    def _shrink(self) -> None:
        while len(self._vectors) > self._most:
            del self._vectors[next(iter(self._vectors))]

    def _read(self) -> dict[str, Vector]:
        if self._path is None or not self._path.exists():
            return {}
        try:
            with self._path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise ValueError(f"its format is {str(file['format'])!r}")
                if str(file["embedder"]) != self._embedder:
                    return {}
                return dict(zip(map(str, file["keys"]), file["vectors"], strict=True))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self._path} is not a memory of text vectors ({error}); delete or move it") from error

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        # one length per embedder: np.stack raises ValueError for vectors of different dimensions
        vectors = np.stack(list(self._vectors.values()))
        try:
            with beside.open("wb") as file:
                np.savez(file, format=_FORMAT, embedder=self._embedder, keys=list(self._vectors), vectors=vectors)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
