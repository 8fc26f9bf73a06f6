"""`perseid evaluate`, `staleness` and `compare` measure models on what came after their training, offline."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click
import orjson

from context.counting import counted
from deploy.commands.options import (
    FOLDER,
    DescribedGroup,
    Output,
    Questions,
    RankerArtefacts,
    Running,
    SectionedCommand,
    Texts,
    checked,
    option,
    options,
)
from deploy.progress import show_progress
from deploy.reports.run_facts import RunFacts, started
from deploy.runtime.cores import thread_count
from deploy.state_folder import attach
from encoder.baselines.recipes import recipe_sets
from encoder.model.document import DOCUMENT
from index.ranking.features import GROUPS
from streams.evaluation.sessions.sessions import VIEWS, View
from streams.evaluation.staleness.delays import DELAYS, Delay, Part, parse_delay, parse_part
from streams.left_out import LeftOut

if TYPE_CHECKING:
    from deploy.jobs.evaluate import BaselinePlan
    from deploy.settings import Settings
    from encoder.text.cache import TextMemory

Progress = Callable[[int, int], None]
_MODEL: Any = {"type": FOLDER, "help": "Artefact to measure.  [default: PERSEID_MODEL]"}
_SPLIT: Any = {
    "type": click.FloatRange(0, 1, max_open=True),
    "help": "Ask after this share of the events.  [default: after what the model was trained on]",
}


class _FormerUsage(click.ClickException):
    """A command line as it was before the protocols became subcommands."""

    exit_code = 2


class _Protocols(DescribedGroup):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = " ".join(args).replace("--protocol=", "--protocol ").split()
        if args and args[0] not in self.commands and ("--protocol" in words or Path(args[0]).is_dir()):
            said = words[words.index("--protocol") + 1 :] if "--protocol" in words else ["timeline"]
            named = said[0] if said and said[0] in self.commands else "|".join(self.commands)
            raise _FormerUsage(f"the protocol is a subcommand now: perseid evaluate {named} FOLDER …")
        return super().parse_args(ctx, args)


@click.group(cls=_Protocols, context_settings={"help_option_names": ["-h", "--help"]})
def evaluate() -> None:
    """Measure a model on a data FOLDER, offline: HR (recall), NDCG, MRR and coverage.

    timeline asks about each choice from all before it, loo about each user's last event, sessions re-ranks what was
    shown. `replay` asks as timeline does, through the serving path.

    Example: perseid evaluate timeline ml_latest_small --model models/m-1234abcd
    """


@dataclass(frozen=True, slots=True)
class HeldOutQuestions(Questions):
    """What a model is asked on a timeline."""

    split: float | None = option(**_SPLIT)
    model: Path | None = option(**_MODEL)


@dataclass(frozen=True, slots=True)
class TimelineQuestions(HeldOutQuestions):
    """The same, of whole baskets or not."""

    baskets: bool = option(
        is_flag=True,
        help="What a user chose at one time is one basket, and one question: which new items will be in it?",
    )


@dataclass(frozen=True, slots=True)
class Baselines:
    """Baselines to measure beside the model."""

    heading: ClassVar = "Baselines"
    baselines: str = option(
        default="",
        help="Also measure these, by commas: popularity, popularity-7d (both are there on a timeline anyway), "
        "item-knn, co-visitation, text-knn, sasrec, sasrec-sampled, sasrec-bce, bert4rec, hstu.",
    )
    recipes: str = option(
        type=click.Choice(recipe_sets()),
        default="shop",
        help="Shapes and training of the baselines that are trained, by kind of data.",
    )
    seed: int = option(type=int, default=0, help="Of the baselines that are trained.")
    max_seconds: float | None = option(type=click.FloatRange(min=1), help="Bound of the training of each baseline.")

    def plan(self, threads: int) -> BaselinePlan:
        """The same for the evaluation."""
        from deploy.jobs.evaluate import BaselinePlan

        names = [name.strip() for name in self.baselines.split(",") if name.strip()]
        return BaselinePlan(names, self.recipes, self.seed, self.max_seconds, threads)


@evaluate.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER)
@options(asked=TimelineQuestions, second=RankerArtefacts, beside=Baselines, running=Running, output=Output)
def timeline(
    folder: Path, asked: TimelineQuestions, second: RankerArtefacts, beside: Baselines, running: Running, output: Output
) -> None:
    """Ask about each choice of the later part of FOLDER, from all events before it, next to recent popularity.

    `--baselines` are trained on the earlier part and asked the same; with them, no --model and none in PERSEID_MODEL,
    they stand alone.

    Example: perseid evaluate timeline ml_latest_small --model models/m-1234abcd --baselines item-knn,sasrec
    """
    from deploy.jobs.evaluate import evaluate_folder

    facts, plan, ask = started(), beside.plan(_threads(running)), asked.settings()
    with _session(running) as (settings, memory, progress):
        model = _model_or_none(asked.model, settings, plan)
        about = settings, memory, asked.split, ask, progress, plan, asked.baskets
        found = evaluate_folder(folder, model, *about, second.rankers)
    _tell(facts, "evaluate", found, lambda: _evaluated(found, counted(found["questions"], "question")), output)


@dataclass(frozen=True, slots=True)
class AskedModel:
    """Which model is asked."""

    heading: ClassVar = "Questions"
    model: Path | None = option(**_MODEL)


@evaluate.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER)
@options(asked=AskedModel, beside=Baselines, running=Running, output=Output)
def loo(folder: Path, asked: AskedModel, beside: Baselines, running: Running, output: Output) -> None:
    """Ask about each user's last event, with every item ranked and no popularity: as most published tables do.

    The model is one of `train --protocol loo`. `--baselines` are trained on the same part of the data and asked the
    same; with them, no --model and none in PERSEID_MODEL, they stand alone.

    Example: perseid evaluate loo ml1m --model models/m-1234abcd --baselines popularity,sasrec
    """
    from deploy.jobs.evaluate import evaluate_leave_one_out

    facts, plan = started(), beside.plan(_threads(running))
    with _session(running) as (settings, memory, progress):
        chosen = _model_or_none(asked.model, settings, plan, "--protocol loo")
        found = evaluate_leave_one_out(folder, chosen, settings, memory, progress, plan)
    size = f"the last events of {counted(found['users'], 'user')}, {counted(found['catalogue'], 'item')}"
    _tell(facts, "evaluate", found, lambda: _evaluated(found, size), output)


@dataclass(frozen=True, slots=True)
class SessionQuestions(AskedModel):
    """What a model is asked about sessions and pages."""

    question: View | None = option(
        type=click.Choice(VIEWS),
        help="Ask only about days (before) or single pages (page), each from what was known then.  [default: both]",
    )
    split: float | None = option(**_SPLIT)
    choice: str | None = option(help="click, or a kind of event.  [default: purchase if there are any, else click]")
    every: int = option(
        type=click.IntRange(min=1), default=1, help="Take each n-th day and page, to learn from and to ask about."
    )


@dataclass(frozen=True, slots=True)
class RankerTrainings:
    """How rankers are trained whose rows are called two-stage."""

    heading: ClassVar = "Second stage"
    trainings: int = option(
        type=click.IntRange(min=1), default=3, help="Train each ranker so often; its row is the mean of each question."
    )
    without: str = option(
        default="",
        help="Also train it without these groups of features, one at a time, with commas between them: "
        f"{', '.join(name for name in GROUPS if name not in ('position', 'showings'))}, or each.",
    )


@evaluate.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER)
@options(asked=SessionQuestions, second=RankerTrainings, running=Running, output=Output)
def sessions(folder: Path, asked: SessionQuestions, second: RankerTrainings, running: Running, output: Output) -> None:
    """Rank what was shown on a user's day, and on each page, anew, beside LambdaMART.

    LambdaMART learns from the days, or the pages, before the split. Where the model's training ended before the split,
    the second stage learns from those between.

    Example: perseid evaluate sessions shop-3 --model models/m-1234abcd --choice click --question page --every 8
    """
    from deploy.jobs.evaluate import evaluate_sessions_of
    from streams.evaluation.tables import sessions_table

    facts = started()
    _threads(running)
    with _session(running) as (settings, memory, progress):
        model, split, choice = _model(asked.model, settings), asked.split, asked.choice
        without = [name.strip() for name in second.without.split(",") if name.strip()]
        about = settings, memory, split, choice, 0, progress, asked.question, asked.every
        found = evaluate_sessions_of(folder, model, *about, second.trainings, without)
    _tell(facts, "sessions", found, lambda: sessions_table(found), output)


def _listed(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Reads values with commas between them."""
    return checked(lambda text: [read(part.strip()) for part in text.split(",")])


@dataclass(frozen=True, slots=True)
class Delays:
    """What is late by how much."""

    heading: ClassVar = "Delays"
    delays: list[Delay] = option(
        callback=_listed(parse_delay),
        default=",".join(DELAYS),
        help="How late: numbers with ms, s, m, h or d; daily is what a batch at the last midnight (UTC) knew.",
    )
    parts: list[Part] = option(
        "--of",
        callback=_listed(parse_part),
        default="user,vectors,context,popularity,all",
        help="What is late. user-vectors is user, but seen items are still left out of the lists at once.",
    )


@click.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER)
@options(asked=HeldOutQuestions, late=Delays, second=RankerArtefacts, texts=Texts, output=Output)
def staleness(
    folder: Path, asked: HeldOutQuestions, late: Delays, second: RankerArtefacts, texts: Texts, output: Output
) -> None:
    """Measure what delay costs: the same held-out stream, answered with parts of the state known late.

    Each question is answered once for every part and delay, in one pass; the differences from no delay are paired, with
    intervals over users. The model itself is never late.

    Example: perseid staleness ml_latest_small --model models/m-1234abcd --of user,popularity --report staleness.html
    """
    from deploy.jobs.staleness import measure_staleness
    from streams.evaluation.tables import curves_table

    facts, ask = started(), asked.settings()
    with _session(texts) as (settings, memory, progress):
        model, split = _model(asked.model, settings), asked.split
        about = settings, memory, split, ask, late.parts, late.delays, progress
        found = measure_staleness(folder, model, *about, second.rankers)
    title = f"model {found['model']} on {found['data']}: {_size(found)}"
    _tell(facts, "staleness", found, lambda: f"{title}\n\n{curves_table(found)}", output)


@dataclass(frozen=True, slots=True)
class SharedQuestions(Questions):
    """What two models are asked."""

    split: float | None = option(**_SPLIT)
    models: tuple[Path, ...] = option(
        "--model", type=FOLDER, multiple=True, required=True, help="Artefact; give two: A, then B."
    )


@click.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER)
@options(asked=SharedQuestions, second=RankerArtefacts, texts=Texts, output=Output)
def compare(folder: Path, asked: SharedQuestions, second: RankerArtefacts, texts: Texts, output: Output) -> None:
    """Answer the same traffic with two models, side by side: intervals, paired tests, differences by slice.

    Example: perseid compare ml_latest_small --model models/m-1234abcd --model models/m-5678cdef --report what-if.html
    """
    from deploy.jobs.staleness import compare_models

    if len(asked.models) != 2:
        raise click.UsageError(f"--model is given {counted(len(asked.models), 'time')}; a comparison is between two")
    facts, models = started(), dict(zip("AB", asked.models, strict=True))
    with _session(texts) as (settings, memory, progress):
        about = settings, memory, asked.split, asked.settings(), progress
        found = compare_models(folder, models, *about, second.rankers)
    named = ", ".join(f"{name} = {version}" for name, version in found["models"].items())
    title = f"{named} on {found['data']}: {_size(found)}"
    _tell(facts, "compare", found, lambda: f"{title}\n\n{_shown(found)}", output)


def _size(found: dict[str, Any]) -> str:
    return f"{counted(found['questions'], 'question')} of {counted(found['users'], 'user')}"


def _threads(running: Running) -> int:
    """Lets torch use so many threads, or as many as usual."""
    from encoder.device import use_threads

    use_threads(count := thread_count(running.threads))
    return count


def _model(given: Path | None, settings: Settings, training: str = "--split 0.8", instead: str = "") -> Path:
    """The model to measure, else the one of the settings. Raises ValueError, with how to make one, where none is."""
    if given is not None or (settings.model / DOCUMENT).is_file():
        return given or settings.model
    raise ValueError(
        f"no model to measure: --model is not given, and PERSEID_MODEL ({settings.model}) holds none; "
        f"`perseid train FOLDER {training}` makes one and prints where it is{instead}"
    )


def _model_or_none(
    given: Path | None, settings: Settings, plan: BaselinePlan, training: str = "--split 0.8"
) -> Path | None:
    """The model to measure; None where baselines stand alone."""
    if given is None and plan.names and not settings.model.exists():
        return None
    return _model(given, settings, training, "; --baselines item-knn needs none")


def _evaluated(found: dict[str, Any], size: str) -> str:
    what = f"model {found['model']}" if found["model"] else "baselines"
    parts = [f"{what} on {found['data']}: {size}", _shown(found)]
    for name, run in found.get("baselines", {}).items():
        if isinstance(run, dict):
            spent = (
                f"{counted(run['epochs'], 'epoch')} of {run['epoch_seconds']:.1f} s, the best after {run['best_epoch']}"
            )
            parts.append(f"{name}: {spent}, ended by {run['ended']}")
    return "\n\n".join(parts)


def _shown(found: dict[str, Any]) -> str:
    from streams.evaluation.tables import table

    return table(found) if found["questions"] else "nothing to ask about after the split"


@contextmanager
def _session(given: Texts) -> Iterator[tuple[Settings, TextMemory, Progress]]:
    """Settings, the memory of texts, and what shows how far the run is."""
    from encoder.text.cache import TextMemory

    settings = attach(os.environ)
    with closing(TextMemory(given.texts or settings.state / "texts")) as memory, show_progress("events") as show:
        yield settings, memory, show


def _tell(facts: RunFacts, kind: str, found: dict[str, Any], text: Callable[[], str], output: Output) -> None:
    for line in LeftOut.from_dict(found["left_out"]).lines():
        click.echo(line, err=True)
    for name, said in found.get("two_stage", {}).items():
        if name.endswith("missing"):
            click.echo(f"no row two-stage: {said}", err=True)
    if output.report is not None:
        from deploy.reports.report import write_report

        write_report(output.report, kind, found, facts)
    click.echo(orjson.dumps(found).decode() if output.as_json else text())
