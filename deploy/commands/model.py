"""`perseid train` and `evaluate`: a model from a data folder, and how good it is on what came later."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson

from deploy.commands.train_settings import INPUTS, changed, left_out
from deploy.progress import records_bar
from deploy.reports.run_facts import started
from deploy.state_folder import attach
from encoder.baselines.recipes import recipe_sets
from encoder.model.config import PARTS, preset_names, preset_training

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_PROTOCOL = click.Choice(["timeline", "loo"])
_PROTOCOLS = click.Choice(["timeline", "loo", "sessions"])


def _checked(read: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A reader of an option's value whose ValueError is the user's mistake."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            return read(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    return callback


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
    "--protocol",
    type=_PROTOCOL,
    default="timeline",
    show_default=True,
    help="loo: keep out the last two events of each user, and the weights that rank the last but one best.",
)
@click.option(
    "--preset",
    "preset_name",
    type=click.Choice(preset_names()),
    default="nano",
    show_default=True,
    help="Size of the encoder and recipe of its training.",
)
@click.option(
    "--without",
    callback=_checked(left_out),
    default="",
    help=f"Leave these out, with commas between them: {', '.join(INPUTS)}.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    callback=_checked(changed),
    help="Change a setting of the preset, as in --set d_model=128 --set prior=train; a wrong name lists all.",
)
@click.option(
    "--general-reach",
    type=click.Choice(["encoder", "head"]),
    help="What the loss of h_gen may change; head: nothing that h_next uses.  [default: the preset's, else encoder]",
)
@click.option(
    "--refit",
    type=_FOLDER,
    metavar="MODEL",
    help="Of loo: train MODEL again in the same way, for as many epochs as validated best, on the last but one events "
    "too.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="[default: the preset's, else 20]")
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
    protocol: str,
    preset_name: str,
    without: frozenset[str],
    changes: tuple[dict[str, Any], dict[str, Any]],
    general_reach: str | None,
    refit: Path | None,
    epochs: int | None,
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
    from deploy.jobs.train import TrainPlan, train_folder
    from deploy.texts.models import TextSource
    from encoder.text.cache import TextMemory
    from encoder.training.loop import TrainOptions

    if refit is not None:
        _refuse_beside_refit(protocol)
    given = {"epochs": epochs, "general_reach": general_reach}
    said = {name: value for name, value in given.items() if value is not None}
    sizes, options_changed = changes
    recipe = {"epochs": 20, **preset_training(preset_name), **options_changed, **said}
    threads = threads or os.cpu_count() or 1
    options = TrainOptions(**recipe, seed=seed, max_seconds=max_seconds, threads=threads, device=device)
    shown_live = sys.stderr.isatty()
    parts = tuple(part for part in PARTS if part not in without)
    if "profile" in without:
        sizes = {**sizes, "profile_buckets": 0}
    context = "context" not in without
    plan = TrainPlan(folder, out, split, protocol, preset_name, sizes, parts, context, options, resume, shown_live)
    settings, memory = attach(os.environ), TextMemory(texts)
    try:
        with TextSource(settings, memory) as source:
            result = train_folder(replace(plan, refit=refit, texts=source), settings.rules(), source.memory)
    finally:
        memory.close()
    if quiet:
        quality = ", ".join(f"{name} {value:.3g}" for name, value in result.metrics.items())
        click.echo(f"Model {result.version} after {result.seconds:.0f} s: {quality}")
        return
    shown = {"model": str(result.folder), "version": result.version, "seconds": round(result.seconds, 1)}
    click.echo(orjson.dumps({**shown, "metrics": result.metrics}).decode())


def _refuse_beside_refit(protocol: str) -> None:
    """What says how the first model was made says it for the second."""
    if protocol != "loo":
        raise click.UsageError("--refit is for --protocol loo")
    context = click.get_current_context()
    for name, shown in (
        ("preset_name", "--preset"),
        ("changes", "--set"),
        ("without", "--without"),
        ("general_reach", "--general-reach"),
        ("epochs", "--epochs"),
    ):
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"{shown} is given by --refit's model; leave it out")


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--model", type=_FOLDER, help="Artefact to evaluate.  [default: PERSEID_MODEL]")
@click.option(
    "--protocol",
    type=_PROTOCOLS,
    default="timeline",
    show_default=True,
    help="timeline: each choice from all before it. loo: each user's last event, every item ranked, no popularity. "
    "sessions: what was shown on a user's day, ranked anew, beside LambdaMART.",
)
@click.option(
    "--choice", help="Of sessions: click, or a kind of event.  [default: purchase if there are any, else click]"
)
@click.option(
    "--split",
    type=click.FloatRange(0, 1, max_open=True),
    help="Ask after this share of the events.  [default: after what the model was trained on]",
)
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="Ask at each n-th event.")
@click.option("--repeats", is_flag=True, help="Also ask about items that the user has seen.")
@click.option(
    "--baskets",
    is_flag=True,
    help="What a user chose at one time is one basket, and one question: which new items will be in it?",
)
@click.option("--plain", is_flag=True, help="Rank a timeline by vectors alone: no popularity, whatever the model says.")
@click.option(
    "--baselines",
    default="",
    help="Also measure these, by commas: popularity, popularity-7d (both are there on a timeline anyway), item-knn, "
    "co-visitation, text-knn, sasrec, sasrec-sampled, sasrec-bce, bert4rec, hstu.",
)
@click.option(
    "--recipes",
    type=click.Choice(recipe_sets()),
    default="shop",
    show_default=True,
    help="Shapes and training of the baselines that are trained, by kind of data.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the baselines that are trained.")
@click.option("--max-seconds", type=click.FloatRange(min=1), help="Bound of the training of each baseline.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores]")
@click.option("--texts", type=click.Path(path_type=Path), help="File that remembers text vectors between runs.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON instead of a table.")
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a page with tables and plots, complete in one file.",
)
def evaluate(
    folder: Path,
    model: Path | None,
    protocol: str,
    choice: str | None,
    split: float | None,
    every: int,
    repeats: bool,
    baskets: bool,
    plain: bool,
    baselines: str,
    recipes: str,
    seed: int,
    max_seconds: float | None,
    threads: int | None,
    texts: Path | None,
    as_json: bool,
    page: Path | None,
) -> None:
    """Measure a model on a data FOLDER, offline: on its later part, or on each user's last event.

    Prints HR (recall), NDCG, MRR and coverage; on a timeline next to recent popularity. `--baselines` are trained on
    the same part of the data and asked the same; with them, no --model and none in PERSEID_MODEL, they stand alone.
    `replay` asks the same through the serving path.

    Example: perseid evaluate ml_latest_small --model models/m-1234abcd --baselines item-knn,sasrec
    """
    from deploy.jobs.evaluate import BaselinePlan, evaluate_folder, evaluate_leave_one_out
    from deploy.reports.report import write_report
    from encoder.inference.incremental import use_threads
    from encoder.text.cache import TextMemory
    from streams.evaluation.held_out import QuestionSettings

    for name, given in (("--baskets", baskets), ("--plain", plain)):
        if given and protocol != "timeline":
            raise click.UsageError(f"{name} is for --protocol timeline, not for {protocol}")
    facts = started()
    settings = attach(os.environ)
    memory = TextMemory(texts or settings.state / "texts")
    ask = QuestionSettings(every=every, repeats=repeats, plain=plain)
    names = [name.strip() for name in baselines.split(",") if name.strip()]
    plan = BaselinePlan(names, recipes, seed, max_seconds, threads or os.cpu_count() or 1)
    use_threads(plan.threads)
    chosen = model or (settings.model if settings.model.exists() or not names else None)
    with records_bar("events") as show:
        progress = None if show is None else lambda done: show(done, None)
        if protocol == "sessions":
            from deploy.jobs.evaluate import evaluate_sessions_of

            found = evaluate_sessions_of(
                folder, model or settings.model, settings, memory, split, choice, progress=progress
            )
        elif protocol == "loo":
            found = evaluate_leave_one_out(folder, chosen, settings, memory, progress, plan)
        else:
            found = evaluate_folder(folder, chosen, settings, memory, split, ask, progress, plan, baskets)
    memory.close()
    if page is not None:
        write_report(page, "sessions" if protocol == "sessions" else "evaluate", found, facts)
    click.echo(orjson.dumps(found).decode() if as_json else _tables(protocol, found))


def _tables(protocol: str, found: dict[str, Any]) -> str:
    """What an evaluation found, for people."""
    from streams.evaluation.tables import sessions_table, table

    if protocol == "sessions":
        return sessions_table(found)
    what = f"model {found['model']}" if found["model"] else "baselines"
    size = f"{found['questions']} questions"
    if protocol == "loo":
        size = f"the last events of {found['users']} users, {found['catalogue']} items"
    shown = table(found) if found["questions"] else "nothing to ask about after the split"
    parts = [f"{what} on {found['data']}: {size}", shown]
    for name, run in found.get("baselines", {}).items():
        if isinstance(run, dict):
            spent = f"{run['epochs']} epochs of {run['epoch_seconds']:.1f} s, the best after {run['best_epoch']}"
            parts.append(f"{name}: {spent}, ended by {run['ended']}")
    return "\n\n".join(parts)
