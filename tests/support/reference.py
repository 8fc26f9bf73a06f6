"""Writes the generated parts of the documentation: settings, commands, and the tree of sub-packages.

`python -m tests.support.reference` rewrites them; `tests/test_docs.py` fails where a page is not what this gives.
Options stand in the sections that `--help` shows, whatever a command does to group them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from deploy.cli import cli
from deploy.settings import table

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SETTINGS, COMMANDS, ARCHITECTURE = DOCS / "settings.md", DOCS / "commands.md", DOCS / "architecture.md"
REMEDY = "run: python -m tests.support.reference"
PACKAGES = ("streams", "encoder", "index", "context", "deploy")
_TREE = re.compile(r"(?<=<!-- tree -->\n).*?(?=<!-- /tree -->)", re.DOTALL)
_CODE = re.compile(r"(`[^`]*`)")
_COLUMN = 24  # where the sentences of the tree begin

_SETTINGS_INTRO = """\
# Settings

Every setting is an environment variable `PERSEID_<NAME>`. All of them have a default. An unknown name is an error that
names the nearest known one, and a bad value is refused with what is expected. Values of secrets are never shown.

A running `perseid up` writes its settings into `up.env` of its state folder, readable by its user only. Commands with
`--state FOLDER` read them from there, and variables of the environment win over that file. Roles in parentheses are
those that read a setting.

This page is generated.

"""
_COMMANDS_INTRO = """\
# Commands

Settings come from `PERSEID_*` variables ([settings.md](settings.md)), or with `--state` from a running `perseid up`.
[operations.md](operations.md) shows the servers and roles at work, [training.md](training.md) the way from topics to a
measured model. Exit statuses are 0 for done, 1 for refused or failed, 2 for wrong usage and 130 for interrupted.

This page is generated from the commands themselves.

"""


def settings_page() -> str:
    """docs/settings.md."""
    return f"{_SETTINGS_INTRO}{table()}\n"


def commands_page() -> str:
    """docs/commands.md: a list of all commands, then each with its usage, options and example."""
    with click.Context(cli, info_name="perseid") as root:
        contexts = [context for context in walk(root) if context is not root]
        listed = [f"| [`{c.command_path}`](#{anchor(c.command_path)}) | {_first_line(c.command)} |" for c in contexts]
        parts = ["\n".join(["| command | what it does |", "|---|---|", *listed]), *map(section, contexts)]
    return _COMMANDS_INTRO + "\n\n".join(parts) + "\n"


def architecture_page(present: str) -> str:
    """docs/architecture.md with the tree as it is; the rest stays as it was."""
    return _TREE.sub(lambda _: f"```\n{tree()}\n```\n", present)


def tree() -> str:
    """One line for each package and sub-package: its place and the first sentence of its docstring."""
    lines = []
    for folder in packages():
        depth = len(folder.relative_to(ROOT).parts) - 1
        lines.append(f"{'  ' * depth}{folder.name}/".ljust(_COLUMN) + first_sentence(folder / "__init__.py"))
    return "\n".join(lines)


def packages() -> Iterator[Path]:
    """The folders of all product packages and sub-packages, parents first."""
    for package in PACKAGES:
        yield from sorted(path.parent for path in (ROOT / package).rglob("__init__.py"))


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def walk(context: click.Context) -> Iterator[click.Context]:
    """A context for the command and for each one below it that is not hidden."""
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                yield from walk(click.Context(command, info_name=name, parent=context))


def anchor(heading: str) -> str:
    """The #anchor that GitHub gives a heading.

    >>> anchor("## `perseid up`: a start")
    'perseid-up-a-start'
    """
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


class _Recorder(click.HelpFormatter):
    """Keeps the definition lists that a command writes into its help, by the heading above them."""

    def __init__(self) -> None:
        super().__init__(width=120)
        self.heading = ""
        self.lists: list[tuple[str, list[tuple[str, str]]]] = []

    def write_heading(self, heading: str) -> None:
        self.heading = heading

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        self.lists.append((self.heading, list(rows)))


def section(context: click.Context) -> str:
    """One command: what it does, usage and example, and a table for each list of options in its help."""
    command, recorder = context.command, _Recorder()
    paragraphs = _paragraphs(command)
    examples = [text.removeprefix("Example:").strip() for text in paragraphs if text.startswith("Example:")]
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    code = "\n\n".join([usage, *examples])
    command.format_options(context, recorder)
    shown = [_text(text) for text in paragraphs if not text.startswith("Example:")]
    lists = [_table(heading, rows) for heading, rows in recorder.lists]
    return "\n\n".join([f"## `{context.command_path}`", *shown, f"```sh\n{code}\n```", *filter(None, lists)])


def _table(heading: str, rows: Sequence[tuple[str, str]]) -> str:
    name = {"Options": "option", "Commands": "command"}.get(heading, heading)
    shown = [
        f"| `{left.replace('|', chr(92) + '|')}` | {_text(right)} |" for left, right in rows if "--help" not in left
    ]
    return "\n".join([f"| {name} | meaning |", "|---|---|", *shown]) if shown else ""


def _paragraphs(command: click.Command) -> list[str]:
    return [" ".join(part.replace("\b", "").split()) for part in (command.help or "").split("\n\n")]


def _first_line(command: click.Command) -> str:
    return _text(_paragraphs(command)[0].split(". ")[0].split(": ")[0].rstrip(".") + ".")


def _text(words: str) -> str:
    """Help as Markdown: what Markdown would take for markup is escaped, except in code."""
    parts = _CODE.split(" ".join(words.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([<*|])", r"\\\1", part) for part in parts)


def main() -> None:
    """Rewrites all pages."""
    SETTINGS.write_text(settings_page(), "utf-8")
    COMMANDS.write_text(commands_page(), "utf-8")
    ARCHITECTURE.write_text(architecture_page(ARCHITECTURE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
