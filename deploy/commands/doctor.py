"""`perseid doctor`: prints what `deploy.doctor.doctor.doctor` finds and exits with 1 when something is wrong."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click
import orjson

from deploy.commands.options import state_option
from deploy.state_folder import attach


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
    return 1 if any(finding.state == "wrong" for finding in findings) else 0
