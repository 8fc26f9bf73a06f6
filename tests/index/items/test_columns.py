"""Facts of items against an oracle that looks at every record, through changes, withdrawals and growth."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.items.columns import ItemColumns

LABELS = 8
RECORDS = st.none() | st.fixed_dictionaries(
    {},
    optional={
        "price": st.sampled_from([0, 1, 2.5, 40]),
        "brand": st.sampled_from(["b0", "b1", "s0"]),
        "subclass": st.sampled_from(["s0", "s1"]),
        "category": st.lists(st.sampled_from(["c0", "c1"]), max_size=2),
    },
)


def log_price(fields: dict[str, Any] | None) -> float:
    price = (fields or {}).get("price") or 0
    return math.log(price) if price > 0 else math.nan


def usual(records: dict[int, dict[str, Any] | None], subclass: str) -> float:
    """Median of the log prices of a subclass; NaN without any."""
    prices = [log_price(fields) for fields in records.values() if fields and fields.get("subclass") == subclass]
    known = [price for price in prices if not math.isnan(price)]
    return median(known) if subclass and known else math.nan


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, LABELS - 1), RECORDS), max_size=20), st.integers(0, 20))
def test_facts_are_those_of_the_latest_records(changes: list[tuple[int, Any]], looked_after: int) -> None:
    columns, records = ItemColumns(2), dict[int, Any]()
    asked = np.array([*range(LABELS), -1, 0])
    for at, (label, fields) in enumerate(changes):
        columns.make_room(LABELS if at > 2 else label + 1)
        columns.describe(label, fields)
        records[label] = fields
        if at == looked_after:
            columns.make_room(LABELS)
            columns.facts(asked)
    columns.make_room(LABELS)
    facts = columns.facts(asked)
    assert facts.price.dtype == facts.level.dtype == np.float32
    named = [records.get(int(label)) or {} for label in asked]
    for name, values in (
        ("brand", [fields.get("brand", "") for fields in named]),
        ("subclass", [fields.get("subclass", "") for fields in named]),
        ("category", [next(iter(fields.get("category", [])), "") for fields in named]),
    ):
        codes = getattr(facts, name)
        assert [code == 0 for code in codes] == [not value for value in values]
        for value, code in zip(values, codes, strict=True):
            assert {other for other, its in zip(values, codes, strict=True) if its == code} == {value}
    wanted = [log_price(fields) for fields in named]
    levels = [price - usual(records, fields.get("subclass", "")) for price, fields in zip(wanted, named, strict=True)]
    assert facts.price.tolist() == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert facts.level.tolist() == pytest.approx(levels, abs=1e-6, nan_ok=True)


def test_items_are_looked_at_once_for_all_subclasses_and_again_only_after_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns, looks = ItemColumns(100), 0
    for label in range(100):
        columns.describe(label, {"subclass": f"s{label % 50}", "price": 1.0 + label})
    isin = np.isin

    def counting(*given: Any) -> Any:
        nonlocal looks
        looks += 1
        return isin(*given)

    monkeypatch.setattr(np, "isin", counting)
    columns.facts(np.arange(100))
    columns.facts(np.arange(50))
    assert looks == 1
    columns.describe(3, {"subclass": "s3", "price": 9.0})
    columns.facts(np.arange(50))
    columns.facts(np.arange(100))
    assert looks == 2
