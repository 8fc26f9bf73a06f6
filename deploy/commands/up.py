"""Reads the options of `perseid up` and runs `deploy.local.up`."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Data folder: train on the first part of its timeline, replay the rest. Without it a shop is generated.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    help="With --data, how much faster than real time; else a factor on the shop's 20 events/s.",
)
@click.option("--no-traffic", is_flag=True, help="Load items and histories, but send no live events: bring your own.")
@click.option("--api-port", type=click.IntRange(1, 65535), help="Port of the API on 127.0.0.1.  [default: 8000]")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".perseid"),
    show_default=True,
    help="Folder for caches, logs and the live state.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the generated shop.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of workers.")
@click.option(
    "--apis", type=click.IntRange(1, 64), default=1, show_default=True, help="API processes, ports ascending."
)
def up(
    data: Path | None,
    speed: float | None,
    no_traffic: bool,
    api_port: int | None,
    state: Path,
    seed: int,
    workers: int,
    apis: int,
) -> int:
    """Run everything on this machine: broker, Redis, worker, embed, API and traffic. Ctrl-C stops it.

    Servers that PERSEID_KAFKA, PERSEID_REDIS or PERSEID_ELASTICSEARCH name are used instead of embedded ones; `perseid
    stack up` starts real ones. Topics that are missing there are created.

    The first start generates a shop, embeds its texts and trains a small model (about two minutes); later starts take
    what is in the state folder.

    Example: perseid up --data ml_latest_small --speed 100000
    """
    from deploy.local.status_line import StatusLine
    from deploy.local.up import UpOptions
    from deploy.local.up import up as run_up

    line = StatusLine()
    try:
        run_up(UpOptions(state, data, speed, not no_traffic, api_port, seed, workers, apis), os.environ, line)
    except KeyboardInterrupt:
        line.end()
        line.say("Stopped.")
    finally:
        line.end()
    return 0
