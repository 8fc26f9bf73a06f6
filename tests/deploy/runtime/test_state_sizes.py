"""Sizes of the live state: taken from settings and model, and another window is refused with the remedy."""

from __future__ import annotations

import asyncio

import pytest

from deploy.runtime.state_sizes import engine_settings, keep_window
from deploy.settings import load
from encoder.model.config import ModelConfig
from index.state.memory_store import MemoryStore
from streams.pipeline.user_state import WindowLimits


def test_windows_are_the_models_and_the_rest_is_configured() -> None:
    settings = load({"PERSEID_IDLE_DAYS": "30", "PERSEID_BUCKET_MINUTES": "10"})
    sizes = engine_settings(settings, ModelConfig(window=50, slack=14))
    assert sizes.limits == WindowLimits(50, 14)
    assert (sizes.idle_ms, sizes.bucket_ms) == (30 * 86_400_000, 600_000)
    assert engine_settings(settings, None).limits == WindowLimits()


@pytest.mark.parametrize("first", [(50, 14), None])
def test_a_model_with_another_window_is_refused(first: tuple[int, int] | None) -> None:
    async def scenario() -> None:
        store, settings = MemoryStore(), load({})
        if first is None:  # a state from before windows were written down: it has a model and the default window
            await store.write(store.keys.cluster(), {"model": b"m1"})
        else:
            await keep_window(store, engine_settings(settings, ModelConfig(window=first[0], slack=first[1])))
            await keep_window(store, engine_settings(settings, ModelConfig(window=first[0], slack=first[1])))
        made = "50+14" if first else "200+56"
        with pytest.raises(ValueError, match=rf"30\+6 events .* made with {made.replace('+', '[+]')}: serve a model"):
            await keep_window(store, engine_settings(settings, ModelConfig(window=30, slack=6)))

    asyncio.run(scenario())
