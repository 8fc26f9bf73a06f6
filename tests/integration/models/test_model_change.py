"""Another model for a running `perseid up`, by the commands that people use, while somebody asks all the time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.integration.browsing import chromium, opened
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
        third = perseid_models(live.state, "add", str(varied(served, tmp_path / "made", seed=2))).strip()
        assert len({first, second, third}) == 3 and second in perseid_models(live.state, "list")
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
            with chromium() as browser:
                for page in opened(browser, live):
                    _there_and_back_by_hand(page, live, second, third)
        assert not asking.errors, asking.errors[:3]
        assert {len(answer["items"]) for answer in asking.answers} == {COUNT}
        assert {answer["model"] for answer in asking.answers} == {first, second, third}
        assert "popular" not in {answer["served_by"] for answer in asking.answers}, (
            "everybody has vectors of whatever serves"
        )
        perseid_models(live.state, "retire", third)
        live.until(lambda: live.get("/v1/status")["models"]["previous"] is None, 5, "the third has no alias")
    finally:
        live.stop()
    again = Live(live.state, *shop, "--no-traffic")
    try:
        again.wait_ready()
        assert again.get("/v1/status")["models"]["champion"] == second, "a start changes nothing"
    finally:
        again.stop()


def _there_and_back_by_hand(page: Page, live: Live, served: str, staged: str) -> None:
    """A person stages a model, compares both, serves it, and rolls back, on pages of the console."""
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto("/models")
    page.get_by_role("button", name=f"Stage {staged}").click()
    serve = page.get_by_role("button", name=f"Serve it {staged}")
    expect(serve).to_be_enabled(timeout=60_000)
    page.goto(f"/ask?user=u1&beside=model: {staged}")
    expect(page.get_by_role("region", name="List beside it")).to_contain_text(f"by {staged}")
    expect(page.get_by_role("region", name="List", exact=True)).to_contain_text(f"by {served}")
    page.goto("/models")

    def late(route: Route) -> None:
        """Holds an answer back for longer than the page waits before it asks how far a staged model is."""
        answer = route.fetch()
        page.wait_for_timeout(3_500)
        route.fulfill(response=answer)

    page.route("**/models/change", late)
    serve.click()
    expect(page.get_by_role("status")).to_contain_text(f"Done: promote {staged}")
    page.unroute("**/models/change")
    live.until(lambda: model_of(live) == staged, 5, "both API processes serve the staged model")
    page.get_by_role("button", name=f"Roll back to {served}").click()
    expect(page.get_by_role("status")).to_contain_text("Done: rollback")
    live.until(lambda: model_of(live) == served, 5, "both API processes serve the one before again")


def model_of(live: Live) -> Any:
    return live.get("/v1/recommendations/u1", count=COUNT)["model"]
