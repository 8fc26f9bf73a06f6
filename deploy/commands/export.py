"""`perseid export`: the topics of Kafka as a data folder, for training.

Only options, progress and output are here; the work is in `deploy.jobs.export`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import orjson

from deploy.commands.replay_arguments import TimeParam, parse_offsets
from deploy.progress import records_bar
from deploy.state_folder import attach, state_option


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--from", "start_ms", type=TimeParam(), help="Clicks and exposures from this time on (ISO 8601 or ms).")
@click.option("--to", "stop_ms", type=TimeParam(), help="End before records of this time.")
@click.option(
    "--offsets",
    multiple=True,
    metavar="topic[partition]:start-end",
    help="This piece of a partition, or a file of them.",
)
@click.option(
    "--vectors", metavar="EMBEDDER", help="Also the item vectors of this embedder, to replay the model that is live."
)
@state_option
def export(
    out: Path,
    start_ms: int | None,
    stop_ms: int | None,
    offsets: tuple[str, ...],
    vectors: str | None,
    state: Path | None,
) -> None:
    """Write the topics of Kafka as the data folder OUT, which train, evaluate, replay and up read.

    Each event once and by its own time; the newest catalogue; contexts and profiles as they changed; what the API has
    shown, with what was clicked. Users who asked to be forgotten are, also where they asked after --to. Records that
    the worker would refuse are left out and counted. Times are those of Kafka's records, as for replay. Belongs to no
    consumer group. The last output line is a JSON summary, which stands in OUT/export.json too.

    Example: perseid export data/november --from 2026-11-01 --to 2026-12-01
    """
    from deploy.jobs.export import ExportPlan, export_topics

    plan = ExportPlan(start_ms, stop_ms, parse_offsets(offsets), vectors, records_bar)
    done = export_topics(out, plan, attach(os.environ, state))
    for line in _worth_knowing(done):
        click.echo(line, err=True)
    click.echo(orjson.dumps(done).decode())


def _worth_knowing(done: Mapping[str, Any]) -> Iterator[str]:
    """What the folder does not hold."""
    for reason, count in done["malformed"].items():
        yield f"left out: {count} x {reason}"
    if done["log_starts"]:
        starts = ", ".join(f"{name} from {first}" for name, first in sorted(done["log_starts"].items()))
        yield f"the log no longer covers everything: {starts}"
    if done["lost_to_retention"]:
        lost = ", ".join(f"{count} of {name}" for name, count in sorted(done["lost_to_retention"].items()))
        yield f"left Kafka by retention before they were read: {lost}"
    if "exposures" not in done["logs"]:
        yield "there is no topic exposures: the folder does not say what was shown"
