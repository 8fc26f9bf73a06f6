"""`perseid staleness` and `compare`: what delay costs, and what another model would have answered."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

from deploy.progress import records_bar
from deploy.reports.run_facts import RunFacts, started
from deploy.state_folder import attach

if TYPE_CHECKING:
    from deploy.settings import Settings
    from encoder.text.cache import TextMemory

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SPLIT = click.option(
    "--split",
    type=click.FloatRange(0, 1, max_open=True),
    help="Ask after this share of the events.  [default: after what the model was trained on]",
)
_EVERY = click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Ask at each n-th event."
)
_PLAIN = click.option("--plain", is_flag=True, help="Rank by vectors alone: no popularity, whatever the models say.")
_REPEATS = click.option("--repeats", is_flag=True, help="Also ask about items that the user has seen.")
_TEXTS = click.option("--texts", type=_FILE, help="File that remembers text vectors between runs.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of tables.")
_REPORT = click.option("--report", type=_FILE, help="Also write a page with tables and plots, complete in one file.")


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--model", type=_FOLDER, help="Artefact to ask questions of.  [default: PERSEID_MODEL]")
@click.option(
    "--delays",
    default="0,1s,10s,1m,10m,1h,1d,daily",
    show_default=True,
    help="How late: numbers with ms, s, m, h or d; daily is what a batch at the last midnight (UTC) knew.",
)
@click.option(
    "--of",
    "late",
    default="user,vectors,context,popularity,all",
    show_default=True,
    help="What is late. user-vectors is user, but seen items are still left out of the lists at once.",
)
@_SPLIT
@_EVERY
@_REPEATS
@_PLAIN
@_TEXTS
@_JSON
@_REPORT
def staleness(
    folder: Path,
    model: Path | None,
    delays: str,
    late: str,
    split: float | None,
    every: int,
    repeats: bool,
    plain: bool,
    texts: Path | None,
    as_json: bool,
    report: Path | None,
) -> None:
    """Measure what delay costs: the same held-out stream, answered with parts of the state known late.

    Each question is answered once for every part and delay, in one pass; the differences from no delay are paired, with
    intervals over users. The model itself is never late.

    Example: perseid staleness ml_latest_small --model models/m-1234abcd --of user,popularity --report staleness.html
    """
    from deploy.jobs.staleness import measure_staleness
    from streams.evaluation.held_out import QuestionSettings
    from streams.evaluation.staleness.delays import arms, parse_delay
    from streams.evaluation.tables import curves_table

    facts = started()
    parts = tuple(name.strip() for name in late.split(","))
    chosen = [parse_delay(text.strip()) for text in delays.split(",")]
    arms(parts, chosen)  # type: ignore[arg-type]  # refuses unknown names before anything is read
    ask = QuestionSettings(every=every, repeats=repeats, plain=plain)
    with _session(texts) as (settings, memory, progress):
        found = measure_staleness(
            folder,
            model or settings.model,
            settings,
            memory,
            split,
            ask,
            parts,  # type: ignore[arg-type]
            chosen,
            progress,
        )
    table = curves_table(found)
    title = f"model {found['model']} on {found['data']}: {found['questions']} questions of {found['users']} users"
    _tell(facts, "staleness", found, f"{title}\n\n{table}", as_json, report)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--model", "models", type=_FOLDER, multiple=True, required=True, help="Artefact; give two: A, then B.")
@_SPLIT
@_EVERY
@_REPEATS
@_PLAIN
@_TEXTS
@_JSON
@_REPORT
def compare(
    folder: Path,
    models: tuple[Path, ...],
    split: float | None,
    every: int,
    repeats: bool,
    plain: bool,
    texts: Path | None,
    as_json: bool,
    report: Path | None,
) -> None:
    """Answer the same traffic with two models, side by side: intervals, paired tests, differences by slice.

    Example: perseid compare ml_latest_small --model models/m-1234abcd --model models/m-5678cdef --report what-if.html
    """
    from deploy.jobs.staleness import compare_models
    from streams.evaluation.held_out import QuestionSettings
    from streams.evaluation.tables import table

    if len(models) != 2:
        raise click.UsageError(f"--model is given {len(models)} times; a comparison is between two")
    facts = started()
    ask = QuestionSettings(every=every, repeats=repeats, plain=plain)
    with _session(texts) as (settings, memory, progress):
        found = compare_models(folder, dict(zip("AB", models, strict=True)), settings, memory, split, ask, progress)
    named = ", ".join(f"{name} = {version}" for name, version in found["models"].items())
    title = f"{named} on {found['data']}: {found['questions']} questions of {found['users']} users"
    shown = table(found) if found["questions"] else "nothing to ask about after the split"
    _tell(facts, "compare", found, f"{title}\n\n{shown}", as_json, report)


@contextmanager
def _session(texts: Path | None) -> Iterator[tuple[Settings, TextMemory, Callable[[int], None] | None]]:
    """Settings, the memory of texts, and a progress bar where there is a terminal."""
    from encoder.text.cache import TextMemory

    settings = attach(os.environ)
    memory = TextMemory(texts or settings.state / "texts")
    try:
        with records_bar("events") as show:
            yield settings, memory, None if show is None else lambda done: show(done, None)
    finally:
        memory.close()


def _tell(facts: RunFacts, kind: str, found: dict[str, object], text: str, as_json: bool, report: Path | None) -> None:
    if report is not None:
        from deploy.reports.report import write_report

        write_report(report, kind, found, facts)
    click.echo(orjson.dumps(found).decode() if as_json else text)
