"""`perseid train`, `evaluate` and `replay`: a model from a data folder, and how good it is on what came later."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from deploy.attach import attach, state_option
from deploy.settings import Settings, load

if TYPE_CHECKING:
    from index.store import LiveStore

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--out", type=click.Path(path_type=Path), default=Path(".perseid/models"), show_default=True)
@click.option(
    "--split",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the events, by time, to train on; the rest stays unseen for `evaluate` and `replay`.",
)
@click.option(
    "--preset",
    "preset_name",
    type=click.Choice(["nano", "small", "base", "paper"]),
    default="nano",
    show_default=True,
    help="Size of the encoder.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--max-seconds", type=click.FloatRange(min=1), help="Bound of the whole training run.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--resume", is_flag=True, help="Continue from the checkpoint in --out.")
@click.option("--texts", type=click.Path(path_type=Path), help="File that remembers text vectors between runs.")
@click.option("--quiet", is_flag=True, help="Print one short line instead of the JSON result.")
def train(
    folder: Path,
    out: Path,
    split: float,
    preset_name: str,
    epochs: int,
    max_seconds: float | None,
    seed: int,
    threads: int | None,
    device: str,
    resume: bool,
    texts: Path | None,
    quiet: bool,
) -> None:
    """Train a model on a data FOLDER; the artefact is OUT/<version>.

    Example: perseid train ml_latest_small --split 0.8 --out models --max-seconds 120
    """
    from deploy.train import TrainPlan, train_folder
    from encoder.text_memory import TextMemory
    from encoder.training import TrainOptions

    cores = os.cpu_count() or 1
    options = TrainOptions(seed=seed, epochs=epochs, max_seconds=max_seconds, threads=threads or cores, device=device)
    plan = TrainPlan(folder, out, split, preset_name, options, resume, progress=sys.stderr.isatty())
    memory = TextMemory(texts)
    try:
        result = train_folder(plan, attach(os.environ).rules(), memory)
    finally:
        memory.close()
    if quiet:
        quality = ", ".join(f"{name} {value:.3g}" for name, value in result.metrics.items())
        click.echo(f"Model {result.version} after {result.seconds:.0f} s: {quality}")
        return
    shown = {"model": str(result.folder), "version": result.version, "seconds": round(result.seconds, 1)}
    click.echo(orjson.dumps({**shown, "metrics": result.metrics}).decode())


@click.command()
@click.argument("folder", type=_FOLDER, required=False)
@click.option("--model", type=_FOLDER, help="Artefact to ask questions of.  [default: PERSEID_MODEL, if it is there]")
@click.option("--split", type=click.FloatRange(0, 1), default=0.0, help="Of a FOLDER: ask only after this share.")
@click.option("--from-ms", "start_ms", type=int, help="Of topics: begin with records of this time (epoch ms).")
@click.option("--until-ms", "stop_ms", type=int, help="End before records of this time (epoch ms).")
@click.option("--from-offset", "offsets", multiple=True, metavar="TOPIC:PARTITION=N", help="Of topics: begin there.")
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Ask at each n-th event.")
@click.option("--repeats", is_flag=True, help="Also ask about items that the user has seen.")
@click.option("--prefix", help="Rebuild in Redis below this unused key prefix instead of in memory.")
@click.option("--texts", type=click.Path(path_type=Path), help="File that remembers text vectors between runs.")
@click.option("--state-only", is_flag=True, help="Ask nothing and encode nothing: only the digest, much faster.")
@click.option("--compare", is_flag=True, help="Of topics: compare with the live state; exit with 1 where it differs.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@state_option
def replay(
    folder: Path | None,
    model: Path | None,
    split: float,
    start_ms: int | None,
    stop_ms: int | None,
    offsets: tuple[str, ...],
    every: int,
    repeats: bool,
    prefix: str | None,
    texts: Path | None,
    state_only: bool,
    compare: bool,
    as_json: bool,
    state: Path | None,
) -> int:
    """Send history through the pipeline again, beside the live one: a data FOLDER, or the topics of Kafka without it.

    Rebuilds the live state elsewhere, asks for recommendations before each event is applied, and prints the metrics
    next to recent popularity, and a digest that equals the live one when the log is complete.

    Example: perseid replay ml_latest_small --model models/m-1234abcd --split 0.8
    """
    from deploy.replays import ReplayPlan, compare_with_live, replay_folder, replay_topics
    from encoder.text_memory import TextMemory
    from streams.questions import AskSettings

    settings = attach(os.environ, state)
    if state_only:
        model = None
    elif model is None and (settings.model / "model.json").is_file():
        model = settings.model
    if compare and folder is not None:
        raise click.UsageError("--compare is for topics; a FOLDER has no live state")
    with records_bar("records") as show, new_store(settings, prefix) as store:
        counted = count(1)
        progress = None if show is None else lambda _: show(next(counted))
        plan = ReplayPlan(model, AskSettings(every=every, repeats=repeats), store, progress)
        if folder is not None:
            if start_ms is not None or offsets:
                raise click.UsageError("--from-ms and --from-offset are for topics; a FOLDER has --split")
            memory = TextMemory(texts or settings.state / "texts")
            report = replay_folder(folder, plan, settings, memory, split, stop_ms)
            memory.close()
        else:
            starts = dict(map(parse_offset, offsets)) or None
            report = replay_topics(plan, settings, start_ms=start_ms, stop_ms=stop_ms, starts=starts)
    click.echo(orjson.dumps(report.to_dict()).decode() if as_json else report.table())
    if not compare:
        return 0
    different = compare_with_live(report, settings)
    where = f"differs in {', '.join(different)}" if different else "is equal"
    click.echo(f"the live state {where}", err=True)
    return 1 if different else 0


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--model", type=_FOLDER, help="Artefact to evaluate.  [default: PERSEID_MODEL]")
@click.option(
    "--split",
    type=click.FloatRange(0, 1, max_open=True),
    help="Ask after this share of the events.  [default: after what the model was trained on]",
)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Ask at each n-th event.")
@click.option("--repeats", is_flag=True, help="Also ask about items that the user has seen.")
@click.option("--texts", type=click.Path(path_type=Path), help="File that remembers text vectors between runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
def evaluate(
    folder: Path, model: Path | None, split: float | None, every: int, repeats: bool, texts: Path | None, as_json: bool
) -> None:
    """Measure a model on the later part of a data FOLDER, offline: each choice is predicted from all before it.

    Prints HR, NDCG, MRR and coverage next to recent popularity. `replay` asks the same through the serving path.

    Example: perseid evaluate ml_latest_small --model models/m-1234abcd
    """
    from deploy.evaluation import evaluate_folder
    from encoder.text_memory import TextMemory
    from streams.comparison import table
    from streams.questions import AskSettings

    settings = attach(os.environ)
    memory = TextMemory(texts or settings.state / "texts")
    ask = AskSettings(every=every, repeats=repeats)
    with records_bar("events") as progress:
        found = evaluate_folder(folder, model or settings.model, settings, memory, split, ask, progress)
    memory.close()
    if as_json:
        click.echo(orjson.dumps(found).decode())
        return
    click.echo(f"model {found['model']} on {found['data']}: {found['questions']} questions\n")
    click.echo(table(found) if found["questions"] else "nothing to ask about after the split")


def parse_offset(text: str) -> tuple[tuple[str, int], int]:
    """((topic, partition), offset) from `topic:partition=offset`. Raises click.UsageError for anything else."""
    where, _, offset = text.partition("=")
    topic, _, partition = where.rpartition(":")
    if not topic or not partition.isdigit() or not offset.isdigit():
        raise click.UsageError(f"--from-offset {text!r} is not TOPIC:PARTITION=N, for example clickstream:3=1200")
    return (topic, int(partition)), int(offset)


@contextmanager
def new_store(settings: Settings, prefix: str | None) -> Iterator[LiveStore | None]:
    """A live state in Redis below a prefix that nobody uses; None (memory) without a prefix."""
    if prefix is None:
        yield None
        return
    from deploy.running import ask_redis, open_store
    from index.redis_nodes import Command
    from index.store import StoreUnavailableError

    mine = load(settings.environment(), prefix=prefix)
    key = mine.keys().cluster()
    try:
        (taken,) = ask_redis(mine, [Command(key, ("EXISTS", key))])
    except StoreUnavailableError as error:
        raise ValueError(f"Redis does not answer: {error}; set PERSEID_REDIS, or leave --prefix out") from error
    if taken:
        raise ValueError(f"there is a live state below the prefix {prefix!r} already; choose one that nobody uses")
    yield open_store(mine)


@contextmanager
def records_bar(unit: str) -> Iterator[Callable[[int], None] | None]:
    """Shows how many are done on a terminal; None without one."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn(f"{{task.completed:.0f}} {unit}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done: bar.update(task, completed=done)
