"""The arrangement as a test: order of sub-packages, sizes of folders and files, and names that mean one thing.

Reads the code as text (AST). `tests/test_layers.py` has the rules between the five packages.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("streams", "encoder", "index", "context", "deploy")
# Who may import whom inside a package: only what stands further left. Sub-packages of one set do not import each other.
ORDER: dict[str, tuple[set[str], ...]] = {
    "streams": ({"pipeline"}, {"attribution", "folder"}, {"kafka"}, {"ranking"}, {"evaluation"}, {"replay"}),
    "encoder": ({"model"}, {"inference"}, {"training"}, {"ranking", "baselines"}),  # `text` stands apart
    "index": ({"state"}, {"items", "results"}, {"ranking"}, {"query"}, {"elastic"}, {"api"}),
    "deploy": (
        {"runtime", "servers", "shop", "tables"},
        {"reports", "stack", "models"},
        {"traffic"},
        {"texts"},
        {"jobs"},
        {"roles", "console"},
        {"doctor"},
        {"local"},
        {"commands"},
    ),
}
APART = {"encoder": {"text"}}  # imports no sibling and is imported by none of `ORDER`
MOST_MODULES = 15
MOST_LINES = 400
MOST_DOCSTRING_WORDS = 60
MOST_README_LINES = 180
UNIT = re.compile(r"^_?(MS|SECOND|MINUTE|HOUR|DAY|WEEK|MONTH|YEAR)S?(_MS|_S|_SECONDS)?$")
DOCUMENTED = {"_replace", "_asdict", "_fields", "_exit"}  # of named tuples and `os`: public in spite of their names
PRIVATE_ACCESS = "streams/kafka/consumer.py"  # the one file that reaches into Faust and aiokafka


@lru_cache
def modules() -> list[Path]:
    return [p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))]


@lru_cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def place_of(dotted: str) -> str | None:
    """The sub-package, or the module in a package's root, that a dotted name lies in."""
    parts = dotted.split(".")
    if len(parts) < 2 or parts[0] not in PACKAGES:
        return None
    at = ROOT / parts[0] / parts[1]
    return f"{parts[0]}.{parts[1]}" if at.is_dir() or at.with_suffix(".py").exists() else None


@lru_cache
def arrows() -> dict[str, set[str]]:
    """Sub-package or root module → those of the same package that it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        here = place_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for there in {place_of(dotted) for dotted in imports(path)} - {None, here}:
            if here and there and here.split(".")[0] == there.split(".")[0]:
                found[here].add(there)
    return found


def rank(place: str) -> int | None:
    package, _, name = place.partition(".")
    return next((n for n, level in enumerate(ORDER.get(package, ())) if name in level), None)


def test_every_sub_package_has_its_place_in_the_order() -> None:
    there = {f"{p.relative_to(ROOT).parts[0]}.{p.name}" for k in PACKAGES for p in (ROOT / k).iterdir() if has_code(p)}
    named = {f"{package}.{name}" for package, levels in ORDER.items() for level in levels for name in level}
    named |= {f"{package}.{name}" for package, names in APART.items() for name in names}
    assert there == named


def has_code(path: Path) -> bool:
    return path.is_dir() and (path / "__init__.py").exists()


def test_sub_packages_import_only_what_comes_before_them() -> None:
    wrong = []
    for here, others in arrows().items():
        package, _, name = here.partition(".")
        for there in others:
            apart = APART.get(package, set())
            if name in apart or there.partition(".")[2] in apart:
                wrong.append(f"{here} imports {there}, one of which stands apart")
            mine, theirs = rank(here), rank(there)
            if mine is not None and theirs is not None and theirs >= mine:
                wrong.append(f"{here} imports {there}, which comes after it")
    assert wrong == []


def test_sub_packages_and_root_modules_import_each_other_in_no_circle() -> None:
    left = {here: set(others) for here, others in arrows().items()}
    while free := {place for others in left.values() for place in others} - set(left):
        left = {here: rest for here, others in left.items() if (rest := others - free)}
    assert left == {}, "these import each other in a circle"


def imported_at_once(path: Path) -> Iterator[str]:
    """Modules of ours that are imported when `path` is, not inside a function or for types alone."""
    for node in tree_of(path).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            here = node.module.replace(".", "/")
            yield f"{here}.py"
            yield from (f"{here}/{alias.name}.py" for alias in node.names)


def test_modules_import_each_other_in_no_circle() -> None:
    ours = {name_of(path) for path in modules()}
    left = {name_of(path): set(imported_at_once(path)) & ours for path in modules()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert sorted(left) == [], "these, or what they import, import each other in a circle"


def test_no_folder_is_crowded_and_no_module_is_long() -> None:
    folders: dict[str, int] = defaultdict(int)
    for path in modules():
        folders[name_of(path.parent)] += path.name != "__init__.py"
    assert {name: count for name, count in folders.items() if count > MOST_MODULES} == {}
    long = {name_of(path): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > MOST_LINES} == {}


def test_no_file_repeats_its_folder_and_no_three_siblings_share_a_first_word() -> None:
    wrong = []
    for folder, paths in groupby(modules(), key=lambda path: path.parent):
        stems = [path.stem for path in paths if path.name != "__init__.py"]
        wrong += [f"{name_of(folder)}/{stem}.py" for stem in stems if stem.startswith(f"{folder.name}_")]
        words: dict[str, list[str]] = defaultdict(list)
        for stem in stems:
            words[stem.split("_")[0]].append(stem)
        wrong += [f"{name_of(folder)}: {family}" for family in words.values() if len(family) > 2]
    assert wrong == []


def test_a_class_name_exists_once() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].add(name_of(path))
    assert {name: sorted(found) for name, found in places.items() if len(found) > 1} == {}


def test_a_unit_of_time_is_assigned_once() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in modules():
        for node in tree_of(path).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            for target in targets:
                if isinstance(target, ast.Name) and UNIT.match(target.id):
                    places[target.id.lstrip("_")].add(name_of(path))
    # `encoder` and `context` import nothing of ours, so each may have its own.
    lower = ("encoder/", "context/")
    wrong = {name: [at for at in found if not at.startswith(lower)] for name, found in places.items()}
    assert {name: sorted(found) for name, found in wrong.items() if len(found) > 1} == {}


@lru_cache
def own_private_names() -> frozenset[str]:
    """Names with an underscore that the product itself defines."""
    found = set()
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(name for name in found if name.startswith("_"))


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in {"self", "cls"}


def test_private_attributes_of_third_parties_are_touched_in_one_file() -> None:
    wrong = []
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
                continue
            if node.attr not in own_private_names() | DOCUMENTED and name_of(path) != PRIVATE_ACCESS:
                wrong.append(f"{name_of(path)}:{node.lineno} {node.attr}")
    assert wrong == []


def docstring_faults(path: Path) -> Iterator[str]:
    text = ast.get_docstring(tree_of(path)) or ""
    if not text:
        yield "has no docstring"
        return
    if len(text.split()) > MOST_DOCSTRING_WORDS:
        yield f"has a docstring of {len(text.split())} words"
    first = " ".join(text.split("\n\n")[0].split())
    if re.search(r":(\s|$)", first.split(". ")[0]):
        yield "begins with a colon in its first sentence"
    if "TODO" in text or not first.endswith((".", ".)")):
        yield "does not begin with a sentence"


@pytest.mark.parametrize("package", PACKAGES)
def test_module_docstrings_are_short_and_plain(package: str) -> None:
    wrong = [
        f"{name_of(path)} {fault}"
        for path in modules()
        if path.relative_to(ROOT).parts[0] == package
        for fault in docstring_faults(path)
    ]
    assert wrong == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_README_LINES
