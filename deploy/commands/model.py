"""`perseid train` makes a model from a data folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import click
import orjson

from context.counting import counted
from deploy.commands.options import FOLDER, Running, SectionedCommand, checked, option, options
from deploy.commands.train_settings import INPUTS, changed, left_out
from deploy.disk_space import room_in
from deploy.runtime.cores import thread_count
from deploy.state_folder import attach
from encoder.model.config import PARTS, preset_names, preset_training
from encoder.model.document import read_document
from encoder.training.options import TrainOptions
from streams.left_out import LeftOut

_OF_A_RUN = ("seed", "max_seconds", "threads", "device")  # options that every training is told anew


@dataclass(frozen=True, slots=True)
class Data:
    """Which part of the folder is learned from."""

    heading: ClassVar = "Data"
    split: float = option(
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        help="Share of the events, by time, to train on; the rest stays unseen for `evaluate` and `replay`.",
    )
    protocol: str = option(
        type=click.Choice(["timeline", "loo"]),
        default="timeline",
        help="loo: keep out the last two events of each user, and the weights that rank the last but one best.",
    )


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What is trained."""

    heading: ClassVar = "Model"
    preset_name: str = option(
        "--preset",
        type=click.Choice(preset_names()),
        default="nano",
        help="Size of the encoder and recipe of its training.",
    )
    without: frozenset[str] = option(
        callback=checked(left_out), default="", help=f"Leave these out, with commas between them: {', '.join(INPUTS)}."
    )
    changes: tuple[dict[str, Any], dict[str, Any]] = option(
        "--set",
        multiple=True,
        metavar="NAME=VALUE",
        callback=checked(changed),
        help="Change a setting of the preset, as in --set d_model=128 --set prior=train; a wrong name lists all.",
    )
    general_reach: str | None = option(
        type=click.Choice(["encoder", "head"]),
        help="What the loss of h_gen may change; head: nothing that h_next uses.  [default: the preset's, else "
        "encoder]",
    )
    parent: Path | None = option(
        "--from",
        type=FOLDER,
        metavar="MODEL",
        help="Of timeline: go on from this artefact, with its sizes and recipe, in a third of the epochs; what it has "
        "not seen is learned (all again by --set since_ms=null).",
    )
    refit: Path | None = option(
        type=FOLDER,
        metavar="MODEL",
        help="Of loo: train MODEL again in the same way, for as many epochs as validated best, on the last but one "
        "events too.",
    )


@dataclass(frozen=True, slots=True)
class TrainingRun(Running):
    """How long, from which seed and on what it is trained."""

    epochs: int | None = option(
        type=click.IntRange(min=1), help="[default: the preset's, else 20; with --from a third of what made MODEL]"
    )
    max_seconds: float | None = option(
        type=click.FloatRange(min=1),
        help="Bound of the training. Texts are embedded before it, once each, and do not count.",
    )
    embed_seconds: float | None = option(
        type=click.FloatRange(min=1),
        help="Of timeline: bound of embedding texts, of the items with most events first; those without a vector by "
        "then are left out.",
    )
    seed: int = option(type=int, default=0)
    device: str = option(type=click.Choice(["cpu", "cuda"]), default="cpu")
    resume: bool = option(is_flag=True, help="Continue from the checkpoint in --out.")


@dataclass(frozen=True, slots=True)
class Artefact:
    """Where the model goes, and what is said of it."""

    heading: ClassVar = "Output"
    out: Path = option(type=click.Path(path_type=Path), default=Path(".perseid/models"))
    quiet: bool = option(is_flag=True, help="Print one short line instead of the JSON result.")


@click.command(cls=SectionedCommand)
@click.argument("folder", type=FOLDER)
@options(data=Data, choice=ModelChoice, training=TrainingRun, output=Artefact)
def train(folder: Path, data: Data, choice: ModelChoice, training: TrainingRun, output: Artefact) -> None:
    """Train a model on a data FOLDER; the artefact is OUT/<version>.

    Example: perseid train ml_latest_small --split 0.8 --out models
    """
    from deploy.jobs.train import TrainPlan, train_folder
    from deploy.texts.models import TextSource
    from encoder.text.cache import TextMemory

    if training.embed_seconds is not None and data.protocol != "timeline":
        raise click.UsageError("--embed-seconds is for --protocol timeline")
    if choice.parent is not None:
        _refuse_beside_parent(data.protocol, choice)
    if choice.refit is not None:
        _refuse_beside_refit(data.protocol)
    sizes, changes = choice.changes
    if "profile" in choice.without:
        sizes = {**sizes, "profile_buckets": 0}
    plan = TrainPlan(
        folder,
        output.out,
        data.split,
        data.protocol,
        choice.preset_name,
        sizes,
        parts=tuple(part for part in PARTS if part not in choice.without),
        context="context" not in choice.without,
        options=_options(choice, training, changes),
        resume=training.resume,
        progress=True,
        embed_seconds=training.embed_seconds,
        parent=choice.parent,
    )
    settings, left = attach(os.environ), LeftOut()
    texts = training.texts or settings.state / "texts"
    with (
        room_in(output.out, texts.parent),
        closing(TextMemory(texts)) as memory,
        TextSource(settings, memory) as source,
    ):
        chosen = replace(plan, refit=choice.refit, texts=source)
        result = train_folder(chosen, settings.rules(), source.memory, lambda found: _tell(found, left))
    if result.cut_short:
        steps = counted(int(result.metrics["steps"]), "step")
        click.echo(f"the time was over in the first epoch, after {steps}: give it more than --max-seconds", err=True)
    if output.quiet:
        quality = ", ".join(f"{name} {value:.3g}" for name, value in result.metrics.items())
        click.echo(f"Model {result.version} after {result.seconds:.0f} s: {quality}")
        return
    shown = {"model": str(result.folder), "version": result.version, "seconds": round(result.seconds, 1)}
    click.echo(orjson.dumps({**shown, "metrics": result.metrics, "left_out": left.to_dict()}).decode())


def _tell(found: LeftOut, left_out: LeftOut) -> None:
    """Says at once what is left out, before minutes of work, and keeps it for the result."""
    left_out.update(found)
    for line in found.lines():
        click.echo(line, err=True)


def _options(choice: ModelChoice, training: TrainingRun, changes: dict[str, Any]) -> TrainOptions:
    """The preset's recipe, or how a training goes on from a model, changed as the command line says."""
    given = {"epochs": training.epochs, "general_reach": choice.general_reach}
    said = {name: value for name, value in given.items() if value is not None}
    recipe = {"epochs": 20, **preset_training(choice.preset_name)}
    if choice.parent is not None:
        from deploy.jobs.train import recipe_of

        recipe = asdict(recipe_of(read_document(choice.parent)["metadata"]))
        recipe = {name: value for name, value in recipe.items() if name not in _OF_A_RUN}
    return TrainOptions(
        **{**recipe, **changes, **said},
        seed=training.seed,
        max_seconds=training.max_seconds,
        threads=thread_count(training.threads),
        device=training.device,
    )


def _refuse_beside_parent(protocol: str, choice: ModelChoice) -> None:
    """A training that goes on has its parent's sizes and recipe; what differs is refused where it is used."""
    if protocol != "timeline" or choice.refit is not None:
        raise click.UsageError("--from is for --protocol timeline, without --refit")
    _refuse_given("--from", ("preset_name",))


def _refuse_beside_refit(protocol: str) -> None:
    """What says how the first model was made says it for the second."""
    if protocol != "loo":
        raise click.UsageError("--refit is for --protocol loo")
    _refuse_given("--refit", ("preset_name", "changes", "without", "general_reach", "epochs"))


def _refuse_given(by: str, names: Iterable[str]) -> None:
    """Options that say what the model of another option says already."""
    context = click.get_current_context()
    shown = {parameter.name: parameter.opts[0] for parameter in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{shown[name]} is given by {by}'s model; leave it out")
