"""`perseid train-ranker` makes a second stage for a model, and says whether it is better than the first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import click
import orjson

from context.counting import counted
from deploy.commands.models import change_models, ranker_text
from deploy.commands.options import FOLDER, Running, SectionedCommand, option, options
from deploy.commands.replay_arguments import TimeParam
from deploy.disk_space import room_in
from deploy.runtime.cores import thread_count
from deploy.settings import Settings
from deploy.state_folder import attach
from streams.evaluation.tables import moment


@dataclass(frozen=True, slots=True)
class Encoder:
    """What retrieves the lists."""

    heading: ClassVar = "Model"
    model: str | None = option(
        help="Artefact of a model, or its version in the registry.  [default: the model that is served]"
    )
    known_until: int | None = option(
        type=TimeParam(), help="It knows what happened before this time (ISO 8601 or ms).  [default: as it says]"
    )


@dataclass(frozen=True, slots=True)
class Lists:
    """Which lists are learned from."""

    heading: ClassVar = "Data"
    start_ms: int | None = option(
        "--from", type=TimeParam(), help="Learn from this time on.  [default: where the model's training ended]"
    )
    split: float = option(
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        help="Share of all events, by time, at which learning ends; what comes later is asked about as a test.",
    )
    most_lists: int | None = option(
        type=click.IntRange(min=50),
        help="Learn from so many lists of each kind, and judge and test by so many.  [default: 4000]",
    )
    retrieved_only: bool = option(
        is_flag=True, help="Not from lists that were shown, which teach `POST /v1/rerank` and count places."
    )
    keep: bool = option(is_flag=True, help="Keep the exported folder, PERSEID_STATE/ranker-data.")
    state: Path | None = option(
        type=click.Path(path_type=Path, file_okay=False),
        help="State folder of a running `perseid up` to talk to, instead of PERSEID_* variables.",
    )


@dataclass(frozen=True, slots=True)
class RankerRun(Running):
    """From which seed and how long it is trained."""

    seed: int = option(type=int, default=0)
    epochs: int = option(
        type=click.IntRange(min=1), default=30, help="At most so many; how many is chosen on later lists."
    )


@dataclass(frozen=True, slots=True)
class RankerOutput:
    """Where the ranker goes, and what is said of it."""

    heading: ClassVar = "Output"
    out: Path = option(type=click.Path(path_type=Path), default=Path(".perseid/rankers"))
    add: bool = option(
        is_flag=True,
        help="Also put it beside its model in the registry, and in force where that is served or staged.",
    )
    as_json: bool = option("--json", is_flag=True, help="Print one line of JSON instead of text.")


@click.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER, required=False)
@options(encoder=Encoder, lists=Lists, training=RankerRun, output=RankerOutput)
def train_ranker(folder: Path | None, encoder: Encoder, lists: Lists, training: RankerRun, output: RankerOutput) -> int:
    """Train a ranker, the second stage of a model, on a data FOLDER or on what the topics hold.

    It learns to order what the model retrieves, and lists that were shown where there are some, from what happened
    after the model's own training; the artefact is OUT/<version>. Both stages are compared on the last fifth of it,
    which a ranker made in the same way has not learned: where that is no better the ranker is written as off, and the
    first stage orders.

    Example: perseid train-ranker shop --model models/m-0a1b2c3d --add
    """
    threads = thread_count(training.threads)
    settings = attach(os.environ, lists.state, threads=threads)
    from deploy.jobs.ranking.train_ranker import MOST_LISTS, RankerPlan
    from deploy.jobs.ranking.train_ranker import train_ranker as run
    from deploy.runtime.process import stoppable
    from encoder.ranking.training import RankerSettings
    from encoder.text.cache import TextMemory

    model = model_named(encoder.model, settings)
    plan = RankerPlan(
        model=model,
        out=output.out,
        data=folder,
        known_ms=encoder.known_until,
        start_ms=lists.start_ms,
        split=lists.split,
        shown=not lists.retrieved_only,
        most_lists=lists.most_lists or MOST_LISTS,
        training=RankerSettings(seed=training.seed, most_epochs=training.epochs, threads=threads),
        keep=lists.keep,
        progress=True,
    )
    texts = training.texts or settings.state / "texts"
    with stoppable(), room_in(output.out, settings.state, texts.parent), closing(TextMemory(texts)) as memory:
        found = run(plan, settings, memory, lambda line: click.echo(line, err=True))
    click.echo(orjson.dumps(found).decode() if output.as_json else "\n".join(lines_of(found)))
    if output.add:
        _add(Path(found["ranker"]), model, lists.state, settings, quiet=output.as_json)
    return 0


def model_named(named: str | None, settings: Settings) -> Path:
    """The artefact that is meant. Raises ValueError when there is none."""
    from deploy.jobs.retrain import served_artefact
    from deploy.models.registry import artefact, is_version

    if named is None:
        return served_artefact(settings)
    if is_version(named) and not Path(named).exists():
        return artefact(settings, named)
    return Path(named)


def _add(ranker: Path, model: Path, state: Path | None, settings: Settings, quiet: bool) -> None:
    from deploy.models.registry import open_registry

    open_registry(settings).add(model)  # nothing where it is there
    added, served = change_models(state, lambda rollout: rollout.add_ranker(ranker))
    click.echo(ranker_text(added, served), err=quiet)


def lines_of(found: Mapping[str, Any]) -> Iterator[str]:
    """What came of a training, for people."""
    part = found["slice"]
    yield (
        f"{found['version']} for {found['encoder']}, of what happened from {moment(part['from_ms'])} to "
        f"{moment(part['until_ms'])} ({found['seconds']:.0f} s)"
    )
    for source, of in found["lists"].items():
        on = "on" if source in found["on"] else "off"
        learned = f"{counted(of['lists'], 'list')} of {counted(of['questions'], 'question')}"
        yield f"{source} lists: {on}, learned from {learned} in {counted(of['epochs'], 'epoch')}"
        yield f"  validation: {of['validation']['said']}"
        if "test" in of:
            yield f"  test: {of['test']['said']}"
        most = [f"{name} {lost:.4f}" for name, lost in list(of["importance"].items())[:5] if lost > 0]
        yield f"  most is lost without: {', '.join(most) or 'nothing in particular'}"
    yield f"artefact: {found['ranker']}"
