"""Runs real servers on this machine (`perseid stack`), and examines what a deployment depends on (`perseid doctor`)."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click
import orjson

from deploy.commands.options import DescribedGroup, state_option
from deploy.state_folder import attach, running_near

folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".perseid/stack"),
    show_default=True,
    help="Data, configuration and logs of all servers.",
)


@click.group(cls=DescribedGroup)
def stack() -> None:
    """Run real Kafka, Redis and Elasticsearch on this machine, on 127.0.0.1.

    By Docker Compose when a Docker daemon answers; else without Docker, which needs Java 17 or newer (21 for
    Elasticsearch 9), Maven and redis-server.

    Example: perseid stack up && eval "$(perseid stack env)" && perseid up
    """


@stack.command()
@folder_option
@click.option("--kafka-port", type=click.IntRange(1, 65535), default=9092, show_default=True)
@click.option("--redis-port", type=click.IntRange(1, 65535), default=6379, show_default=True)
@click.option("--elasticsearch-port", type=click.IntRange(1, 65535), default=9200, show_default=True)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(("kafka", "redis", "elasticsearch")),
    help="Leave a server out; may be repeated.",
)
@click.option("--docker/--no-docker", default=None, help="Use Docker Compose or not.  [default: when a daemon answers]")
def up(
    folder: Path,
    kafka_port: int,
    redis_port: int,
    elasticsearch_port: int,
    without: tuple[str, ...],
    docker: bool | None,
) -> int:
    """Start the servers and print the settings to use. May be repeated.

    Example: perseid stack up --without elasticsearch
    """
    from deploy.stack import stack as servers

    asked = {"kafka": kafka_port, "redis": redis_port, "elasticsearch": elasticsearch_port}
    ports = {name: port for name, port in asked.items() if name not in without}
    found = servers.up(servers.StackOptions(folder, ports, frozenset(without), docker), os.environ, _say)
    _print_environment(servers.environment(found))
    return 0


@stack.command()
@folder_option
@click.option("--delete-data", is_flag=True, help="Delete the folder with everything in it.")
def down(folder: Path, delete_data: bool) -> int:
    """Stop the servers; their data stay.

    Example: perseid stack down --delete-data
    """
    from deploy.stack import stack as servers

    servers.down(folder, os.environ, _say, delete_data=delete_data)
    return 0


@stack.command()
@folder_option
def status(folder: Path) -> int:
    """Say for each server its address, version, process and health; fail when one is ill or none runs.

    Example: perseid stack status
    """
    from deploy.stack import stack as servers

    found = servers.services(folder, os.environ)
    if not found:
        click.echo(f"no stack runs in {folder}; `perseid stack up` starts one")
        return 1
    states = [servers.health(service) for service in found]
    for service, state in zip(found, states, strict=True):
        process = f"process {service.pid}" if service.pid else "in Docker"
        click.echo(f"{service.name:<14}{service.version:<9} {service.address:<30} {process:<15} {state}")
    return int(any(state != "ok" for state in states))


@stack.command()
@folder_option
def env(folder: Path) -> int:
    """Print the PERSEID_* lines of the running stack, with passwords, for a shell.

    Example: eval "$(perseid stack env)"
    """
    from deploy.stack import stack as servers

    found = servers.services(folder, os.environ)
    if not found:
        raise ValueError(f"no stack runs in {folder}; `perseid stack up` starts one")
    _print_environment(servers.environment(found))
    return 0


@stack.command()
def topics() -> int:
    """Create the topics that the cluster of PERSEID_KAFKA lacks, with the partition counts of the settings.

    Example: PERSEID_KAFKA=kafka:9092 perseid stack topics
    """
    from deploy.servers.topics import create_topics
    from deploy.settings import load

    settings = load(os.environ)
    created = create_topics(settings.kafka_config(), settings.partitions)
    click.echo(f"created {', '.join(created)}" if created else "all topics are there")
    return 0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of lines.")
@state_option
def doctor(as_json: bool, state: Path | None) -> int:
    """Check Python, packages, Kafka, Redis, Elasticsearch, models, endpoints, folder and port; say what to do.

    Example: perseid doctor --state .perseid
    """
    from deploy.doctor.doctor import examine

    findings = examine(attach(os.environ, state))
    if as_json:
        click.echo(orjson.dumps([asdict(finding) for finding in findings]).decode())
    else:
        for finding in findings:
            click.echo(str(finding))
        if state is None and (near := running_near(os.environ)) is not None:
            click.echo(f"a `perseid up` runs with {near}: `perseid doctor --state {near}` looks at that one")
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def _print_environment(variables: dict[str, str]) -> None:
    for name, value in variables.items():
        click.echo(f"export {name}='{value}'")


def _say(text: str) -> None:
    click.echo(text, err=True)
