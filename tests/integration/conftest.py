"""One generated shop for all scenarios: `perseid up --no-traffic`, started once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.shop import Shop
from tests.integration.live import Live

SEED = 3


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    # LIVE_STATE names a folder that is kept between runs: while developing, it saves the training.
    kept = os.environ.get("LIVE_STATE")
    state = Path(kept) if kept else tmp_path_factory.mktemp("up") / "state"
    deployment = Live(state, "--no-traffic", "--seed", str(SEED))
    try:
        deployment.wait_ready()
        yield deployment
    finally:
        deployment.stop()


@pytest.fixture(scope="session")
def shop() -> Shop:
    """The same shop, for its truths."""
    return Shop(SEED)
