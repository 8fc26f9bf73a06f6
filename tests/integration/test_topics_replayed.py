"""`perseid replay` of everything the other scenarios produced gives the digest of the live state."""

from __future__ import annotations

import subprocess
import sys

import orjson

from tests.integration.deployments import EMBEDDED, REAL
from tests.integration.live import ROOT, Live

LIVE = (EMBEDDED, REAL)


def test_replaying_the_topics_gives_the_live_digest(live: Live) -> None:
    command = [sys.executable, "-m", "deploy.cli", "replay", "--state", str(live.state)]
    done = subprocess.run(
        [*command, "--state-only", "--compare", "--json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = orjson.loads(done.stdout)
    assert report["complete"] and report["records"]["clickstream"] > 0
    assert "the live state is equal" in done.stderr
