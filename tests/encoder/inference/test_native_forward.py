"""The compiled blocks: which models they take, what they refuse, and that they are there in CI."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from encoder.inference.incremental import IncrementalEncoder
from encoder.inference.native_forward import COMPILED, native_forward
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from tests.encoder.inference.test_incremental import HALF_TOLERANCE, TOLERANCE, encoder, history, request

PAGES, PAGE = 7, 4


def test_something_is_compiled() -> None:
    if not COMPILED:
        assert not os.environ.get("CI"), "the encoder's blocks are not compiled"
        pytest.skip("the encoder's blocks are not compiled here")


def model(block: str = "gated", bias: str = "none", d_model: int = 64, heads: int = 2) -> StarsEncoder:
    torch.manual_seed(1)
    sizes = ModelConfig(
        d_model=d_model, n_heads=heads, n_layers=2, d_ff=24, block=block, bias=bias, d_text=4, d_reduced=4
    )
    return StarsEncoder(sizes)


def storage(of: StarsEncoder, dtype: torch.dtype = torch.float32, page: int = PAGE) -> torch.Tensor:
    sizes = of.config
    return torch.zeros(sizes.n_layers, PAGES, page, 2, sizes.n_heads, sizes.d_head, dtype=dtype)


@pytest.mark.parametrize(
    ("found", "sizes"),
    [
        (True, {}),
        (True, {"block": "paper", "d_model": 16}),
        (False, {"block": "hstu"}),
        (False, {"bias": "time"}),
        (False, {"d_model": 24}),  # half a panel is left
        (False, {"d_model": 96, "heads": 2}),  # heads of 48
    ],
)
def test_torch_serves_what_is_not_known(found: bool, sizes: dict[str, Any]) -> None:
    made = model(**sizes)
    assert (native_forward(made, storage(made)) is not None) == (found and bool(COMPILED))
    assert native_forward(made, storage(made, torch.bfloat16)) is None
    assert native_forward(made, storage(made, page=65)) is None


@pytest.fixture(params=COMPILED, ids=lambda module: module.__name__.rpartition(".")[2])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Each of what was compiled, as if it were the only one."""
    module: ModuleType = request.param
    monkeypatch.setattr("encoder.inference.native_forward.COMPILED", [module])
    return module


@pytest.mark.parametrize(("d_model", "heads"), [(32, 2), (64, 4), (64, 1), (128, 1), (256, 2)])
@pytest.mark.parametrize("block", ["paper", "gated"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, TOLERANCE), (torch.float16, HALF_TOLERANCE)])
def test_heads_of_any_width_that_is_taken(
    compiled: ModuleType, dtype: torch.dtype, most: float, block: str, d_model: int, heads: int
) -> None:
    made = IncrementalEncoder(model(block, d_model=d_model, heads=heads), cache_bytes=10**7, cache_dtype=dtype)
    assert (made._native is not None) == compiled.fits(d_model, heads)
    for length in (0, 1, 40):
        asked = [request(user, history(length + user, user)[:length]) for user in range(8)]
        found, expected = made.encode(asked).vectors, made.encode_whole(asked).vectors
        np.testing.assert_allclose(found, expected, atol=most)


@pytest.mark.parametrize(
    ("sizes", "halves"), [({}, True), ({"block": "paper"}, True), ({"block": "hstu"}, False), ({"bias": "time"}, False)]
)
def test_a_compact_cache_is_in_halves_where_they_are_read_as_they_are(
    sizes: dict[str, Any], halves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dtype(*, compact: bool) -> torch.dtype:
        made = IncrementalEncoder(model(**sizes), cache_bytes=10**6, device="cpu", compact=compact)
        return made._cache.storage.dtype

    assert dtype(compact=True) == (torch.float16 if halves and COMPILED else torch.float32)
    assert dtype(compact=False) == torch.float32
    monkeypatch.setattr("encoder.inference.native_forward.COMPILED", [])
    assert dtype(compact=True) == torch.float32


@pytest.mark.parametrize("path", ["compiled", "wide"])
@pytest.mark.parametrize("block", ["paper", "gated"])
def test_a_cache_of_halves_is_read_where_it_lies(block: str, path: str) -> None:
    full = encoder(block, path=path)
    half = encoder(block, path=path)
    half._cache.storage = half._cache.storage.half()
    requests = [request(user, history(5 + 3 * user, user)) for user in range(3)]
    longer = [request(user, history(6 + 3 * user, user), 5 + 3 * user) for user in range(3)]
    for asked in (requests, longer):
        expected, found = full.encode(asked).vectors, half.encode(asked).vectors
        np.testing.assert_allclose(found, expected, atol=HALF_TOLERANCE)
        assert np.abs(found - expected).max() > 0 or not COMPILED
        np.testing.assert_allclose(expected, full.encode_whole(asked).vectors, atol=TOLERANCE)


GOOD: dict[str, Any] = {
    "x": np.zeros((3, 64), np.float32),
    "owner": np.array([0, 0, 1]),
    "position": np.array([0, 1, 5]),
    "last": np.array([1, 2]),
    "pages": np.array([[0, 1], [2, 3]]),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", np.zeros((3, 32), np.float32)),
        ("x", np.zeros((2, 64), np.float32)),
        ("x", np.zeros(64, np.float32)),
        ("owner", np.array([0, 0, 2])),
        ("owner", np.array([0, -1, 1])),
        ("owner", np.array([0, 1])),
        ("position", np.array([0, 1, 8])),
        ("position", np.array([-1, 1, 5])),
        ("last", np.array([1, 3])),
        ("last", np.array([0, 1])),
        ("last", np.array([1])),
        ("pages", np.array([[0, 1], [2, PAGES]])),
        ("pages", np.array([[0, -1], [2, 3]])),
        ("pages", np.array([0, 1])),
        ("storage", np.zeros((2, PAGES, PAGE, 2, 2, 32), np.float64)),
        ("storage", np.zeros((2, PAGES, PAGE, 2, 2, 32), np.int16)),
        ("storage", np.zeros((1, PAGES, PAGE, 2, 2, 32), np.float32)),
        ("storage", np.zeros((2, PAGES, PAGE, 2, 4, 16), np.float32)),
        ("storage", np.zeros((2, PAGES, PAGE, 2, 2, 32), np.float32).transpose(0, 2, 1, 3, 4, 5)),
        ("storage", np.zeros((2, PAGES, 2, 2, 32), np.float32)),
        ("storage", np.broadcast_to(np.zeros(32, np.float32), (2, PAGES, PAGE, 2, 2, 32))),
    ],
)
def test_what_lies_outside_is_refused_before_it_is_read(compiled: ModuleType, name: str, value: Any) -> None:
    made = model()
    forward = native_forward(made, storage(made))
    assert isinstance(forward, compiled.Forward)
    given = GOOD | {"storage": storage(made).numpy()}
    assert forward.run(*given.values()).shape == (2, 2, 64)
    with pytest.raises(ValueError):
        forward.run(*(given | {name: value}).values())
