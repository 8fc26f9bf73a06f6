"""The cached append equals encoding the whole window: random sequences, batches, late events, cuts and evictions."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoder.inference.batching import EncodeRequest
from encoder.inference.cuda_append import AppendStep
from encoder.inference.incremental import IncrementalEncoder, _in_place
from encoder.model.config import BIASES, BLOCKS, ModelConfig
from encoder.model.encoder import StarsEncoder

TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-3  # of cosines, as the vectors that are stored
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D_TEXT = 6
ITEMS = [f"item-{number}" for number in range(30)]
LATER = [f"later-{number}" for number in range(5)]  # items whose vector arrives after their events
START_MS = 1_700_000_000_000
PATHS = ("torch", "step", "compiled", "wide")
PROFILES: list[dict[str, Any] | None] = [
    None,
    {"numeric": {"age": 31.0, "spend": -4.5}, "categorical": {"plan": "gold"}},
    {"numeric": {}, "categorical": {"plan": "silver"}},
]


def config(block: str, window: int = 12, slack: int = 6, bias: str = "none", d_model: int = 16) -> ModelConfig:
    return ModelConfig(
        d_model=d_model,
        n_layers=3,
        n_heads=2,
        d_ff=24,
        block=block,
        bias=bias,
        d_text=D_TEXT,
        d_reduced=4,
        kinds=("view", "buy", "no"),
        tags=("red", "blue"),
        window=window,
        slack=slack,
    )


def encoder(
    block: str = "gated",
    users: int = 4,
    window: int = 12,
    slack: int = 6,
    bias: str = "none",
    page: int = 4,
    path: str = "torch",
) -> IncrementalEncoder:
    """Whose cache holds so many full windows. On the path "step" single rows go the way that they go on CUDA, where
    there is one; then the tests run there. "compiled" and "wide" are for AVX2 and AVX-512, where a processor has that.
    """
    torch.manual_seed(3)
    model = StarsEncoder(config(block, window, slack, bias, 64 if path == "wide" else 16), ITEMS[:10])
    with torch.no_grad():  # trained models are not near zero: make every part count
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    cache = IncrementalEncoder(model, cache_bytes=10**7, cache_dtype=torch.float32, page=page)._cache
    one = cache.needed(1 + model.config.capacity) * cache.page_bytes
    made = IncrementalEncoder(model, cache_bytes=users * one, cache_dtype=torch.float32, page=page)
    if path in ("torch", "step"):
        made._native = None
    if path == "step" and made._step is None:
        made._step = AppendStep(model, made._cache, None)
    made.items.put(ITEMS, vectors(len(ITEMS)), [["red"], ["blue", "unknown"], []] * 10)
    return made


def vectors(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(count, D_TEXT)).astype(np.float32)


def request(key: int, events: Sequence[tuple[str, int, int]], keep: int = 0, profile: int = 0) -> EncodeRequest:
    items, kinds, times = zip(*events, strict=True) if events else ((), (), ())
    return EncodeRequest(key, items, kinds, times, PROFILES[profile], keep)


def assert_equal_to_whole(made: IncrementalEncoder, requests: Sequence[EncodeRequest], note: str = "") -> None:
    found, expected = made.encode(requests), made.encode_whole(requests)
    assert np.abs(found.vectors - expected.vectors).max() <= TOLERANCE, note
    assert np.abs(np.linalg.norm(found.vectors, axis=-1) - 1).max() <= TOLERANCE
    assert found.missing == expected.missing, note


def history(length: int, seed: int = 0) -> list[tuple[str, int, int]]:
    """The first `length` events of a fixed sequence."""
    rng = np.random.default_rng(seed)
    times = START_MS + np.cumsum(rng.integers(0, 10**8, 300))
    return [(ITEMS[rng.integers(30)], int(rng.integers(3)), int(ts)) for ts in times][:length]


class Shop:
    """Users whose windows grow, receive late events and are cut, as the stream would do it."""

    def __init__(self, made: IncrementalEncoder) -> None:
        self.made = made
        self.windows: dict[int, list[tuple[str, int, int]]] = {}
        self.keep: dict[int, int] = {}

    def add(self, user: int, event: tuple[str, int, int]) -> None:
        window = self.windows.setdefault(user, [])
        at = sum(1 for other in window if other[2] <= event[2])
        window.insert(at, event)
        self.keep[user] = min(self.keep.get(user, 0), at)
        if len(window) == self.made.model.config.capacity:
            del window[: -self.made.model.config.window]
            self.keep[user] = 0

    def encode(self, users: Sequence[int]) -> None:
        batch = [request(user, self.windows.get(user, []), self.keep.get(user, 0), user % 3) for user in users]
        assert_equal_to_whole(self.made, batch, f"users {users}")
        for user in users:
            self.keep[user] = len(self.windows.get(user, []))


EVENTS = st.tuples(
    st.integers(0, 6),  # user
    st.sampled_from(ITEMS + LATER),
    st.integers(0, 2),  # kind
    st.one_of(st.integers(0, 10), st.integers(0, 10**6), st.integers(0, 10**11)),  # time: often equal, often late
)
STEPS = st.one_of(
    st.lists(EVENTS, min_size=1, max_size=12).map(lambda events: ("events", events)),
    st.sampled_from(LATER).map(lambda item: ("vector", item)),
    st.integers(0, 6).map(lambda user: ("drop", user)),
    st.just(("everybody", None)),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    block=st.sampled_from(BLOCKS),
    bias=st.sampled_from(BIASES),
    slots=st.integers(1, 8),
    page=st.sampled_from([1, 4, 32]),
    path=st.sampled_from(PATHS),
    steps=st.lists(STEPS, max_size=14),
)
def test_append_equals_whole_window(
    block: str, bias: str, slots: int, page: int, path: str, steps: list[tuple[str, Any]]
) -> None:
    shop = Shop(encoder(block, users=slots, bias=bias, page=page, path=path))
    for action, value in steps:
        if action == "events":
            for user, item, kind, offset_ms in value:
                shop.add(user, (item, kind, START_MS + offset_ms))
            shop.encode(sorted({user for user, *_ in value}))
        elif action == "vector":
            shop.made.items.put([value], vectors(1, seed=len(value)), [["red"]])
            waiting = [user for user, window in shop.windows.items() if any(event[0] == value for event in window)]
            if waiting:
                shop.encode(waiting)
        elif action == "drop":
            shop.made.drop(value)
        else:
            shop.encode(range(7))


def test_a_long_history_survives_many_cuts() -> None:
    shop = Shop(encoder(users=2))
    for event in history(70, seed=5):
        shop.add(1, event)
        shop.encode([1])


def test_window_of_two_hundred_one_by_one() -> None:
    made = encoder(window=200, slack=56)
    events = history(256, seed=1)
    made.encode([request(1, events[:240])])
    for length in range(241, 257):
        assert_equal_to_whole(made, [request(1, events[:length], length - 1)])


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("block", BLOCKS)
def test_single_rows_of_batches_of_any_size(block: str, bias: str) -> None:
    made = encoder(block, users=9, bias=bias, path="step")
    steps = count_steps(made)
    lengths = dict.fromkeys(range(9), 0)
    for users in (range(9), [3], range(8), range(2, 5), range(9), range(5), range(9)):
        for user in users:
            lengths[user] += 1
        assert_equal_to_whole(made, [request(u, history(lengths[u], u), lengths[u] - 1, u % 3) for u in users])
    assert steps == [1, 8, 3, 9, 5, 9]  # the first batch brings [USER] too


def test_prepared_sizes_are_those_that_batches_need() -> None:
    made = encoder(path="step")
    assert made._step is not None
    made.prepare(5)
    assert list(made._step._recorded) == ([1, 2, 4, 8] if DEVICE == "cuda" else [])  # a CPU has nothing to record
    assert_equal_to_whole(made, [request(1, history(3))])


def count_steps(made: IncrementalEncoder) -> list[int]:
    """The sizes of batches of single rows from now on."""
    step, sizes = made._step, list[int]()
    assert step is not None

    def counted(x: torch.Tensor, *more: Any) -> Any:
        sizes.append(len(x))
        return step(x, *more)

    made._step = counted  # type: ignore[assignment]
    return sizes


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernel runs here")
def test_where_the_kernel_does_not_run_pages_are_gathered(caplog: pytest.LogCaptureFixture) -> None:
    biased, plain = encoder(bias="position"), encoder()
    assert _in_place(biased.model) is None and not caplog.records
    assert _in_place(plain.model) is None
    if find_spec("triton") is not None:
        assert "gather their pages" in caplog.text


_KERNEL = """
import torch
from encoder.inference.cuda_append import _gathered
from encoder.model.blocks import PaperBlock
from encoder.model.config import ModelConfig
from encoder.inference.paged_attention import attend_in_place

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
for page, heads, width, dtype in (4, 2, 8, torch.float32), (19, 3, 12, torch.float32), (32, 2, 24, torch.float16):
    cache = torch.randn(12, page, 2, heads, width, device=device).to(dtype)
    pages = torch.randint(12, (5, 4), device=device)
    position = torch.tensor([0, page - 1, page, 2 * page + 1, 4 * page - 1], device=device)
    queries = torch.randn(2, 5, heads, width, device=device)
    block = PaperBlock(ModelConfig(d_model=heads * width, n_heads=heads))
    expected = _gathered(block, queries, cache.float(), pages, position, None)
    found = attend_in_place(queries, cache, pages, position)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
print("equal")
"""


def test_attention_in_place_equals_attention_over_gathered_pages() -> None:
    """On a machine without CUDA by Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _KERNEL], capture_output=True, text=True, env=os.environ | interpreted, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr


def test_one_new_token_costs_one_row() -> None:
    made = encoder()
    made.encode([request(user, history(8, user)) for user in range(4)])
    before = made.stats.tokens
    made.encode([request(user, history(9, user), 8) for user in range(4)])
    assert made.stats.tokens - before == 4
    assert (made.stats.hits, made.stats.misses) == (4, 4)


def test_late_event_reencodes_only_what_follows_it() -> None:
    made = encoder()
    events = history(10)
    made.encode([request(1, events)])
    late = [*events[:6], ("item-3", 1, events[5][2]), *events[6:]]
    before = made.stats.tokens
    assert_equal_to_whole(made, [request(1, late, 6)])
    assert made.stats.tokens - before == 5


def test_general_vector_changes_with_the_history() -> None:
    made = encoder()
    short = made.encode([request(1, history(5))]).vectors[0]
    other = made.encode([request(2, [*history(5)[:2], ("item-29", 0, START_MS), *history(5)[3:]])]).vectors[0]
    assert np.abs(short[1] - other[1]).max() > 1e-3


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("block", BLOCKS)
def test_no_earlier_state_changes_with_a_later_event(block: str, bias: str) -> None:
    model = encoder(block, bias=bias).model
    x = torch.randn(2, 9, 16)
    changed = x.clone()
    changed[:, 6:] += 1.0
    read_to = torch.tensor([[3, 5], [0, 5]])
    ts_ms = torch.arange(18).view(2, 9) * 10**7
    later = ts_ms.clone()
    later[:, 6:] *= 3
    x, changed, read_to, ts_ms, later = (value.to(DEVICE) for value in (x, changed, read_to, ts_ms, later))
    with torch.inference_mode():
        (before, gen_before), (after, gen_after) = (
            model.states(x, read_to, ts_ms),
            model.states(changed, read_to, later),
        )
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    assert torch.allclose(gen_before, gen_after, atol=1e-6)  # [GEN] rows that read at most position 5


def test_user_row_reads_only_itself_and_comes_from_the_profile() -> None:
    made = encoder()
    empty = [request(user, [], profile=user) for user in range(3)]
    found = made.encode(empty).vectors
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert np.abs(found[1] - found[2]).max() > 1e-3
    assert_equal_to_whole(made, empty)


def test_profile_is_read_again_at_a_rebuild_only() -> None:
    made = encoder()
    events = history(5)
    first = made.encode([request(1, events, 0, profile=0)]).vectors
    kept = made.encode([request(1, events, 5, profile=1)]).vectors
    rebuilt = made.encode([request(1, events, 0, profile=1)]).vectors
    assert np.allclose(first, kept, atol=TOLERANCE)
    assert np.abs(first - rebuilt).max() > 1e-3


def test_missing_items_are_reported_and_encoded_once_known() -> None:
    made = encoder()
    events = [*history(3), ("later-1", 0, START_MS + 10**10), ("later-0", 1, START_MS + 10**10), *history(0)]
    assert made.encode([request(1, events)]).missing == (("later-1", "later-0"),)
    blind = made.encode([request(1, events, 5)])
    assert blind.missing == (("later-1", "later-0"),)
    made.items.put(["later-1"], vectors(1, 9), [["blue"]])
    known = made.encode([request(1, events, 5)])
    assert known.missing == (("later-0",),)
    assert np.abs(known.vectors - blind.vectors).max() > 1e-3
    assert_equal_to_whole(made, [request(1, events, 5)])


def test_a_late_event_before_an_item_that_became_known() -> None:
    made = encoder()
    events = [*history(5), ("later-1", 0, START_MS + 10**10)]
    made.encode([request(1, events)])
    made.items.put(["later-1"], vectors(1, 9), [["blue"]])
    late = [*events[:2], ("item-7", 1, events[1][2]), *events[2:]]
    assert_equal_to_whole(made, [request(1, late, 2)])


def test_more_keys_than_slots_in_one_batch() -> None:
    made = encoder(users=3, page=19)
    batch = [request(user, history(3 + user % 5, user)) for user in range(10)]
    assert_equal_to_whole(made, batch)
    assert made.stats.evictions == 7
    assert made.stats.bytes == 3 * made._cache.page_bytes
    again = [request(user, history(4 + user % 5, user), 3 + user % 5) for user in range(10)]
    assert_equal_to_whole(made, again)


def test_short_windows_take_as_many_pages_as_they_need() -> None:
    made = encoder(users=3, page=4)  # 15 pages
    short = [request(user, history(3, user)) for user in range(15)]  # four positions each
    assert_equal_to_whole(made, short)
    assert made.stats.evictions == 0 and made.stats.bytes == 15 * made._cache.page_bytes
    assert_equal_to_whole(made, [request(14, history(4, 14), 3)])  # one more page: that of the first to come
    assert made.stats.evictions == 1 and made.stats.hits == 1
    assert_equal_to_whole(made, [request(14, history(2, 99))])  # a window that was cut gives its page back
    assert made.stats.bytes == 14 * made._cache.page_bytes
    assert_equal_to_whole(made, [request(user, history(4, user), 3) for user in range(14)])
    assert made.stats.bytes <= 15 * made._cache.page_bytes


def test_dropped_keys_are_rebuilt() -> None:
    made = encoder()
    made.encode([request(user, history(4, user)) for user in range(4)])
    made.drop(0)
    assert made.drop_where(lambda key: key in (1, 2)) == 2
    assert made._cache.used_bytes == made._cache.needed(5) * made._cache.page_bytes  # what the last one holds
    misses = made.stats.misses
    assert_equal_to_whole(made, [request(user, history(5, user), 4) for user in range(4)])
    assert made.stats.misses - misses == 3


def test_released_memory_costs_a_rebuild_and_nothing_else() -> None:
    made = encoder()
    made.encode([request(user, history(4, user)) for user in range(3)])
    made.release()
    assert made.stats.bytes == 0 and not made._cache.storage.any()
    assert_equal_to_whole(made, [request(user, history(5, user), 4) for user in range(3)])
    assert (made.stats.misses, made.stats.bytes > 0) == (6, True)


def test_order_of_the_batch_does_not_matter() -> None:
    batch = [request(user, history(1 + user, user)) for user in range(6)]
    forward = encoder(users=9).encode(batch).vectors
    backward = encoder(users=9).encode(batch[::-1]).vectors[::-1]
    assert np.allclose(forward, backward, atol=TOLERANCE)


def test_items_can_be_replaced_removed_and_listed() -> None:
    made = encoder()
    before = made.items.retrieval(["item-1"])
    made.items.put(["item-1", "item-1"], vectors(2, 4), [["blue"], ["red"]])
    assert np.abs(made.items.retrieval(["item-1"]) - before).max() > 1e-3
    assert np.allclose(np.linalg.norm(made.items.retrieval(ITEMS), axis=1), 1, atol=1e-3)
    made.items.remove(["item-1", "nobody"])
    assert "item-1" not in made.items and len(made.items) == 29
    made.items.put([f"new-{n}" for n in range(3000)], vectors(3000), [[]] * 3000)
    assert len(made.items) == 3029
    kept = made.items.retrieval(["item-2", "new-2999"])
    assert np.allclose(kept[0], encoder().items.retrieval(["item-2"])[0], atol=1e-6)
    with pytest.raises(ValueError, match="item-1"):
        made.items.retrieval(["item-1"])


def test_unknown_items_use_text_and_tags_only() -> None:
    made = encoder()
    made.items.put(["stranger", "item-0"], np.tile(vectors(1), (2, 1)), [["red"], ["red"]])
    stranger, known = made.items.retrieval(["stranger", "item-0"])
    assert np.abs(stranger - known).max() > 1e-3  # item-0 has a learned offset


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (EncodeRequest(1, ["item-1"], [0, 1], [START_MS], None, 0), "one of each per event"),
        (EncodeRequest(1, ["item-1"] * 19, [0] * 19, [START_MS] * 19, None, 0), "cut the window"),
        (EncodeRequest(1, ["item-1"], [0], [START_MS], None, 2), "keep 2"),
        (EncodeRequest(1, ["item-1"], [3], [START_MS], None, 0), "outside 0..2"),
    ],
)
def test_malformed_requests_are_refused(bad: EncodeRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder().encode([bad])


def test_refuses_what_would_corrupt_the_cache() -> None:
    made = encoder()
    with pytest.raises(ValueError, match="twice"):
        made.encode([request(1, history(2)), request(1, history(3))])
    with pytest.raises(ValueError, match="holds no user"):
        IncrementalEncoder(made.model, cache_bytes=10)
    with pytest.raises(ValueError, match="NaN"):
        made.items.put(["x"], np.full((1, D_TEXT), np.nan, dtype=np.float32), [[]])
    with pytest.raises(ValueError, match="needs vectors"):
        made.items.put(["x"], np.zeros((1, 3), dtype=np.float32), [[]])


def test_empty_batch() -> None:
    assert encoder().encode([]).vectors.shape == (0, 2, 16)


@pytest.mark.parametrize("block", ["paper", "gated"])
@pytest.mark.parametrize("bias", BIASES)
def test_a_cache_in_half_precision_holds_twice_as_much_and_is_as_near_as_that_allows(block: str, bias: str) -> None:
    whole = encoder(block, users=2, bias=bias)
    cache_bytes = whole._cache.count * whole._cache.page_bytes
    halves = IncrementalEncoder(whole.model, cache_bytes=cache_bytes, cache_dtype=torch.float16, page=4)
    halves.items.put(ITEMS, vectors(len(ITEMS)), [["red"], ["blue", "unknown"], []] * 10)
    assert halves._cache.count == 2 * whole._cache.count
    furthest = 0.0
    for length in range(1, 13):
        requests = [request(user, history(length, user), length - 1) for user in range(4)]
        difference = np.abs(halves.encode(requests).vectors - whole.encode_whole(requests).vectors).max()
        furthest = max(furthest, float(difference))
    assert halves.stats.hits == 4 * 11
    assert 0 < furthest < HALF_TOLERANCE
