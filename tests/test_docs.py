"""Documentation that cannot drift: generated pages, links, and every command, setting, call and field it names."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import click
import pytest
from prometheus_client import CollectorRegistry

from deploy.cli import cli
from deploy.settings import PREFIX, Settings
from index.api.app import create_app
from index.api.metrics import ApiMetrics
from index.api.schemas.records import BODIES
from index.api.settings import ApiSettings, KafkaSide
from index.state.memory_store import MemoryStore
from tests.support.reference import (
    ARCHITECTURE,
    COMMANDS,
    DOCS,
    PACKAGES,
    REMEDY,
    ROOT,
    SETTINGS,
    anchor,
    architecture_page,
    commands_page,
    first_sentence,
    packages,
    section,
    settings_page,
)

README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```(?:sh|bash|console)$(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_OUTSIDE = ("http:", "https:", "mailto:")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_settings_page_holds_every_setting() -> None:
    assert SETTINGS.read_text("utf-8") == settings_page(), REMEDY


def test_the_commands_page_is_what_the_commands_say() -> None:
    assert COMMANDS.read_text("utf-8") == commands_page(), REMEDY


class _Grouped(click.Command):
    """Writes its options in two lists, as commands do that group them."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, option in zip(("Data", "Answers"), self.params, strict=True):
            with formatter.section(heading):
                formatter.write_dl([row for row in [option.get_help_record(ctx)] if row is not None])


def test_options_stand_in_the_groups_of_the_help() -> None:
    options: list[click.Parameter] = [
        click.Option(["--split"], help="A share <= 1."),
        click.Option(["--list"], type=click.Choice(["next", "mixed"])),
    ]
    command = _Grouped("measure", params=options, help="Measure.\n\nExample: measure --split 0.8")
    lines = section(click.Context(command, info_name="measure")).splitlines()
    assert lines[:3] == ["## `measure`", "", "Measure."]
    assert "measure --split 0.8" in lines
    data, answers = lines.index("| Data | meaning |"), lines.index("| Answers | meaning |")
    assert lines[data + 2] == r"| `--split TEXT` | A share \<= 1. |"
    assert lines[answers + 2] == r"| `--list [next\|mixed]` |  |"


def test_the_tree_is_what_the_packages_say() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    assert text.count("<!-- tree -->") == text.count("<!-- /tree -->") == 1
    assert text == architecture_page(text), REMEDY


@pytest.mark.parametrize("folder", list(packages()), ids=_name)
def test_every_package_says_in_one_sentence_what_it_is(folder: Path) -> None:
    sentence = first_sentence(folder / "__init__.py")
    assert 20 <= len(sentence) <= 110, sentence
    assert ":" not in sentence


def test_every_module_says_what_it_is_for() -> None:
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(modules) > 100
    assert [_name(path) for path in modules if not first_sentence(path)] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 180


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCED.sub("", page.read_text("utf-8"))
    targets = [target for target in _LINK.findall(_INLINE.sub("", text)) if not target.startswith(_OUTSIDE)]
    assert [target for target in targets if not _leads_somewhere(page, target)] == []


def _leads_somewhere(page: Path, target: str) -> bool:
    name, _, heading = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.exists():
        return False
    return not heading or heading in _anchors(file)


def _anchors(page: Path) -> set[str]:
    lines = _FENCED.sub("", page.read_text("utf-8")).splitlines()
    return {anchor(line) for line in lines if line.startswith("#")}


def test_a_link_to_nowhere_is_noticed() -> None:
    assert _leads_somewhere(README, "docs/commands.md#perseid-up")
    assert not _leads_somewhere(README, "docs/commands.md#perseid-down")
    assert not _leads_somewhere(README, "docs/no-such-page.md")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_options_exist(page: Path) -> None:
    wrong = [f"{line}: {what}" for line in _command_lines(page.read_text("utf-8")) if (what := _wrong_in(line))]
    assert wrong == []


def _command_lines(text: str) -> Iterator[str]:
    """Command lines that begin with `perseid`, from shell blocks and from inline code."""
    blocks = "\n".join(_SHELL.findall(text)).replace("\\\n", " ")
    inline = " ".join(_FENCED.sub("", text).split())
    for line in (*blocks.splitlines(), *re.findall(r"`(perseid [^`]+)`", inline)):
        words = re.split(r"(?:^|[\s(])(?:[\w./]*/)?perseid(?=\s)", line.partition(" # ")[0])
        for rest in words[1:]:
            yield re.split(r"&&|;|\||\)|\"\s", rest)[0].strip()


def _wrong_in(line: str) -> str:
    """What a command line names that does not exist, "" when all of it does."""
    command: click.Command = cli
    context = click.Context(cli, info_name="perseid")
    for word in shlex.split(line.replace("'", "").replace('"', "")):
        if word.startswith("-") and word.strip("-"):
            known = {name for option in command.get_params(context) for name in (*option.opts, *option.secondary_opts)}
            if word.partition("=")[0] not in known:
                return f"{command.name} has no option {word}"
        elif isinstance(command, click.Group):
            found = command.get_command(context, word)
            if found is None and not word.isupper() and word not in ("…", "[OPTIONS]"):
                return f"{command.name} has no command {word!r}"
            if found is not None:
                command = found
    return ""


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("up --data ml_latest_small --no-traffic", ""),
        ("up --quickly", "up has no option --quickly"),
        ("fly", "cli has no command 'fly'"),
        ("stack up --without redis", ""),
        ("stack fly", "stack has no command 'fly'"),
        ("replay --offsets 'clickstream[3]:1200-5000' --state-only", ""),
    ],
)
def test_a_wrong_command_line_is_noticed(line: str, wrong: str) -> None:
    assert _wrong_in(line) == wrong


def test_command_lines_are_found_in_blocks_and_in_text() -> None:
    text = 'a `perseid doctor --json` b\n\n```sh\n.venv/bin/perseid stack up && eval "$(perseid stack env)"  # x\n```\n'
    assert list(_command_lines(text)) == ["stack up", "stack env", "doctor --json"]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_settings_exist(page: Path) -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"PERSEID_[A-Z_]+\*?", page.read_text("utf-8"))) - {"PERSEID_", "PERSEID_*"}
    prefixes = {name.rstrip("*") for name in named if name.endswith(("*", "_"))}
    assert {name for name in named if not name.endswith(("*", "_"))} <= known
    assert all(any(name.startswith(prefix) for name in known) for prefix in prefixes)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_modules_that_are_run_exist(page: Path) -> None:
    named = re.findall(r"python -m (tests(?:\.\w+)+)", page.read_text("utf-8"))
    places = [ROOT.joinpath(*name.split(".")) for name in named]
    assert [place for place in places if not place.is_dir() and not place.with_suffix(".py").is_file()] == []


async def _never(*_: object) -> tuple[int, int]:
    raise NotImplementedError


def test_the_api_page_has_every_call_and_no_other() -> None:
    side = KafkaSide(lambda topic, body: (b"", b""), _never, lambda *_: None)
    app = create_app(MemoryStore(), ApiSettings(), side, ApiMetrics(CollectorRegistry()))
    calls = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    calls = {call for call in calls if not call.startswith("HEAD")}  # of the probes, which the page says in a sentence
    documented = set(re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`?]*)", (DOCS / "api.md").read_text("utf-8")))
    assert documented == calls


def test_the_topics_page_has_every_field_that_may_be_posted() -> None:
    text = (DOCS / "topics.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    missing = [
        f"{topic}.{name}"
        for topic, body in BODIES.items()
        for name in body.model_fields
        if not re.search(rf"`{name}(\[\]|\{{\}})?`", rows[topic])
    ]
    assert missing == []


_STEP = re.compile(r"`([a-z_/]+\.(?:py|lua))(?::([\w.]+))?`")
WALKS = {"click": 18, "query": 18, "item": 20}  # the most files that each crosses


def _walk(name: str) -> list[tuple[str, str]]:
    """(file, function) of each step of a walk in docs/architecture.md; no function where a whole file is meant."""
    page = ARCHITECTURE.read_text("utf-8")
    return _STEP.findall(page.partition(f"<!-- walk:{name} -->")[2].partition(f"<!-- /walk:{name} -->")[0])


def _defined(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            functions = (part for part in node.body if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)))
            found |= {f"{node.name}.{part.name}" for part in functions}
    return found


@pytest.mark.parametrize("name", WALKS)
def test_each_step_of_a_walk_is_taken_by_a_function_that_exists(name: str) -> None:
    steps = _walk(name)
    assert len(steps) > 10
    gone = [f"{file}:{function}" for file, function in steps if not (ROOT / file).exists()]
    gone += [f"{file}:{what}" for file, what in steps if what and what not in _defined(ROOT / file)]
    assert gone == []


@pytest.mark.parametrize("name", WALKS)
def test_a_walk_crosses_few_files_and_comes_back_to_none_too_often(name: str) -> None:
    entered = [file for file, _ in groupby(_walk(name), key=lambda step: step[0])]
    assert len(set(entered)) <= WALKS[name]
    assert {file: count for file, count in Counter(entered).items() if count > 3} == {}
