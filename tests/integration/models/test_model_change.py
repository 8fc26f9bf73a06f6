"""Another model for a running `perseid up`, by the commands that people use, while somebody asks all the time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.live import Live, click
from tests.integration.models.asking import COUNT, WORDS, Asking, perseid_models, small_shop
from tests.support.saved_models import varied

pytestmark = [pytest.mark.servers, pytest.mark.slow]


def test_a_to_b_to_a_and_again_without_an_empty_a_short_or_a_lost_list(tmp_path: Path) -> None:
    shop = small_shop(tmp_path)
    live = Live(tmp_path / "state", *shop, "--speed", "1000", "--apis", "2")
    try:
        live.wait_ready(320)
        first = str(live.get("/v1/status")["models"]["champion"])
        served = next(Path(live.settings()["PERSEID_MODEL"]).parent.glob(f"{first}"))
        second = perseid_models(live.state, "add", str(varied(served, tmp_path / "made"))).strip()
        assert second != first and second in perseid_models(live.state, "list")
        with Asking(lambda number: live.recommend(f"u{number % 30}", count=COUNT)) as asking:
            assert "is not staged" in perseid_models(live.state, "promote", second, code=1)
            perseid_models(live.state, "stage", second)
            assert "WAIT" not in perseid_models(live.state, "status", "--wait")
            with live.producer() as producer:  # events while two models are written
                for number in range(30):
                    body = json.dumps(click(f"u{number}", f"{WORDS[number % 4]}-1")).encode()
                    producer.send(live.topic("clickstream"), body, key=f"u{number}".encode())
                producer.flush()
            perseid_models(live.state, "promote", second)
            live.until(lambda: model_of(live) == second, 5, "both API processes serve the second model")
            assert live.get("/v1/status")["models"]["previous"] == first
            perseid_models(live.state, "rollback")
            live.until(lambda: model_of(live) == first, 5, "both API processes serve the first model again")
            perseid_models(live.state, "rollback")
            live.until(lambda: model_of(live) == second, 5, "and the second")
            perseid_models(live.state, "retire", first)
            time.sleep(1.0)
        assert not asking.errors, asking.errors[:3]
        assert {len(answer["items"]) for answer in asking.answers} == {COUNT}
        assert {answer["model"] for answer in asking.answers} == {first, second}
        assert "popular" not in {answer["served_by"] for answer in asking.answers}, (
            "everybody has vectors of whatever serves"
        )
        live.until(lambda: live.get("/v1/status")["models"]["previous"] is None, 5, "the first has no alias")
    finally:
        live.stop()
    again = Live(live.state, *shop, "--no-traffic")
    try:
        again.wait_ready()
        assert again.get("/v1/status")["models"]["champion"] == second, "a start changes nothing"
    finally:
        again.stop()


def model_of(live: Live) -> Any:
    return live.get("/v1/recommendations/u1", count=COUNT)["model"]
