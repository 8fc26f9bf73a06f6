"""What the other scenarios produced, read back: replayed it gives the live digest, exported a data folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson

from streams.folder.reader import read_folder
from tests.integration.deployments import EMBEDDED, REAL
from tests.integration.live import ROOT, Live, click, new_id

LIVE = (EMBEDDED, REAL)


def perseid(live: Live, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", *arguments, "--state", str(live.state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_replaying_the_topics_gives_the_live_digest(live: Live) -> None:
    done = perseid(live, "replay", "--state-only", "--compare", "--json")
    report = orjson.loads(done.stdout)
    assert report["complete"] and report["records"]["clickstream"] > 0
    assert "the live state is equal" in done.stderr


def test_exporting_the_topics_says_what_was_shown_and_clicked(live: Live, tmp_path: Path) -> None:
    user = new_id("shown")
    answer = live.recommend(user, count=5)
    chosen = answer["items"][2]["item_id"]
    event = click(user, chosen, recommendation_id=answer["recommendation_id"])
    live.call("POST", "/v1/events", body=event)

    def exported() -> dict[str, Any] | None:
        """The list that was shown, once its record has reached Kafka: no answer waits for it."""
        out = tmp_path / new_id("folder")
        summary = orjson.loads(perseid(live, "export", str(out)).stdout)
        assert not [reason for reason in summary["malformed"] if reason.startswith("exposures")]
        folder = read_folder(out)
        assert event["event_id"] in folder.events.detail("event_id")
        lists = [page for page in folder.impressions if page["recommendation_id"] == answer["recommendation_id"]]
        return lists[0] if lists else None

    page = live.until(exported, 60.0, "the exposure is exported")
    assert page["user_id"] == user and page["shown"] == [item["item_id"] for item in answer["items"]]
    assert (page["clicked"], page["position"]) == (chosen, 2)
