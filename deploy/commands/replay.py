"""`perseid replay`: history through the pipeline again, beside the live one, and how good its answers are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from deploy.commands.replay_arguments import TimeParam, parse_offsets
from deploy.progress import records_bar
from deploy.reports.run_facts import started
from deploy.settings import Settings, load
from deploy.state_folder import attach, state_option

if TYPE_CHECKING:
    from deploy.jobs.replay_checkpoint import ReplayPlan
    from index.state.store import LiveStore
    from streams.replay.report import ReplayReport

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_OFFSETS = "topic[partition]:start-end"


@click.command()
@click.argument("folder", type=_FOLDER, required=False)
@click.option("--model", type=_FOLDER, help="Artefact to ask questions of.  [default: PERSEID_MODEL, if it is there]")
@click.option("--split", type=click.FloatRange(0, 1), default=0.0, help="Of a FOLDER: ask only after this share.")
@click.option(
    "--from", "start_ms", type=TimeParam(), help="Of topics: clicks from this time on (ISO 8601 or epoch ms)."
)
@click.option("--to", "stop_ms", type=TimeParam(), help="End before records of this time.")
@click.option(
    "--offsets", multiple=True, metavar=_OFFSETS, help="Of topics: this piece of a partition, or a file of them."
)
@click.option("--ask-from", "ask_ms", type=TimeParam(), help="Of topics: apply earlier clicks without a question.")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Ask at each n-th event.")
@click.option("--repeats", is_flag=True, help="Also ask about items that the user has seen.")
@click.option(
    "--plain", is_flag=True, help="Rank by vectors alone, as `evaluate --plain`: no popularity or promotions."
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path, file_okay=False), help="Folder to resume from and keep in."
)
@click.option(
    "--part", type=click.IntRange(min=1), default=100_000, show_default=True, help="Records between checkpoints."
)
@click.option("--prefix", help="Rebuild in Redis below this unused key prefix instead of in memory.")
@click.option("--texts", type=click.Path(path_type=Path), help="File that remembers text vectors between runs.")
@click.option("--state-only", is_flag=True, help="Ask nothing and encode nothing: only the digest, much faster.")
@click.option("--compare", is_flag=True, help="Of topics: compare with the live state; exit with 1 where it differs.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a page with tables and plots, complete in one file.",
)
@state_option
def replay(
    folder: Path | None,
    model: Path | None,
    split: float,
    start_ms: int | None,
    stop_ms: int | None,
    offsets: tuple[str, ...],
    ask_ms: int | None,
    every: int,
    repeats: bool,
    plain: bool,
    checkpoint: Path | None,
    part: int,
    prefix: str | None,
    texts: Path | None,
    state_only: bool,
    compare: bool,
    as_json: bool,
    page: Path | None,
    state: Path | None,
) -> int:
    """Send history through the pipeline again, beside the live one: a data FOLDER, or the topics of Kafka without it.

    Rebuilds the live state elsewhere, asks for recommendations before each event is applied, and prints the metrics
    next to recent popularity, and a digest that equals the live one when the log is complete. Belongs to no consumer
    group and writes no live key. With --checkpoint a run that was ended goes on when it is started again.

    Example: perseid replay --from 2026-01-31 --to 2026-02-01T12:00 --checkpoint january
    """
    from deploy.jobs.replay_checkpoint import ReplayPlan
    from streams.evaluation.held_out import QuestionSettings

    if folder is None and split:
        raise click.UsageError("--split is for a FOLDER; topics have --ask-from")
    if folder is not None and (start_ms is not None or ask_ms is not None or offsets or compare):
        raise click.UsageError("--from, --ask-from, --offsets and --compare are for topics; a FOLDER has --split")
    if page is not None and state_only:
        raise click.UsageError("--report is about answers; --state-only asks nothing")
    facts, settings = started(), attach(os.environ, state)
    if state_only:
        model = None
    elif model is None and (settings.model / "model.json").is_file():
        model = settings.model
    with records_bar("records") as show, new_store(settings, prefix) as store:
        ask = QuestionSettings(start_ms=ask_ms, every=every, repeats=repeats, plain=plain)
        plan = ReplayPlan(model, ask, store, show, checkpoint, part)
        if folder is not None:
            report = _folder(folder, plan, settings, texts, split, stop_ms)
        else:
            report = _topics(plan, settings, start_ms, stop_ms, offsets)
    if page is not None:
        from deploy.reports.report import write_report

        write_report(page, "replay", {"data": report.source, "model": report.model, **(report.answers or {})}, facts)
    click.echo(orjson.dumps(report.to_dict()).decode() if as_json else report.table())
    return _compare(report, settings) if compare else 0


def _folder(
    folder: Path, plan: ReplayPlan, settings: Settings, texts: Path | None, split: float, stop_ms: int | None
) -> ReplayReport:
    from deploy.jobs.replay import replay_folder
    from encoder.text.cache import TextMemory

    memory = TextMemory(texts or settings.state / "texts")
    try:
        return replay_folder(folder, plan, settings, memory, split, stop_ms)
    finally:
        memory.close()


def _topics(
    plan: ReplayPlan, settings: Settings, start_ms: int | None, stop_ms: int | None, offsets: tuple[str, ...]
) -> ReplayReport:
    from deploy.jobs.replay import replay_topics

    return replay_topics(
        plan,
        settings,
        start_ms=start_ms,
        stop_ms=stop_ms,
        spans=parse_offsets(offsets),
        resumed=lambda done: click.echo(f"going on behind {done:,} records", err=True),
    )


def _compare(report: ReplayReport, settings: Settings) -> int:
    from deploy.jobs.replay import compare_with_live

    different = compare_with_live(report, settings)
    where = f"differs in {', '.join(different)}" if different else "is equal"
    click.echo(f"the live state {where}", err=True)
    return 1 if different else 0


@contextmanager
def new_store(settings: Settings, prefix: str | None) -> Iterator[LiveStore | None]:
    """A live state in Redis below a prefix that nobody uses; None (memory) without a prefix."""
    if prefix is None:
        yield None
        return
    from deploy.runtime.process import ask_redis, open_store
    from index.state.redis_routing import Command
    from index.state.store import StoreUnavailableError

    mine = load(settings.environment(), prefix=prefix)
    key = mine.keys().cluster()
    try:
        (taken,) = ask_redis(mine, [Command(key, ("EXISTS", key))])
    except StoreUnavailableError as error:
        raise ValueError(f"Redis does not answer: {error}; set PERSEID_REDIS, or leave --prefix out") from error
    if taken:
        raise ValueError(f"there is a live state below the prefix {prefix!r} already; choose one that nobody uses")
    yield open_store(mine)
