"""Describes how far a change of models is, for `perseid models status` and the console."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deploy.models.gates import FillProgress
from deploy.models.rollout import Rollout
from deploy.models.trials import trial_lines


async def rollout_status(rollout: Rollout) -> dict[str, Any]:
    """Aliases, gates of the staged version, what workers fill and how it is tried. Raises StoreUnavailableError."""
    aliases = await rollout.aliases()
    gates = await rollout.gates(aliases.challenger) if aliases.challenger else []
    filling = await rollout.filling()
    progress, counts = FillProgress.of(filling), await rollout.shadowed()
    shadow = None if counts is None else counts.summary()
    experiment = aliases.running
    shown = [{"name": g.name, "has": g.has, "of": g.of, "passed": g.passed, "said": g.said} for g in gates]
    return {
        "champion": aliases.champion or None,
        "challenger": aliases.challenger or None,
        "previous": aliases.previous or None,
        "previous_until_ms": aliases.previous_until_ms or None,
        "gates": shown,
        "lines": [*trial_lines(aliases, shadow), *map(str, gates)],
        "shadow": None if aliases.shadowed is None else {**asdict(aliases.shadowed), **(shadow or {})},
        "experiment": None if experiment is None else asdict(experiment),
        "filling": filling,
        "embedding": await rollout.embedding(),
        "progress": None if progress is None else {**asdict(progress), "seconds_left": progress.seconds_left},
        "passed": all(gate.passed for gate in gates),
    }
