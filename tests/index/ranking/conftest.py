from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from index.ranking import native


@pytest.fixture(params=["numpy", "compiled"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything holds for both paths. What is compiled may be missing where there is no compiler, but not in CI."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "COMPILED", None)
    elif native.COMPILED is None:
        assert not os.environ.get("CI"), "the second stage is not compiled"
        pytest.skip("the second stage is not compiled here")
    yield request.param
