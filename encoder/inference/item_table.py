"""`ItemTable` holds the items an encoder knows as unit rows on its device, so that a token's content is one gather.

Row 0 is zero, for items without a vector. A replaced item changes no cached token. For one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from encoder.model.encoder import StarsEncoder

MISSING_ROW = 0
TOWER_BATCH = 4096  # items per tower call: bounds the memory of a bulk load


class ItemTable:
    """Known items by id, each a row of a growing device matrix `rows` [rows, d]."""

    def __init__(self, model: StarsEncoder) -> None:
        self._tower = model.tower
        self.rows = torch.zeros(1024, model.config.d_model, device=model.general.device)
        self._row_of: dict[str, int] = {}
        self._free: list[int] = []
        self._d_text = model.config.d_text

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._row_of

    def __len__(self) -> int:
        return len(self._row_of)

    def ids(self) -> list[str]:
        """All known items."""
        return list(self._row_of)

    def row(self, item_id: str) -> int:
        """The row of an item, `MISSING_ROW` if it has no vector."""
        return self._row_of.get(item_id, MISSING_ROW)

    @torch.inference_mode()
    def put(self, ids: Sequence[str], vectors: NDArray[np.float32], tags: Sequence[Sequence[str]]) -> None:
        """Add or replace items from finite text vectors [n, d_text] and tag names. Raises ValueError for others."""
        array = np.asarray(vectors, dtype=np.float32)
        if array.shape != (len(ids), self._d_text) or len(tags) != len(ids):
            raise ValueError(
                f"{len(ids)} items with vectors of shape {array.shape} and {len(tags)} tag lists; "
                f"this model needs vectors [{len(ids)}, {self._d_text}] and one tag list per item"
            )
        if not np.isfinite(array).all():
            bad = ids[int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])]
            raise ValueError(f"the vector of item {bad!r} has NaN or infinity; send finite numbers")
        tower, device = self._tower, self.rows.device
        for start in range(0, len(ids), TOWER_BATCH):
            part = slice(start, start + TOWER_BATCH)
            text, known_tags = tower.reduce(torch.from_numpy(array[part]).to(device)), tower.tag_rows(tags[part])
            self._store(ids[part], tower(text, tower.deltas(ids[part]), known_tags.to(device)))

    @torch.inference_mode()
    def restore(self, ids: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Add or replace items by rows [n, d] that `retrieval` of the same model gave before."""
        if rows.shape != (len(ids), self.rows.shape[1]):
            raise ValueError(
                f"{len(ids)} items with rows {rows.shape}; this model needs [{len(ids)}, {self.rows.shape[1]}]"
            )
        self._store(ids, torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(self.rows.device))

    def remove(self, ids: Iterable[str]) -> None:
        """Forget items; unknown ids are ignored. Tokens already cached keep what they saw."""
        for item_id in ids:
            row = self._row_of.pop(item_id, None)
            if row is not None:
                self._free.append(row)

    def retrieval(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """L2-normalised retrieval vectors, float32 [n, d], rounded to halves, as an index keeps them.

        Raises ValueError for an item without a vector.
        """
        unknown = [item_id for item_id in ids if item_id not in self._row_of]
        if unknown:
            raise ValueError(f"item {unknown[0]!r} has no vector; put it into the table first")
        index = torch.tensor([self._row_of[item_id] for item_id in ids], dtype=torch.int64, device=self.rows.device)
        out: NDArray[np.float32] = self.rows[index].half().float().cpu().numpy()
        return out

    def _store(self, ids: Sequence[str], unit: torch.Tensor) -> None:
        """Put unit rows [n, d] into the table."""
        device = self.rows.device
        rows = [self._claim(item_id) for item_id in ids]
        self._reserve(max(rows, default=0) + 1)
        last = {row: at for at, row in enumerate(rows)}  # an id given twice: the last one wins, on every device
        self.rows[torch.tensor(list(last), device=device)] = unit[torch.tensor(list(last.values()), device=device)]

    def _claim(self, item_id: str) -> int:
        row = self._row_of.get(item_id)
        if row is None:
            row = self._free.pop() if self._free else len(self._row_of) + 1
            self._row_of[item_id] = row
        return row

    def _reserve(self, count: int) -> None:
        if count > len(self.rows):
            grown = self.rows.new_zeros(max(count, 2 * len(self.rows)), self.rows.shape[1])
            grown[: len(self.rows)] = self.rows
            self.rows = grown
