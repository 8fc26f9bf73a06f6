"""Runs one process of a role each, configured by PERSEID_* variables (`perseid worker`, `embed`, `api`, `indexer`,
`traffic`)."""

from __future__ import annotations

import os
from pathlib import Path

import click

from deploy.commands.options import state_option
from deploy.state_folder import attach


@click.command()
@state_option
def worker(state: Path | None) -> None:
    """Run a worker: apply events from Kafka to the live state in Redis. Start as many as there is load.

    Example: PERSEID_KAFKA=kafka:9092 PERSEID_REDIS=redis://redis:6379/0 PERSEID_MODEL=model perseid worker
    """
    from deploy.roles.worker import run_worker

    run_worker(attach(os.environ, state))


@click.command()
@state_option
def embed(state: Path | None) -> None:
    """Run the embed role: turn catalogue texts into vectors and tags, in a process and group of its own.

    Example: PERSEID_KAFKA=kafka:9092 PERSEID_MODEL=model perseid embed
    """
    from deploy.roles.embed import run_embed

    run_embed(attach(os.environ, state))


@click.command()
@click.option("--port", "api_port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option("--host", "api_host", help="Address to listen on; the default is reachable from this machine only.")
@state_option
def api(api_port: int | None, api_host: str | None, state: Path | None) -> None:
    """Run an API process. Start as many as there is load; they share nothing.

    Example: PERSEID_REDIS=redis://redis:6379/0 perseid api --port 8080
    """
    from deploy.roles.api import run_api

    run_api(attach(os.environ, state, api_port=api_port, api_host=api_host))


@click.command()
@state_option
def indexer(state: Path | None) -> None:
    """Run an indexer: keep the items in Elasticsearch as they are in the live state. A second one is a spare.

    Example: PERSEID_ELASTICSEARCH=http://search:9200 PERSEID_REDIS=redis://redis:6379/0 perseid indexer
    """
    from deploy.roles.indexer import run_indexer

    run_indexer(attach(os.environ, state))


@click.command(hidden=True)
@click.argument("plan", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@state_option
def traffic(plan: Path, state: Path | None) -> None:
    """Send what PLAN says; `perseid up` starts this.

    Example: perseid traffic --state .perseid .perseid/traffic.json
    """
    from deploy.roles.traffic import run_traffic

    run_traffic(attach(os.environ, state), plan)
