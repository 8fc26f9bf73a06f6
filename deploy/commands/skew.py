"""`perseid skew` says whether the features of served lists are those that a replay of the log makes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click
import orjson

from deploy.commands.options import SectionedCommand, option, options, state_option
from deploy.commands.ranker import model_named
from deploy.commands.replay_arguments import TimeParam
from deploy.progress import show_progress
from deploy.state_folder import attach


@dataclass(frozen=True, slots=True)
class SampledLists:
    """Which lists are compared."""

    heading: ClassVar = "Lists"
    start_ms: int | None = option("--from", type=TimeParam(), help="Shown from this time on (ISO 8601 or epoch ms).")
    stop_ms: int | None = option("--to", type=TimeParam(), help="Shown before this time.")
    most: int = option("--lists", type=click.IntRange(min=1), default=10_000, help="The last so many of them.")
    model: str | None = option(
        help="Artefact of their model, or its version in the registry.  [default: the model that is served]"
    )
    as_json: bool = option("--json", is_flag=True, help="Print one line of JSON instead of text.")


@click.command(cls=SectionedCommand)
@options(lists=SampledLists)
@state_option
def skew(lists: SampledLists, state: Path | None) -> int:
    """Make the features of served lists again from the topics, and exit with 1 where they differ.

    Exposures of PERSEID_FEATURE_SHARE of the lists that a ranker has ordered carry the features and the positions that
    they were read at. Users, counts, items and contexts are replayed to just these positions, each to its own; a
    difference of more than half precision is listed by feature and list. Writes nothing.

    Example: perseid skew --from 2026-01-31 --lists 2000
    """
    settings = attach(os.environ, state)
    from deploy.jobs.skew import SkewPlan, check_skew
    from encoder.device import use_threads

    use_threads(settings.threads)
    plan = SkewPlan(model_named(lists.model, settings), lists.start_ms, lists.stop_ms, lists.most)
    with show_progress("lists") as show:
        report = check_skew(plan, settings, show)
    click.echo(orjson.dumps(report.to_dict()).decode() if lists.as_json else "\n".join(report.lines()))
    return 0 if report.alike else 1
