"""Small data folders for tests: written as gzip files from plain rows."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

DAY_S = 86_400
START_S = 1_600_000_000


def write_folder(
    path: Path,
    rows: Sequence[Sequence[Any]],
    items: Sequence[Mapping[str, Any]],
    *,
    header: str = "user_id,item_id,event_type,timestamp",
    **lines: Sequence[Mapping[str, Any]],
) -> Path:
    """Writes events, items and further files by name (impressions=[…], context=[…], users=[…])."""
    path.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    with gzip.open(path / "events.csv.gz", "wt") as file:
        file.write(text)
    for name, records in {"items": items, **lines}.items():
        with gzip.open(path / f"{name.replace('_', '-')}.jsonl.gz", "wb") as packed:
            packed.writelines(orjson.dumps(record) + b"\n" for record in records)
    return path


def item(item_id: str, **more: Any) -> dict[str, Any]:
    return {"item_id": item_id, "title": f"title of {item_id}", **more}


def write_vectors(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Adds the folder's own item vectors."""
    with gzip.open(path / "item-vectors.jsonl.gz", "wb") as packed:
        packed.writelines(orjson.dumps(record) + b"\n" for record in records)
