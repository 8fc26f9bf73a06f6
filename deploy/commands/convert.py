"""Turns public data sets, exports of other systems and a shop's own tables into data folders (`perseid convert`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import orjson

from deploy.commands.options import DescribedGroup
from deploy.tables.maps import map_file
from deploy.tables.presets import preset, preset_names
from deploy.tables.report import Report

_PATHS = click.Path(path_type=Path)
_SHOWN = 160  # characters of a row that a dry run shows
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class _Formats(DescribedGroup):
    """A subcommand for each preset, beside `table`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *preset_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        return own if own or cmd_name not in preset_names() else _preset_command(cmd_name)


def _reporting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every conversion."""
    dry = click.option("--dry-run", is_flag=True, help="Write nothing; show the first rows as understood.")
    skip = click.option(
        "--skip-bad-lines",
        is_flag=True,
        help="Leave out lines that cannot be read; else the first is an error.",
    )
    return dry(skip(function))


@click.group(cls=_Formats, context_settings={"help_option_names": ["-h", "--help"]})
def convert() -> None:
    """Turn tables into a data folder, which train, replay, evaluate and up read.

    table reads any CSV, JSON lines or Parquet by a map, which says what the columns mean. The others are maps of public
    data sets and of exports that come with the package: their PATH is a folder, a zip file or, where the set is one
    file, that file. Files may be gzipped or zipped. What was left out and why is said at the end; the last output line
    is a JSON summary.

    Example: perseid convert movielens ml-latest data/movielens
    """


@convert.command()
@click.option(
    "--events",
    type=_PATHS,
    multiple=True,
    required=True,
    help="File, folder, zip or quoted pattern; repeatable.",
)
@click.option("--items", type=_PATHS, multiple=True, help="The same for items.  [default: the files of the events]")
@click.option(
    "--map", "map_path", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The map, a TOML file."
)
@click.argument("out", type=_PATHS, required=False)
@_reporting
def table(
    events: tuple[Path, ...],
    items: tuple[Path, ...],
    map_path: Path | None,
    out: Path | None,
    dry_run: bool,
    skip_bad_lines: bool,
) -> None:
    """Turn a shop's own tables into the data folder OUT.

    The map says what the columns mean. Without --map one is proposed from the headers, with a list of all words that a
    map may have, to be saved and put right.

    Example: perseid convert table --events orders.csv --items products.csv > shop.toml

    Example: perseid convert table --events orders.csv --items products.csv --map shop.toml --dry-run

    Example: perseid convert table --events orders.csv --items products.csv --map shop.toml data/shop
    """
    if map_path is None:
        from deploy.tables.proposal import propose

        click.echo(propose(events, items), nl=False)
        return
    from deploy.jobs.convert import convert_table

    report = _report(skip_bad_lines)
    convert_table(events, items, map_file(map_path), _target(out, dry_run), report)
    _show(report, dry_run)


def _preset_command(name: str) -> click.Command:
    # A variant, such as movielens-1m, is found under the name that it begins with.
    hidden = any(name.startswith(f"{other}-") for other in preset_names())

    @click.command(name, hidden=hidden, help=f"{preset(name).about}\n\nExample: perseid convert {name} PATH OUT")
    @click.argument("path", type=click.Path(path_type=Path, exists=True))
    @click.argument("out", type=_PATHS, required=False)
    @_reporting
    def command(path: Path, out: Path | None, dry_run: bool, skip_bad_lines: bool) -> None:
        from deploy.jobs.convert import convert as write_folder

        report = _report(skip_bad_lines)
        write_folder(name, path, _target(out, dry_run), report)
        _show(report, dry_run)

    return command


def _report(skip_bad_lines: bool) -> Report:
    return Report(skip_bad_lines, tell=lambda line: click.echo(line, err=True))


def _target(out: Path | None, dry_run: bool) -> Path | None:
    if out is None and not dry_run:
        raise click.UsageError("OUT, the data folder to write, is missing (or --dry-run)")
    return None if dry_run else out


def _show(report: Report, dry_run: bool) -> None:
    if dry_run:
        for name, rows in report.shown.items():
            click.echo(f"first {name}:")
            for row in rows:
                click.echo(f"  {_line(row)}")
    for line in report.lines():
        click.echo(line, err=True)
    done = {
        "events": report.events,
        "items": report.items,
        "left_out": report.left_out.to_dict(),
        "without_record": report.without_record.to_dict(),
    }
    click.echo(orjson.dumps(done).decode())


def _line(row: Mapping[str, Any]) -> str:
    said = {name: value for name, value in row.items() if value not in (None, "", [])}
    if "timestamp" in said:  # seconds tell nobody whether the zone is right
        said["timestamp"] = f"{said['timestamp']} ({datetime.fromtimestamp(float(said['timestamp']), UTC):%F %T} UTC)"
    text = orjson.dumps(said).decode()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
