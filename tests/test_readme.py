"""The README's tree repeats the first line of every module, so neither can drift from the other.

`python -m tests.test_readme` prints the tree as it has to stand in the README.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("streams", "encoder", "index", "context", "deploy")
WIDTH = 24


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring, up to its first colon or full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = " ".join(text.split("\n\n")[0].split())
    return line.split(". ")[0].rstrip(".")


def tree() -> str:
    """One line per module."""
    lines = []
    for package in PACKAGES:
        lines.append(f"{package}/".ljust(WIDTH) + first_sentence(ROOT / package / "__init__.py"))
        for path in sorted((ROOT / package).glob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"  {path.name}".ljust(WIDTH) + first_sentence(path))
    return "\n".join(lines)


def test_the_readme_shows_the_tree_as_it_is() -> None:
    assert tree() in (ROOT / "README.md").read_text(), "run: python -m tests.test_readme, and put it into the README"


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path) for package in PACKAGES for path in (ROOT / package).glob("*.py") if not first_sentence(path)]
    assert silent == []


if __name__ == "__main__":
    print(tree())
