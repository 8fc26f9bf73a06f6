"""One generated shop and one model for all scenarios, and a running deployment for each way to deploy them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deployments import DEPLOYMENTS, EMBEDDED, SEED, Prepared, deployment, prepared
from tests.integration.live import Live
from tests.support.known_shop import KnownShop


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module says by `LIVE` on which deployments its tests run; pytest starts each once, one after the other."""
    if "live" in metafunc.fixturenames:
        names = getattr(metafunc.module, "LIVE", (EMBEDDED,))
        assert set(names) <= set(DEPLOYMENTS), names
        metafunc.parametrize("live", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def prepared_state(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A folder with the shop's history and a model trained on it."""
    # LIVE_STATE names a folder that is kept between runs: while developing, it saves the training.
    kept = os.environ.get("LIVE_STATE")
    return prepared(Path(kept) if kept else tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def live(
    request: pytest.FixtureRequest, prepared_state: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """A deployment of the name that the test is parametrised with."""
    folder = tmp_path_factory.mktemp("up")
    with deployment(request.param, prepared_state, folder, request.getfixturevalue) as running:
        yield running


@pytest.fixture
def shop() -> KnownShop:
    """The same shop, for its truths; a new one for each test, because it remembers the items it invents."""
    return KnownShop(SEED)
