"""Gives offline evaluation the negative feedback of production, over a data folder's items and events.

`index.query.feedback` decides what feedback takes off scores; rows number the items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.training.dataset import TrainingData
from encoder.training.holdout import Penalties
from index.items.columns import FieldValue, count_classes, values_of
from index.items.filters import LabelField
from index.items.search import Labels
from index.query.feedback import NegativeFeedback, rated
from index.query.question import Weights
from index.state.records import Vector
from index.state.user_columns import UserState


class ItemLabels:
    """Labels of the items of a folder by row; `index.query.feedback.LabelledItems`.

    Args:
        fields: the accepted catalogue record of an item; those without one have no labels.
    """

    def __init__(self, item_ids: Sequence[str], fields: Mapping[str, Mapping[str, Any]]) -> None:
        self._row = {item_id: row for row, item_id in enumerate(item_ids)}
        self._values = [values_of(fields.get(item_id) or {}) for item_id in item_ids]
        self._counts = np.array([count_classes(values) for values in self._values], np.int32)
        rows: dict[FieldValue, list[int]] = defaultdict(list)
        for row, values in enumerate(self._values):
            for pair in values:
                rows[pair].append(row)
        self._rows = {pair: np.array(found, np.int64) for pair, found in rows.items()}

    def places(self, item_ids: Iterable[str]) -> Labels:
        return np.array([self._row.get(item_id, -1) for item_id in item_ids], np.int64)

    def values_at(self, label: int) -> Iterable[FieldValue]:
        return self._values[label]

    def labels_with(self, field: LabelField, value: str) -> Labels:
        return self._rows.get((field, value), np.zeros(0, np.int64))

    def class_counts(self) -> NDArray[np.int32]:
        return self._counts


def penalties_of(
    data: TrainingData, fields: Mapping[str, Mapping[str, Any]], kind_weights: Sequence[int], window: int
) -> Penalties | None:
    """What negative feedback takes off scores; None where the data hold none. `fields` as of `ItemLabels`."""
    if not (np.array(kind_weights)[data.kinds] < 0).any():
        return None
    labels, half_life_ms = ItemLabels(data.item_ids, fields), Weights().negative_ms
    users = data.users

    def penalties(event: int, unit: Vector) -> Vector | None:
        start = max(int(data.user_ptr[users[event]]), event - window)
        items = [data.item_ids[item] for item in data.items[start:event].tolist()]
        state = UserState(items=items, kinds=data.kinds[start:event].tolist(), ts_ms=data.ts_ms[start:event].tolist())
        found = rated(state, kind_weights)
        if found is None:
            return None
        feedback = NegativeFeedback.of(found, labels, len(unit), int(data.ts_ms[event]), 1.0, half_life_ms)
        if feedback is None:
            return None
        return feedback.part(unit @ feedback.away(unit[feedback.labels])).astype(np.float32)

    return penalties
