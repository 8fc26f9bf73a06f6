"""Some thousand fuzzed records on all topics: each is applied or a dead letter, and nobody else notices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from streams.pipeline import item_ops
from tests.fuzz.records import RecordMaker
from tests.fuzz.run import PARTITIONS, fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_fuzzed_records_are_applied_or_dead_lettered_and_nobody_else_notices(seed: int) -> None:
    result = fuzz(6_000, seed)
    assert result.good, result
    assert result.outcomes["applied"] > 1_000 and result.outcomes["malformed"] > 1_000
    assert all(result.outcomes[name] for name in ("duplicate", "forgotten", "outdated", "misrouted", "exposures read"))


def test_the_same_seed_makes_the_same_records() -> None:
    made = [RecordMaker(5, PARTITIONS) for _ in range(2)]
    first, second = ([maker.make() for _ in range(500)] for maker in made)
    assert first == second
    assert len(Counter(record.topic for record in first)) == 7


def test_a_defect_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(item: Mapping[str, Any]) -> str:
        if item["title"] != "Tea":  # that of the controls
            raise RecursionError("too deep")
        return ""

    monkeypatch.setattr(item_ops, "canonical_text", broken)
    result = fuzz(300, 1)
    assert not result.good and result.defects and "too deep" in result.shown[0]
    assert result.changed_controls == []
