"""`perseid replay` sends history through the pipeline again, beside the live one, and measures its answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import click
import orjson

from context.counting import counted
from deploy.commands.options import (
    FOLDER,
    Output,
    Questions,
    RankerArtefacts,
    SectionedCommand,
    Texts,
    option,
    options,
    state_option,
)
from deploy.commands.replay_arguments import TimeParam, parse_offsets
from deploy.disk_space import room_in
from deploy.progress import show_progress
from deploy.reports.run_facts import started
from deploy.settings import Settings, load
from deploy.state_folder import attach

if TYPE_CHECKING:
    from deploy.jobs.replay_checkpoint import ReplayPlan
    from index.state.store import LiveStore
    from streams.replay.report import ReplayReport


@dataclass(frozen=True, slots=True)
class ReplayedPart:
    """Which records are replayed, and from when on questions are asked."""

    heading: ClassVar = "Records"
    split: float = option(
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=False,
        help="Of a FOLDER: ask only after this share.",
    )
    start_ms: int | None = option(
        "--from", type=TimeParam(), help="Of topics: clicks from this time on (ISO 8601 or epoch ms)."
    )
    stop_ms: int | None = option("--to", type=TimeParam(), help="End before records of this time.")
    offsets: tuple[str, ...] = option(
        multiple=True,
        metavar="topic[partition]:start-end",
        help="Of topics: this piece of a partition, or a file of them.",
    )
    ask_ms: int | None = option(
        "--ask-from", type=TimeParam(), help="Of topics: apply earlier clicks without a question."
    )


@dataclass(frozen=True, slots=True)
class ModelQuestions(Questions):
    """What a model is asked."""

    model: Path | None = option(
        type=FOLDER, help="Artefact to ask questions of.  [default: PERSEID_MODEL, if it is there]"
    )


@dataclass(frozen=True, slots=True)
class RebuiltState:
    """Where the rebuilt state is held and kept."""

    heading: ClassVar = "State"
    checkpoint: Path | None = option(
        type=click.Path(path_type=Path, file_okay=False), help="Folder to resume from and keep in."
    )
    part: int = option(type=click.IntRange(min=1), default=100_000, help="Records between checkpoints.")
    prefix: str | None = option(help="Rebuild in Redis below this unused key prefix instead of in memory.")
    state_only: bool = option(is_flag=True, help="Ask nothing and encode nothing: only the digest, much faster.")
    compare: bool = option(is_flag=True, help="Of topics: compare with the live state; exit with 1 where it differs.")


@click.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER, required=False)
@options(
    span=ReplayedPart, asked=ModelQuestions, second=RankerArtefacts, rebuilt=RebuiltState, texts=Texts, output=Output
)
@state_option
def replay(
    folder: Path | None,
    span: ReplayedPart,
    asked: ModelQuestions,
    second: RankerArtefacts,
    rebuilt: RebuiltState,
    texts: Texts,
    output: Output,
    state: Path | None,
) -> int:
    """Send history through the pipeline again, beside the live one: a data FOLDER, or the topics of Kafka without it.

    Rebuilds the live state elsewhere, asks for recommendations before each event is applied, and prints the metrics
    next to recent popularity, and a digest that equals the live one when the log is complete. Belongs to no consumer
    group and writes no live key. With --checkpoint a run that was ended goes on when it is started again.

    Example: perseid replay --from 2026-01-31 --to 2026-02-01T12:00 --checkpoint january
    """
    from deploy.jobs.replay_checkpoint import ReplayPlan

    _refuse_what_does_not_fit(folder, span, rebuilt.compare)
    if second.rankers and rebuilt.state_only:
        raise click.UsageError("--ranker is about answers; --state-only asks nothing")
    if output.report is not None and rebuilt.state_only:
        raise click.UsageError("--report is about answers; --state-only asks nothing")
    facts, settings = started(), attach(os.environ, state)
    model = asked.model
    if rebuilt.state_only:
        model = None
    elif model is None and (settings.model / "model.json").is_file():
        model = settings.model
    kept = [rebuilt.checkpoint] if rebuilt.checkpoint else []
    with room_in(*kept), show_progress("records") as show, new_store(settings, rebuilt.prefix) as store:
        ask = asked.settings(span.ask_ms)
        plan = ReplayPlan(model, ask, store, show, rebuilt.checkpoint, rebuilt.part, second.rankers)
        report = _topics(plan, settings, span) if folder is None else _folder(folder, plan, settings, texts, span)
    if output.report is not None and report.error is None:
        from deploy.reports.report import write_report

        about = {"data": report.source, "model": report.model, "left_out": report.left_out.to_dict()}
        answers = {**about, **(report.answers or {})}
        write_report(output.report, "replay", answers, facts)
    click.echo(orjson.dumps(report.to_dict()).decode() if output.as_json else report.table())
    different = _compare(report, settings) if rebuilt.compare else 0
    if report.error is not None:
        raise ValueError(report.error)
    return different


def _refuse_what_does_not_fit(folder: Path | None, span: ReplayedPart, compare: bool) -> None:
    if folder is None and span.split:
        raise click.UsageError("--split is for a FOLDER; topics have --ask-from")
    if folder is not None and (span.start_ms is not None or span.ask_ms is not None or span.offsets or compare):
        raise click.UsageError("--from, --ask-from, --offsets and --compare are for topics; a FOLDER has --split")


def _folder(folder: Path, plan: ReplayPlan, settings: Settings, texts: Texts, span: ReplayedPart) -> ReplayReport:
    from deploy.jobs.replay import replay_folder
    from encoder.text.cache import TextMemory

    with closing(TextMemory(texts.texts or settings.state / "texts")) as memory:
        return replay_folder(folder, plan, settings, memory, span.split, span.stop_ms)


def _topics(plan: ReplayPlan, settings: Settings, span: ReplayedPart) -> ReplayReport:
    from deploy.jobs.replay import replay_topics

    return replay_topics(
        plan,
        settings,
        start_ms=span.start_ms,
        stop_ms=span.stop_ms,
        spans=parse_offsets(span.offsets),
        resumed=lambda done: click.echo(f"going on behind {counted(done, 'record')}", err=True),
    )


def _compare(report: ReplayReport, settings: Settings) -> int:
    from deploy.jobs.replay import compare_with_live, differences
    from streams.kafka.log_identity import is_embedded

    different = compare_with_live(report, settings)
    if not different:
        click.echo("the live state is equal", err=True)
        return 0
    for line in differences(different, is_embedded(report.logs)):
        click.echo(line, err=True)
    return 1


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
