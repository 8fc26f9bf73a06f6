"""Runs everything on this machine (`perseid up`), or one process of a role.

The roles are `worker`, `embed`, `api`, `indexer`, `attribution`, `console` and `traffic`, configured by PERSEID_*
variables.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from deploy.commands.options import HeadedOption, SectionedCommand, checked, duration_ms, state_option
from deploy.state_folder import attach


@click.command(cls=SectionedCommand)
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
    "--console-port", type=click.IntRange(1, 65535), help="Port of the console.  [default: 8600, or a free one]"
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".perseid"),
    show_default=True,
    help="Folder for caches, logs and the live state.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of workers.")
@click.option(
    "--apis", type=click.IntRange(1, 64), default=1, show_default=True, help="API processes, ports ascending."
)
@click.option(
    "--seed",
    cls=HeadedOption,
    heading="The generated shop",
    type=int,
    default=0,
    show_default=True,
    help="Another seed is another shop.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Artefact of a model that is there, as of `perseid train`.  [default: one is trained]",
)
@click.option(
    "--days",
    cls=HeadedOption,
    heading="The generated shop",
    type=click.IntRange(1, 1000),
    default=60,
    show_default=True,
    help="Length of its history. A shorter one is there sooner, and its model knows less.",
)
@click.option(
    "--fashion",
    cls=HeadedOption,
    heading="The generated shop",
    type=click.FloatRange(min=0),
    default=0.0,
    help="How much brands in fashion draw everybody, 2 more than a favourite brand. They come and go, so its last "
    "fifth is played as that of a data folder, and a retrained model knows better.",
)
@click.option(
    "--retrain-every",
    cls=HeadedOption,
    heading="Retraining",
    callback=checked(duration_ms),
    metavar="TIME",
    help="Run `perseid retrain` each time so long has passed (s, m, h or d, as 6h), and stage what is good enough.",
)
@click.option(
    "--retrain-promote",
    cls=HeadedOption,
    heading="Retraining",
    is_flag=True,
    help="With --retrain-every: also serve it, as `perseid retrain --promote` does.",
)
@click.option(
    "--retrain-threads",
    cls=HeadedOption,
    heading="Retraining",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="CPU threads of a retraining.",
)
def up(
    data: Path | None,
    speed: float | None,
    no_traffic: bool,
    api_port: int | None,
    console_port: int | None,
    state: Path,
    workers: int,
    apis: int,
    model: Path | None,
    seed: int,
    days: int,
    fashion: float,
    retrain_every: int | None,
    retrain_promote: bool,
    retrain_threads: int,
) -> int:
    """Run everything on this machine: broker, Redis, worker, embed, API, console and traffic. Ctrl-C stops it.

    The console is a web page that shows what goes on; its address comes first.

    Servers that PERSEID_KAFKA, PERSEID_REDIS or PERSEID_ELASTICSEARCH name are used instead of embedded ones; `perseid
    stack up` starts real ones. Topics that are missing there are created.

    The first start generates a shop, embeds its texts and trains a small model (about two minutes); later starts take
    what is in the state folder.

    With --retrain-every the model is retrained beside the shop from what the topics hold, for the first time when so
    long has passed: one run at a time, by one thread that leaves the processor to everybody else. A run that fails ends
    nothing; the status line says what came of the last one and when the next is due.

    Example: perseid up --data ml_latest_small --speed 100000

    Example: perseid up --retrain-every 6h --retrain-promote
    """
    from deploy.local.retraining import RetrainSchedule
    from deploy.local.status_line import StatusLine
    from deploy.local.up import HISTORY_DAYS, UpOptions
    from deploy.local.up import up as run_up

    if retrain_promote and retrain_every is None:
        raise click.UsageError("--retrain-promote needs --retrain-every, as in --retrain-every 6h")
    schedule = None if retrain_every is None else RetrainSchedule(retrain_every, retrain_promote, retrain_threads)
    if (fashion or days != HISTORY_DAYS) and data is not None:
        raise click.UsageError("--days and --fashion are of the generated shop: leave out --data")
    line = StatusLine()
    options = UpOptions(
        state, data, speed, not no_traffic, api_port, seed, workers, apis, schedule, fashion, days, console_port, model
    )
    try:
        run_up(options, os.environ, line)
    except KeyboardInterrupt:
        line.end()
        line.say("Stopped.")
    finally:
        line.end()
    return 0


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


@click.command()
@state_option
def attribution(state: Path | None) -> None:
    """Join clicks and purchases to the lists they came from, for `/v1/results`. Start as many as there is load.

    Example: PERSEID_KAFKA=kafka:9092 perseid attribution
    """
    from deploy.roles.attribution import run_attribution

    run_attribution(attach(os.environ, state))


@click.command()
@click.option("--port", "console_port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option("--host", "console_host", help="Address to listen on; the default is reachable from this machine only.")
@state_option
def console(console_port: int | None, console_host: str | None, state: Path | None) -> None:
    """Run the console: web pages that show a deployment at work, and change it with an API key of scope admin.

    Example: PERSEID_REDIS=redis://redis:6379/0 PERSEID_CONSOLE_API=http://api:8000 perseid console
    """
    from deploy.console.server import run_console

    run_console(attach(os.environ, state, console_port=console_port, console_host=console_host))


@click.command(hidden=True)
@click.argument("plan", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@state_option
def traffic(plan: Path, state: Path | None) -> None:
    """Send what PLAN says; `perseid up` starts this.

    Example: perseid traffic --state .perseid .perseid/traffic.json
    """
    from deploy.roles.traffic import run_traffic

    run_traffic(attach(os.environ, state), plan)
