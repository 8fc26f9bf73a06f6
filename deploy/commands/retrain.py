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
from deploy.commands.options import FOLDER, Output, Running, SectionedCommand, checked, duration_ms, option, options
from deploy.commands.replay_arguments import TimeParam
from deploy.disk_space import room_in
from deploy.jobs.verdict import RetrainOutcome
from deploy.reports.run_facts import started
from deploy.runtime.cores import thread_count
from deploy.state_folder import attach
from streams.evaluation.tables import moment


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
    learn: str = option(
        type=click.Choice(["all", "new"]),
        default="all",
        help="All these events, or only what the champion has not seen: that takes less time, and forgets.",
    )
    least_new: int = option(
        type=click.IntRange(min=1), default=500, help="End with status 4 where fewer events came since the last time."
    )
    keep: bool = option(is_flag=True, help="Keep the exported folder, PERSEID_STATE/retrain/data.")
    state: Path | None = option(
        type=click.Path(path_type=Path, file_okay=False),
        help="State folder of a running `perseid up` to talk to, instead of PERSEID_* variables.",
    )


@dataclass(frozen=True, slots=True)
class Judgement:
    """When the new model is good enough, and what happens to it then."""

    heading: ClassVar = "Evaluation"
    newest_ms: int = option(
        "--newest",
        callback=checked(duration_ms),
        default="1d",
        help="Ask both models about so much of the end (s, m, h or d), which is not learned; where less than twice as "
        "much is new, about the newer half.",
    )
    margin: float = option(
        type=click.FloatRange(0, 1),
        default=0.1,
        help="By this share of the champion's NDCG@10 the lower end of the difference's 95 % interval may lie below 0.",
    )
    stage: bool = option(
        is_flag=True,
        help="Stage the new model when it is good enough, in place of one that an earlier retraining made.",
    )
    replace: bool = option(is_flag=True, help="With --stage: in place of any model that is staged already.")
    promote: bool = option(
        is_flag=True,
        help="Stage it, wait until it has passed its gates, and serve it: where its NDCG@10 is not below the "
        "champion's, and no model made of this champion was rolled back within 24 hours.",
    )
    within_ms: int = option(
        "--within", callback=checked(duration_ms), default="1h", help="With --promote: wait for the gates so long."
    )


@dataclass(frozen=True, slots=True)
class TrainingBounds(Running):
    """How long it is trained, and what it leaves to others."""

    nice: int = option(
        type=click.IntRange(0, 19), default=0, help="Leave the processor to others, with 19 whenever they want it."
    )
    lenient: bool = option(
        is_flag=True, help="End with 0 instead of 3 and 4: for schedulers that repeat whatever else a run ends with."
    )
    ranker: bool | None = option(
        "--ranker/--no-ranker",
        default=None,
        help="Also train a second stage for the new model, on the events that are kept out.  [default: where the "
        "champion has one]",
    )
    epochs: int | None = option(type=click.IntRange(min=1), help="[default: a third of what made the champion]")
    max_seconds: float | None = option(type=click.FloatRange(min=1), help="Bound of the training.")
    seed: int = option(type=int, default=0)
    device: str = option(type=click.Choice(["cpu", "cuda"]), default="cpu")


@click.command(cls=SectionedCommand)
@options(model=Champion, source=LearnedData, judged=Judgement, training=TrainingBounds, output=Output)
def retrain(model: Champion, source: LearnedData, judged: Judgement, training: TrainingBounds, output: Output) -> int:
    """Train the served model further on what the topics hold now, and measure both on the newest events.

    The new model goes into the registry, and with --stage beside the served one if it is not worse: `perseid models
    promote` serves it, or --promote. One process that ends, for any scheduler: with 0 when there is a new model that is
    good enough (and staged or served where that is asked for), 3 when there is one that is not, 4 when too little is
    new, 1 when something failed, 130 when it was stopped. Two never run at once with one state folder. Of the models
    that retrainings made, the registry keeps the newest ten and those with an alias. Both models are judged by the
    first stage alone; a ranker is trained afterwards on the events that are kept out, and is off where it is no better.

    Example: perseid retrain --stage --report retrain.html
    """
    from deploy.runtime.process import leave_processor, stoppable

    facts, threads = started(), thread_count(training.threads)
    settings = attach(os.environ, source.state, threads=threads)
    leave_processor(training.nice)
    os.environ |= {f"{library}_THREADS": str(threads) for library in ("POLARS_MAX", "RAYON_NUM")}  # before they load
    from deploy.jobs.retrain import RetrainPlan
    from deploy.jobs.retrain import retrain as run
    from encoder.text.cache import TextMemory

    said = {"epochs": training.epochs, "max_seconds": training.max_seconds}
    recipe = {name: value for name, value in said.items() if value is not None}
    plan = RetrainPlan(
        champion=model.champion,
        known_ms=model.known_until,
        data=source.data,
        start_ms=source.start_ms,
        only_new=source.learn == "new",
        newest_ms=judged.newest_ms,
        least_new=source.least_new,
        margin=judged.margin,
        stage=judged.stage or judged.promote,
        replace_other=judged.replace,
        promote=judged.promote,
        promote_within_s=judged.within_ms / 1000,
        ranker=training.ranker,
        recipe={**recipe, "seed": training.seed, "device": training.device, "threads": threads},
        keep=source.keep,
        progress=True,
    )
    texts = training.texts or settings.state / "texts"
    with stoppable(), room_in(settings.state, texts.parent), closing(TextMemory(texts)) as memory:
        found = run(plan, settings, memory, lambda line: click.echo(line, err=True))
    if output.report is not None:
        from deploy.reports.report import write_report

        write_report(output.report, "retrain", found, facts)
    click.echo(orjson.dumps(found).decode() if output.as_json else "\n".join(lines_of(found)))
    return 0 if training.lenient else RetrainOutcome(found["outcome"]).exit_status


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
    if (ranker := found.get("ranker")) is not None and ranker["version"] is not None:
        on = f"orders lists that were {' and '.join(ranker['on'])}" if ranker["on"] else "is off: it is no better"
        yield f"its ranker {ranker['version']} {on}"
    version, registry = found["model"], found["registry"]
    yield {
        "promoted": f"{version} is served; `perseid models rollback` takes it back within 24 hours",
        "staged": f"{version} is staged: `perseid models status` shows how far it is, `promote {version}` serves it",
        "not promoted": f"{version} is staged and not promoted: {found['refused']}",
        "added": f"{version} is in registry {registry}; `perseid models stage {version}` has it written",
        "not staged": f"{version} is in registry {registry} and not staged: {found['refused']}",
    }.get(found["outcome"], f"{version} is in registry {registry} and stays there")
