"""Results of a running deployment: a list that was shown, a click that names it, and a purchase."""

from __future__ import annotations

from typing import Any

from tests.integration.deployments import EMBEDDED, REAL
from tests.integration.live import Live, click, new_id

LIVE = (EMBEDDED, REAL)
SOON_S = 30  # exposures linger a second, and nobody waits for results


def _rows(live: Live, scenario: str, by: str) -> list[dict[str, Any]]:
    return [row for row in live.get(f"/v1/results?by=scenario,{by}")["rows"] if row["scenario"] == scenario]


def test_a_click_and_a_purchase_are_in_the_results_of_their_list(live: Live) -> None:
    user, scenario = new_id("shopper"), new_id("surface")
    shown = live.get(f"/v1/recommendations/{user}?count=5&scenario={scenario}")
    first, second = [item["item_id"] for item in shown["items"]][:2]
    live.call("POST", "/v1/events", body={**click(user, first), "recommendation_id": shown["recommendation_id"]})
    live.call("POST", "/v1/events", body={**click(user, second), "kind": "purchase", "value": 12.5})

    def joined() -> bool:
        return any(row["purchases"] and row["clicks"] for row in _rows(live, scenario, "list"))

    live.until(joined, SOON_S, "both are joined")
    (row,) = _rows(live, scenario, "list,stage")
    counts = {name: row[name] for name in ("list", "lists", "clicked", "clicks", "purchases", "revenue")}
    assert counts == {
        "list": "recommendations", "lists": 1, "clicked": 1, "clicks": 1, "purchases": 1, "revenue": 12.5
    }  # fmt: skip
    assert sum(row["items"] for row in _rows(live, scenario, "slot")) == 5
