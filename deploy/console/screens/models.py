"""Shows the models of a deployment, how far a staged one is, and stages, promotes and rolls back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.console.pages import Console, FormFields, console_of, page, reads, writes
from deploy.models.registry import Registry
from deploy.models.rollout import Rollout
from deploy.models.summary import rollout_status
from deploy.models.trials import parse_share


@reads
async def _models(request: Request) -> Response:
    return page(request, "models.html", **await _values(console_of(request)), said="")


async def _values(console: Console) -> dict[str, Any]:
    rollout: Rollout = console.rollouts()
    found = await rollout_status(rollout)
    try:
        cards, unread = await asyncio.to_thread(cards_of, rollout.registry), ""
    except (OSError, ValueError) as error:
        cards, unread = [], str(error)
    aliases = {found[name]: name for name in ("previous", "challenger", "champion") if found[name]}
    texts = {version: _texts(said) for version, said in found["embedding"].items()}
    return {
        "found": found,
        "cards": cards,
        "unread": unread,
        "aliases": aliases,
        "texts": texts,
        "untold": rollout.untold,
    }


def cards_of(registry: Registry) -> list[dict[str, Any]]:
    """What the registry says of each version, the newest first. Raises OSError where it is away."""
    found = [{"created_ms": 0, **registry.card(version)} for version in registry.versions()]
    for card in found:
        metrics = card.get("metrics")
        card["ndcg"] = metrics.get("ndcg@10") if isinstance(metrics, Mapping) else None
    return sorted(found, key=lambda card: -int(card["created_ms"] or 0))


def _texts(said: Mapping[str, Any]) -> str:
    if "refused" in said:
        return f"not embedded: {said['refused']}"
    if "total" not in said:
        return f"not looked at yet, by {said.get('embedder')}"
    return f"{said['done']:,} of {said['total']:,} texts embedded by {said['embedder']}"


@writes
async def _change(request: Request, fields: FormFields) -> Response:
    """One step, as of `perseid models`; a promotion has to be meant, so its version is said again by the form."""
    console, step, version = console_of(request), fields["step"], fields.get("version", "")
    rollout: Rollout = console.rollouts()
    share = fields.get("share", "")
    steps: dict[str, Callable[[], Awaitable[Any]]] = {
        "stage": lambda: rollout.stage(version),
        "unstage": rollout.unstage,
        "promote": lambda: rollout.promote(version),
        "rollback": rollout.rollback,
        "retire": lambda: rollout.retire(version),
        "shadow": lambda: rollout.shadow(version, parse_share(share)),
        "end shadow": rollout.end_shadow,
        "end experiment": rollout.end_experiment,
    }
    if step not in steps:
        raise ValueError(f"no step {step!r}")
    await steps[step]()
    return page(request, "models.html", **await _values(console), said=f"Done: {step} {version}".rstrip())


ROUTES = [Route("/models", _models), Route("/models/change", _change, methods=["POST"])]
