"""Changes the model of a running deployment (`perseid models`) by adding, staging, promoting and rolling back."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import orjson

from deploy.commands.options import DescribedGroup, state_option
from deploy.progress import clock, progress_line, show_progress
from deploy.settings import Settings
from deploy.state_folder import attach, attach_files
from index.ranking.ranker import DOCUMENT as RANKER_DOCUMENT
from index.ranking.ranker import TENSORS as RANKER_TENSORS
from index.ranking.ranker import Ranker, parse_ranker

if TYPE_CHECKING:
    from deploy.models.registry import Registry
    from deploy.models.rollout import Rollout

T = TypeVar("T")
version_argument = click.argument("version")


@click.group(cls=DescribedGroup)
def models() -> None:
    """Keep models in a registry, and change the one that is served without an empty or a mixed list.

    A model is added, staged (workers give all items and users its vectors beside the served one's), promoted when all
    its gates are passed, and rolled back if need be. PERSEID_MODELS names the registry.

    Example: perseid models add models/m-0a1b2c3d && perseid models stage m-0a1b2c3d
    """


@models.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--champion", is_flag=True, help="Begin with it: for a registry that has no champion.")
@state_option
def add(folder: Path, champion: bool, state: Path | None) -> int:
    """Copy an artefact into the registry.

    Example: perseid models add models/m-0a1b2c3d
    """
    from index.state.aliases import Aliases

    registry = _registry(attach_files(os.environ, state))
    if champion and registry.aliases().champion:
        raise ValueError(f"registry {registry.name} has a champion, {registry.aliases().champion}: stage and promote")
    already = registry.versions()
    version = registry.add(folder)
    if champion and not registry.set_aliases(registry.aliases(), Aliases(version)):
        raise ValueError(f"somebody else has just changed the aliases of registry {registry.name}; look and try again")
    click.echo(version)
    if version in already:
        click.echo(f"it was there already, with the same weights; its card stays as it was: {registry.name}", err=True)
    return 0


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of cards, with `aliases`.")
@state_option
def list_models(as_json: bool, state: Path | None) -> int:
    """Show what the registry holds, one line a version, with the aliases that it was told last.

    Those in force are what `perseid models status` shows.

    Example: perseid models list
    """
    registry = _registry(attach_files(os.environ, state))
    named = registry.aliases().names()
    cards = {version: registry.card(version) for version in registry.versions()}
    if as_json:
        found = [{**card, "aliases": named.get(version, [])} for version, card in cards.items()]
        click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        return 0
    for version, card in cards.items():
        ndcg = (card.get("metrics") or {}).get("ndcg@10")
        words = [version, f"{card.get('items', 0):,} items", f"window {card.get('window')}", str(card.get("embedder"))]
        words += [f"ndcg@10 {ndcg:.4f}"] if isinstance(ndcg, float) else []
        click.echo("  ".join([*words, *_ranker_words(registry, version), *named.get(version, [])]))
    return 0


@models.command()
@version_argument
@state_option
def show(version: str, state: Path | None) -> int:
    """Print the card of a version as JSON.

    Example: perseid models show m-0a1b2c3d
    """
    registry = _registry(attach_files(os.environ, state))
    card, ranker = registry.card(version), registry.ranker(version)
    if ranker is not None:
        card["ranker"] = orjson.loads(ranker[RANKER_DOCUMENT] or b"null")
    click.echo(orjson.dumps(card, option=orjson.OPT_INDENT_2).decode())
    return 0


@models.command("add-ranker")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@state_option
def add_ranker(folder: Path, state: Path | None) -> int:
    """Put a ranker's artefact beside its encoder in the registry, in place of the one before.

    Where the encoder has an alias here, API processes order by the ranker within seconds.

    Example: perseid models add-ranker rankers/r-0a1b2c3d
    """
    ranker, served = change_models(state, lambda rollout: rollout.add_ranker(folder))
    click.echo(ranker_text(ranker, served))
    return 0


@models.command("remove-ranker")
@version_argument
@state_option
def remove_ranker(version: str, state: Path | None) -> int:
    """Take the ranker of a model VERSION away: the first stage orders its lists again.

    Example: perseid models remove-ranker m-0a1b2c3d
    """
    change_models(state, lambda rollout: rollout.remove_ranker(version))
    click.echo(f"{version} has no ranker any more")
    return 0


@models.command()
@version_argument
@click.option("--replace", is_flag=True, help="In place of a model that is staged already.")
@click.option("--shadow", metavar="SHARE", help="Of requests, as 1%, that it ranks, too, after they were answered.")
@state_option
def stage(version: str, replace: bool, shadow: str | None, state: Path | None) -> int:
    """Have a version written beside the one that is served, for all items and users.

    Example: perseid models stage m-0a1b2c3d --shadow 1%
    """
    from deploy.models.trials import parse_share

    share = 0.0 if shadow is None else parse_share(shadow)
    change_models(state, lambda rollout: rollout.stage(version, replace_other=replace, shadow=share))
    click.echo(f"{version} is staged; `perseid models status` shows how far it is")
    return 0


@models.command()
@state_option
def unstage(state: Path | None) -> int:
    """Take the staged version back.

    Example: perseid models unstage
    """
    click.echo(f"{change_models(state, lambda rollout: rollout.unstage())} is not staged any more")
    return 0


@models.command()
@click.argument("trial", metavar="VERSION=SHARE|off")
@state_option
def shadow(trial: str, state: Path | None) -> int:
    """Have the staged version rank a share of requests, too, after they were answered.

    `perseid models status` shows how its lists differ; no list is shown to anybody. What was counted is counted anew.

    Example: perseid models shadow m-0a1b2c3d=1%
    """
    from deploy.models.trials import parse_trial, percent

    version, share = parse_trial(trial)
    change_models(state, lambda rollout: rollout.shadow(version, share) if version else rollout.end_shadow())
    click.echo(f"{version} ranks {percent(share)} of requests, too" if share else "no request is ranked twice any more")
    return 0


@models.command()
@click.argument("trial", metavar="[VERSION=SHARE|off]", required=False)
@click.option("--force", is_flag=True, help="Without looking at the gates.")
@click.option("--results", is_flag=True, help="Show what came of the last experiment, from the topics.")
@click.option("--hours", default=24.0, type=click.FloatRange(0, min_open=True), help="That a list may be acted on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_option
def experiment(trial: str | None, force: bool, results: bool, hours: float, as_json: bool, state: Path | None) -> int:
    """Answer a share of users by the staged version, end that, or show what came of it.

    Which users these are follows from their ids. --results reads `exposures` and the clickstream once: lists, clicks
    and purchases of each arm, with 95 % intervals over users, and a warning if the arms have other sizes than they
    should. The last experiment is known until another one begins.

    Example: perseid models experiment m-0a1b2c3d=10%
    """
    from deploy.models.trials import parse_trial, percent

    if trial is None:
        return _show_experiment(state, results, hours, as_json)
    if results:
        raise ValueError(f"--results shows the last experiment; leave out {trial!r}")
    version, share = parse_trial(trial)
    if not version:
        over = change_models(state, lambda rollout: rollout.end_experiment())
        click.echo(f"experiment {over.id} is over, {over.champion} answers everybody")
        return 0
    begun = change_models(state, lambda rollout: rollout.experiment(version, share, force=force))
    click.echo(f"experiment {begun.id}: {version} answers {percent(share)} of users, {begun.champion} the others")
    return 0


@models.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--wait", is_flag=True, help="Return when all gates of the staged version are passed.")
@state_option
def status(as_json: bool, wait: bool, state: Path | None) -> int:
    """Show the aliases, what workers still have to fill, and the gates of the staged version.

    Ends with 0 when all gates are passed or nothing is staged, else with 1.

    Example: perseid models status --wait
    """
    from deploy.models.summary import rollout_status

    while True:
        found = change_models(state, rollout_status)
        if not wait or found["passed"]:
            break
        time.sleep(1.0)
    click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() if as_json else _status_lines(found))
    return 0 if found["passed"] else 1


@models.command()
@version_argument
@click.option("--force", is_flag=True, help="Without looking at the gates.")
@state_option
def promote(version: str, force: bool, state: Path | None) -> int:
    """Serve the staged version from now on, when all its gates are passed.

    Example: perseid models promote m-0a1b2c3d
    """
    change_models(state, lambda rollout: rollout.promote(version, force=force))
    click.echo(f"{version} is served; `perseid models rollback` takes it back within 24 hours")
    return 0


@models.command()
@click.option("--force", is_flag=True, help="Also when no worker writes it any more.")
@state_option
def rollback(force: bool, state: Path | None) -> int:
    """Serve the model before the present one again.

    Example: perseid models rollback
    """
    version = change_models(state, lambda rollout: rollout.rollback(force=force))
    click.echo(f"{version} is served again; `perseid models rollback` undoes that within 24 hours")
    return 0


@models.command()
@version_argument
@state_option
def retire(version: str, state: Path | None) -> int:
    """Take away the alias of a version that is not served, and with it its vectors.

    Example: perseid models retire m-0a1b2c3d
    """
    change_models(state, lambda rollout: rollout.retire(version))
    click.echo(f"{version} is retired; its vectors are removed in the background")
    return 0


def ranker_text(ranker: Ranker, served: bool) -> str:
    """What became of a ranker that was added."""
    where = "in force within seconds" if served else "in force when its encoder is staged or served"
    orders = f"orders lists that were {' and '.join(ranker.on)}, {where}" if ranker.on else "is off: it is no better"
    return f"{ranker.version} is beside {ranker.encoder} and {orders}"


def _ranker_words(registry: Registry, version: str) -> list[str]:
    files = registry.ranker(version)
    if files is None:
        return []
    try:
        ranker = parse_ranker(files[RANKER_DOCUMENT], files[RANKER_TENSORS], "it")
    except ValueError:
        return ["ranker damaged"]
    return [f"ranker {ranker.version}{'' if ranker.on else ' (off)'}"]


def _registry(settings: Settings) -> Registry:
    from deploy.models.registry import open_registry

    return open_registry(settings)


def change_models(state: Path | None, step: Callable[[Rollout], Awaitable[T]]) -> T:
    """One step on the deployment that the state folder or the environment names."""
    from deploy.models.rollout import Rollout
    from deploy.runtime.process import open_store
    from index.state.store import StoreUnavailableError

    settings = attach(os.environ, state)

    async def run() -> T:
        store = open_store(settings)
        try:
            rollout = Rollout(store, _registry(settings), embedders=settings.rules().embedders)
            result = await step(rollout)
            if rollout.untold:
                click.echo(f"the registry was not told, the next command tells it: {rollout.untold}", err=True)
            return result
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except StoreUnavailableError as error:
        raise ValueError(
            f"the live state does not answer: {error}; `perseid models status` shows what is in force"
        ) from error


def _show_experiment(state: Path | None, results: bool, hours: float, as_json: bool) -> int:
    """Shows the last experiment, with what came of it if that is asked for."""
    from deploy.models.trials import experiment_text, results_lines

    last = change_models(state, lambda rollout: rollout.aliases()).experiment
    if last is None:
        raise ValueError("there was no experiment; begin one by `perseid models experiment VERSION=10%`")
    found: dict[str, Any] = {"experiment": asdict(last)}
    if results:
        from deploy.jobs.experiment import experiment_results

        found = experiment_results(last, attach(os.environ, state), hours, show_progress)
    lines = [experiment_text(last), *(results_lines(found) if results else ())]
    click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() if as_json else "\n".join(lines))
    return 0


def _status_lines(found: dict[str, Any]) -> str:
    lines = [f"{name:<10} {found[name] or '-'}" for name in ("champion", "challenger", "previous")]
    if progress := found["progress"]:
        lines.append(progress_line("filling", progress["done"], progress["total"], progress["rate"]))
    lines += [f"texts      {version}: {_texts_line(texts)}" for version, texts in found["embedding"].items()]
    return "\n".join([*lines, *found["lines"]])


def _texts_line(texts: dict[str, Any]) -> str:
    """As in "1,200 of 3,000 by text-embedding-3-large, 0.6 h left; waits: 90 of 100 tokens …"."""
    if "refused" in texts:
        return f"not embedded: {texts['refused']}"
    if "total" not in texts:
        return f"not looked at yet, by {texts['embedder']}"
    left_s, pending = texts["seconds_left"], texts["pending"]
    words = [f"{texts['done']:,} of {texts['total']:,} by {texts['embedder']}"]
    words += [f"{clock(left_s)} left"] if left_s else []
    words += [f"{pending:,} without a usable answer"] if pending else []
    return ", ".join(words) + (f"; waits: {texts['waiting']}" if texts["waiting"] else "")
