"""`perseid retrain` makes a newer model from the served one, measures both, and stages the new one where it may be."""

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
from deploy.commands.options import FOLDER, Output, Running, SectionedCommand, checked, option, options
from deploy.commands.replay_arguments import TimeParam
from deploy.disk_space import room_in
from deploy.reports.run_facts import started
from deploy.state_folder import attach
from streams.evaluation.staleness.delays import parse_delay
from streams.evaluation.tables import moment

# Exit statuses by outcome, beside 0, 1 (refused or failed) and 2 (wrong usage).
STATUS = {"worse": 3, "too few questions": 3, "not staged": 3, "nothing new": 4}


@dataclass(frozen=True, slots=True)
class Champion:
    """What is trained further."""

    heading: ClassVar = "Champion"
    champion: Path | None = option(
        type=FOLDER, metavar="MODEL", help="Artefact to go on from.  [default: the model that is served]"
    )
    known_until: int | None = option(
        type=TimeParam(), help="It knows what happened before this time (ISO 8601 or ms).  [default: as it says]"
    )


@dataclass(frozen=True, slots=True)
class LearnedData:
    """What it learns from."""

    heading: ClassVar = "Data"
    data: Path | None = option(type=FOLDER, help="A data folder in place of the topics.")
    start_ms: int | None = option(
        "--from", type=TimeParam(), help="Clicks and exposures from this time on.  [default: all that the topics hold]"
    )
    least_new: int = option(
        type=click.IntRange(min=1), default=500, help="End with status 4 where fewer events came since the last time."
    )
    keep: bool = option(is_flag=True, help="Keep the exported folder, PERSEID_STATE/retrain/data.")
    state: Path | None = option(
        type=click.Path(path_type=Path, file_okay=False),
        help="State folder of a running `perseid up` to talk to, instead of PERSEID_* variables.",
    )


def _duration_ms(text: str) -> int:
    found = parse_delay(text).ms
    if not found:
        raise ValueError(f"{text!r} is no length of time: give a number with s, m, h or d, as in 6h")
    return found


@dataclass(frozen=True, slots=True)
class Judgement:
    """When the new model is good enough, and what happens to it then."""

    heading: ClassVar = "Evaluation"
    newest_ms: int = option(
        "--newest",
        callback=checked(_duration_ms),
        default="1d",
        help="Ask both models about so much of the end (s, m, h or d), which is not learned; where less than twice as "
        "much is new, about the newer half.",
    )
    margin: float = option(
        type=click.FloatRange(0, 1),
        default=0.1,
        help="By this share of the champion's NDCG@10 the lower end of the difference's 95 % interval may lie below 0.",
    )
    stage: bool = option(is_flag=True, help="Stage the new model when it is good enough.")
    replace: bool = option(is_flag=True, help="With --stage: in place of a model that is staged already.")


@dataclass(frozen=True, slots=True)
class TrainingBounds(Running):
    """How long it is trained."""

    epochs: int | None = option(type=click.IntRange(min=1), help="[default: a third of what made the champion]")
    max_seconds: float | None = option(type=click.FloatRange(min=1), help="Bound of the training.")
    seed: int = option(type=int, default=0)
    device: str = option(type=click.Choice(["cpu", "cuda"]), default="cpu")


@click.command(cls=SectionedCommand)
@options(model=Champion, source=LearnedData, judged=Judgement, training=TrainingBounds, output=Output)
def retrain(model: Champion, source: LearnedData, judged: Judgement, training: TrainingBounds, output: Output) -> int:
    """Train the served model further on what the topics hold now, and measure both on the newest events.

    The new model goes into the registry, and with --stage beside the served one if it is not worse: `perseid models
    promote` serves it. One process that ends, for any scheduler: with 0 when there is a new model that is good enough
    (and staged, with --stage), 3 when there is one that is not, 4 when too little is new, 1 when something failed.

    Example: perseid retrain --stage --report retrain.html
    """
    from deploy.jobs.retrain import RetrainPlan
    from deploy.jobs.retrain import retrain as run
    from encoder.text.cache import TextMemory

    facts, settings = started(), attach(os.environ, source.state)
    said = {"epochs": training.epochs, "max_seconds": training.max_seconds}
    recipe = {name: value for name, value in said.items() if value is not None}
    plan = RetrainPlan(
        champion=model.champion,
        known_ms=model.known_until,
        data=source.data,
        start_ms=source.start_ms,
        newest_ms=judged.newest_ms,
        least_new=source.least_new,
        margin=judged.margin,
        stage=judged.stage,
        replace_other=judged.replace,
        recipe={
            **recipe,
            "seed": training.seed,
            "device": training.device,
            "threads": training.threads or os.cpu_count() or 1,
        },
        keep=source.keep,
        progress=True,
    )
    texts = training.texts or settings.state / "texts"
    with room_in(settings.state, texts.parent), closing(TextMemory(texts)) as memory:
        found = run(plan, settings, memory, lambda line: click.echo(line, err=True))
    if output.report is not None:
        from deploy.reports.report import write_report

        write_report(output.report, "retrain", found, facts)
    click.echo(orjson.dumps(found).decode() if output.as_json else "\n".join(lines_of(found)))
    return STATUS.get(found["outcome"], 0)


def lines_of(found: Mapping[str, Any]) -> Iterator[str]:
    """What came of a retraining, for people."""
    new = counted(found["events_since_last"], "new event")
    yield f"champion {found['champion']} knows what happened before {moment(found['champion_until_ms'])}"
    if found["outcome"] == "nothing new":
        yield f"nothing is retrained: {new} since the last time"
        return
    took = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in found["seconds"].items())
    asked = f"{counted(found['questions'], 'question')} of {counted(found['users'], 'user')}"
    yield f"{found['model']} made of {new}, asked {asked} from {moment(found['start_ms'])} on ({took})"
    yield found["verdict"]["said"]
    version, registry = found["model"], found["registry"]
    yield {
        "staged": f"{version} is staged: `perseid models status` shows how far it is, `promote {version}` serves it",
        "added": f"{version} is in registry {registry}; `perseid models stage {version}` has it written",
        "not staged": f"{version} is in registry {registry} and not staged: {found['refused']}",
    }.get(found["outcome"], f"{version} is in registry {registry} and stays there")
