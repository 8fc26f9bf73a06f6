"""Defines the plan that `perseid up` writes and the traffic process reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import orjson


@dataclass(frozen=True, slots=True)
class TrafficPlan:
    """What to send. `folder` holds the history; `split_ms` is where the live part of a data folder begins."""

    kind: Literal["shop", "data"]
    folder: str
    split_ms: int
    key: str  # names the content of the live state that this plan builds
    model: str  # artefact folder: its tags and embedder make the first item vectors
    texts: str  # file of the text-vector memory
    seed: int = 0
    speed: float | None = None
    live: bool = True

    def write(self, path: Path) -> Path:
        path.write_bytes(orjson.dumps(asdict(self)))
        return path

    @staticmethod
    def read(path: Path) -> TrafficPlan:
        """Raises ValueError when the file is not what `write` wrote."""
        try:
            return TrafficPlan(**orjson.loads(path.read_bytes()))
        except (OSError, TypeError, orjson.JSONDecodeError) as error:
            raise ValueError(f"{path} is no traffic plan ({error}); `perseid up` writes one") from error
