"""Shared options: sections of the help, bundles that reach a command as one value, and readers of values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner

from deploy.cli import COMMANDS, cli
from deploy.commands.options import SectionedCommand, checked, option, options

MOST = 10


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {sub}", found) for sub, found in command.commands.items())


def test_no_command_has_more_than_ten_options_below_one_heading() -> None:
    for name, command in commands():
        headings = [getattr(p, "heading", "Options") for p in command.params if isinstance(p, click.Option)]
        assert max(map(headings.count, headings), default=0) <= MOST, name
        if len(headings) > MOST:
            assert isinstance(command, SectionedCommand), name


@dataclass(frozen=True, slots=True)
class Pair:
    heading: ClassVar = "Pairs"
    left: int = option(type=int, default=1, help="The left one.")
    right: str = option(default="r", callback=checked(lambda text: str(int(text)) if text != "r" else text))


@dataclass(frozen=True, slots=True)
class More(Pair):
    heading: ClassVar = "More"
    very_loud: bool = option("--loud", is_flag=True, help="Loudly.")
    third: int | None = option(type=int)


@click.command(cls=SectionedCommand)
@click.argument("name")
@options(pair=Pair)
def said(name: str, pair: Pair) -> None:
    """Say it."""
    click.echo(f"{name} {pair}")


def test_bundled_options_reach_the_command_as_one_value() -> None:
    done = CliRunner().invoke(said, ["x", "--right", "07"])
    assert done.output == "x Pair(left=1, right='7')\n"
    assert [parameter.name for parameter in said.params] == ["name", "left", "right"]


def test_a_class_adds_options_to_those_of_another() -> None:
    @click.command(cls=SectionedCommand)
    @options(more=More)
    def more(more: More) -> None:
        click.echo(str(more))

    done = CliRunner().invoke(more, ["--left", "2", "--loud", "--third", "3"])
    assert done.output == "More(left=2, right='r', very_loud=True, third=3)\n"
    assert {getattr(parameter, "heading", None) for parameter in more.params} == {"More"}


def test_the_help_has_a_section_for_each_heading() -> None:
    lines = CliRunner().invoke(said, ["--help"]).output.splitlines()
    assert [line for line in lines if line.endswith(":")] == ["Pairs:", "Options:"]
    assert (
        lines.index("Pairs:") < lines.index("  --left INTEGER  The left one.  [default: 1]") < lines.index("Options:")
    )


def test_a_value_that_cannot_be_read_is_wrong_usage() -> None:
    done = CliRunner().invoke(said, ["x", "--right", "nothing"])
    assert done.exit_code == 2 and "Invalid value for '--right'" in done.output


@pytest.mark.parametrize("command", ["train", "replay"])
def test_long_commands_show_sections(command: str) -> None:
    shown = CliRunner().invoke(cli, [command, "--help"]).output
    assert "\nOutput:\n" in shown and "\nRunning:\n" in shown
