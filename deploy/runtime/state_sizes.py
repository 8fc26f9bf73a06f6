"""Makes the sizes of the live state on which worker and replay must agree, and keeps them beside the state.

The model says how long a window is. A live state that was made with another window is refused, because what was cut
from its windows is not there any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from context.units import DAY_MS
from deploy.settings import Settings
from index.state.store import LiveStore

if TYPE_CHECKING:
    from encoder.model.config import ModelConfig
    from streams.pipeline.user_state import EngineSettings

FIRST_WINDOW = "200+56"  # what states were made with before they said so


def engine_settings(settings: Settings, config: ModelConfig | None, *, half_vectors: bool = True) -> EngineSettings:
    """Sizes for an engine; without a model, windows have the default length."""
    from streams.pipeline.user_state import EngineSettings, WindowLimits

    return EngineSettings(
        limits=WindowLimits() if config is None else WindowLimits(config.window, config.slack),
        bucket_ms=settings.bucket_minutes * 60_000,
        idle_ms=settings.idle_days * DAY_MS,
        half_vectors=half_vectors,
    )


async def keep_window(store: LiveStore, sizes: EngineSettings) -> None:
    """Writes the window's length once. Raises ValueError when the live state was made with another one."""
    wanted = f"{sizes.limits.size}+{sizes.limits.slack}"
    key = store.keys.cluster()
    stored, used = (await store.read([(key, ["window", "model"])]))[0]
    kept = stored.decode() if stored else FIRST_WINDOW if used else wanted
    if kept != wanted:
        raise ValueError(
            f"the model cuts windows at {wanted} events (window+slack), the live state was made with {kept}: "
            "serve a model with that window, or use another PERSEID_PREFIX and rebuild from Kafka"
        )
    await store.write(key, {"window": wanted.encode()})
