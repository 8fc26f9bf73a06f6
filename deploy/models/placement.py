"""Puts a model that a retraining made in its place beside the served one, and lets go of those made long before.

Assumes a verdict on it. What a person staged or rolled back to is not undone.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from deploy.models.registry import Registry
from deploy.models.rollout import Rollout

COMPARED = "compared"  # on the card of each model that a retraining made: its verdict
KEPT = 10  # models of retrainings without an alias that stay in the registry, the newest ones
_LOOK_S = 2.0  # between two looks at the gates, which count everybody


class Placement:
    """Steps with a model that was compared with `champion`. All raise ValueError that says why they are refused."""

    def __init__(self, rollout: Rollout, registry: Registry, champion: str) -> None:
        self._rollout, self._registry, self._champion = rollout, registry, champion

    async def stage(self, version: str, *, replace_other: bool = False) -> None:
        """Stages it, in place of a model that another retraining made, or of any with `replace_other`.

        One that is being tried, as a shadow or in an experiment, is somebody's.
        """
        found = await self._rollout.aliases()
        if found.champion and found.champion != self._champion:
            raise ValueError(f"it was compared with {self._champion}, and {found.champion} is served now")
        if found.challenger != version:
            is_tried = found.shadowed is not None or found.running is not None
            ours = bool(found.challenger) and not is_tried and self._is_retrained(found.challenger)
            await self._rollout.stage(version, replace_other=replace_other or ours)

    async def promote(self, version: str, within_s: float) -> None:
        """Waits until it has passed all gates, and has it served."""
        previous = (await self._rollout.aliases()).previous
        if previous and self._parent(previous) == self._champion:
            raise ValueError(f"{previous} was made of {self._champion} too, and was rolled back within 24 hours")
        until_s = time.monotonic() + within_s
        while waiting := [gate for gate in await self._rollout.gates(version) if not gate.passed]:
            if time.monotonic() >= until_s:
                raise ValueError(f"not through its gates in time: {'; '.join(str(gate)[5:] for gate in waiting)}")
            if (await self._rollout.aliases()).challenger != version:
                break  # somebody took it back, which promotion says
            await asyncio.sleep(_LOOK_S)
        await self._rollout.promote(version)

    async def forget_old(self) -> None:
        """Removes models of earlier retrainings from the registry, but for the newest and those with an alias."""
        named = {*(await self._rollout.aliases()).versions, *self._registry.aliases().versions}
        made = [version for version in self._registry.versions() if self._is_retrained(version)]
        made.sort(key=lambda version: self._registry.card(version).get("created_ms", 0), reverse=True)
        for version in [version for version in made if version not in named][KEPT:]:
            self._registry.remove(version)

    def _is_retrained(self, version: str) -> bool:
        with suppress(ValueError):  # not in the registry
            return COMPARED in self._registry.card(version)
        return False

    def _parent(self, version: str) -> str | None:
        with suppress(ValueError):
            parent = self._registry.card(version).get("parent")
            return None if parent is None else str(parent)
        return None
