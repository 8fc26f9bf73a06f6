"""Sends data from files into Kafka, and writes topics as a data folder (`perseid produce`, `export`).

Assumes settings in the environment, or of a running `perseid up` by its state folder.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click
import orjson

from context.counting import counted
from deploy.commands.options import state_option
from deploy.commands.replay_arguments import TimeParam, parse_offsets
from deploy.progress import show_progress
from deploy.settings import PREFIX
from deploy.state_folder import attach, running_near

if TYPE_CHECKING:  # `produce` loads it with what it needs
    from deploy.jobs.produce import Produced

_IN_FILE_ONLY = ("offsets", "logs")  # long: a line for each of a hundred partitions
_SHOWN_REJECTS = 20  # a file of the wrong kind would otherwise print every line


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--topic", help="Topic of lines that do not name one.")
@click.option(
    "--stamp", is_flag=True, help="Fill a missing ts_ms with now and a missing event_id with one made of the line."
)
@click.option(
    "--refused",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the lines that were refused to FILE, to be corrected and sent.",
)
@click.option("--each", is_flag=True, help="Print partition and offset of every record, not only the summary.")
@state_option
def produce(
    file: BinaryIO, topic: str | None, stamp: bool, refused: Path | None, each: bool, state: Path | None
) -> int:
    """Send events from FILE (JSON lines; - reads standard input) to Kafka.

    Gzip, zip, byte order marks and other encodings than UTF-8 are recognised.

    A line is a record with its topic: {"topic": "clickstream", "event_id": "e1", "user_id": "u1", "item_id": "i1",
    "kind": "view", "ts_ms": 1700000000000}. {"topic": "catalog", "key": "i1", "value": null} withdraws an item. Each is
    checked first, and every wrong field is named; the last output line is a JSON summary. Exits with 1 when a line was
    refused.

    An id of --stamp is a hash of the line and its number among equal lines of the file: when a corrected file is sent
    again, what was sent before counts once. Equal lines that two runs send are one event, too: give them an event_id
    where two are meant.

    Example: perseid produce --topic clickstream --stamp clicks.jsonl
    """
    from deploy.jobs.produce import produce as send_lines
    from deploy.jobs.produce import timeline_clock
    from deploy.runtime.producer import DeliveryError, EventProducer
    from streams.folder.files import open_utf8

    if refused is not None and refused.exists() and os.path.samestat(refused.stat(), os.fstat(file.fileno())):
        raise ValueError(f"--refused {refused} is the file that is read; name another one")
    settings = attach(os.environ, state)
    knows_redis = state is not None or f"{PREFIX}REDIS" in os.environ
    clock = {"clock_ms": timeline_clock(settings)} if knows_redis else {}
    producer = EventProducer(settings.kafka_config())
    size = os.fstat(file.fileno()).st_size if file is not sys.stdin.buffer else 0
    bar = click.progressbar(
        length=size or 1, label="producing", file=sys.stderr, hidden=not (size and sys.stderr.isatty())
    )
    try:
        with bar, open_utf8(file) as lines, refused.open("wb") if refused else nullcontext() as out:
            result = asyncio.run(
                send_lines(
                    lines,
                    producer,
                    settings.rules(),
                    topic=topic,
                    stamp=stamp,
                    **clock,
                    on_each=_show if each else None,
                    refused=out,
                    on_progress=lambda _: bar.update(max(0, file.tell() - bar.pos)) if size else None,
                )
            )
    except DeliveryError as error:
        near = running_near(os.environ) if state is None else None
        remedy = f"add --state {near}, where a `perseid up` runs" if near else "start Kafka, or set PERSEID_KAFKA to it"
        raise ConnectionError(f"{error}; {remedy}") from error
    finally:
        producer.close()
    _tell(result, refused)
    return 1 if result.rejected else 0


def _show(number: int, name: str, acknowledged: tuple[int, int]) -> None:
    partition, offset = acknowledged
    click.echo(orjson.dumps({"line": number, "topic": name, "partition": partition, "offset": offset}).decode())


def _tell(result: Produced, refused: Path | None) -> None:
    """Which lines were refused and why, then the summary."""
    for rejected in result.rejected[:_SHOWN_REJECTS]:
        click.echo(rejected, err=True)
    if len(result.rejected) > _SHOWN_REJECTS:
        more = counted(len(result.rejected) - _SHOWN_REJECTS, "more line was", "more lines were")
        click.echo(f"… and {more} refused{'' if refused else '; --refused FILE writes them all'}", err=True)
    click.echo(orjson.dumps(result.summary(), option=orjson.OPT_NON_STR_KEYS).decode())


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
    consumer group. Prints what is in the folder as JSON; OUT/export.json also has the logs and the offsets.

    Example: perseid export data/november --from 2026-11-01 --to 2026-12-01
    """
    from deploy.jobs.export import ExportPlan, export_topics, worth_knowing

    plan = ExportPlan(start_ms, stop_ms, parse_offsets(offsets), vectors, show_progress)
    done = export_topics(out, plan, attach(os.environ, state))
    for line in worth_knowing(done):
        click.echo(line, err=True)
    shown = {name: found for name, found in done.items() if name not in _IN_FILE_ONLY}
    click.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode())
