"""Gathers options that commands share, as dataclasses, and shows a command's options in sections of its help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

if TYPE_CHECKING:
    from streams.evaluation.held_out import QuestionSettings

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class HeadedOption(click.Option):
    """An option that stands below `heading` in the help."""

    def __init__(self, *names: Any, heading: str, **more: Any) -> None:
        super().__init__(*names, **more)
        self.heading = heading


class SectionedCommand(click.Command):
    """A command whose help has a section for each heading of its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class DescribedGroup(click.Group):
    """A group whose help has the whole first sentence of each command, over several lines where it is long."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        shown = {name: command for name, command in commands.items() if command is not None and not command.hidden}
        rows = [(name, _first_sentence(command.help or "")) for name, command in shown.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    words = " ".join(text.partition("\n\n")[0].split())
    return words.partition(". ")[0].removesuffix(".")


def option(*names: str, **more: Any) -> Any:
    """A field of a class of options: arguments as of `click.option`, but a default that is not empty is shown.

    The name is the field's if none is given.
    """
    return field(metadata={"names": names, "show_default": more.get("default") not in (None, ""), **more})


def options(**kinds: Any) -> Decorator:
    """Options that reach the command as one argument a class: a dataclass of `option` fields with a `heading`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(**given: Any) -> Any:
            for name, kind in kinds.items():
                given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
            return function(**given)

        decorated: Callable[..., Any] = call
        for heading, each in reversed([(kind.heading, each) for kind in kinds.values() for each in fields(kind)]):
            more = dict(each.metadata)
            names = more.pop("names") or (f"--{each.name.replace('_', '-')}",)
            decorated = click.option(*names, each.name, cls=HeadedOption, heading=heading, **more)(decorated)
        return decorated

    return decorate


def checked(read: Callable[[Any], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A reader of an option's value whose ValueError is the user's mistake."""

    def callback(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        try:
            return read(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    return callback


def duration_ms(text: str | None) -> int | None:
    """A length of time in milliseconds; None for none.

    >>> duration_ms("6h")
    21600000

    Raises:
        ValueError: it is no length of time.
    """
    from streams.evaluation.staleness.delays import parse_delay

    found = None if text is None else parse_delay(text).ms
    if text is not None and not found:
        raise ValueError(f"{text!r} is no length of time: give a number with s, m, h or d, as in 6h")
    return found


state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="State folder of a running `perseid up` to talk to, instead of PERSEID_* variables.",
)


@dataclass(frozen=True, slots=True)
class Questions:
    """Which of the events are asked about, and how they are answered."""

    heading: ClassVar = "Questions"
    every: int = option(type=click.IntRange(min=1), default=1, help="Ask at each n-th event.")
    repeats: bool = option(is_flag=True, help="Also ask about items that the user has seen.")
    plain: bool = option(
        is_flag=True, help="Rank by vectors alone: no popularity, promotions or dislikes, whatever models say."
    )

    def settings(self, start_ms: int | None = None) -> QuestionSettings:
        """The same for the evaluators."""
        from streams.evaluation.held_out import QuestionSettings

        return QuestionSettings(start_ms=start_ms, every=self.every, repeats=self.repeats, plain=self.plain)


@dataclass(frozen=True, slots=True)
class RankerArtefacts:
    """What orders lists a second time."""

    heading: ClassVar = "Second stage"
    rankers: tuple[Path, ...] = option(
        "--ranker",
        type=FOLDER,
        multiple=True,
        help="Artefact of train-ranker, for the row two-stage; of several trainings the mean of each question.  "
        "[default: the one beside the model]",
    )


@dataclass(frozen=True, slots=True)
class Texts:
    """Where texts are remembered."""

    heading: ClassVar = "Running"
    texts: Path | None = option(
        type=FILE, help="File that remembers text vectors between runs.  [default: PERSEID_STATE/texts]"
    )


@dataclass(frozen=True, slots=True)
class Running(Texts):
    """What a run may use."""

    threads: int | None = option(
        type=click.IntRange(min=1), help="CPU threads.  [default: OMP_NUM_THREADS, else all cores]"
    )


@dataclass(frozen=True, slots=True)
class Output:
    """How a result is shown."""

    heading: ClassVar = "Output"
    as_json: bool = option("--json", is_flag=True, help="Print one line of JSON instead of tables.")
    report: Path | None = option(type=FILE, help="Also write a page with tables and plots, complete in one file.")
