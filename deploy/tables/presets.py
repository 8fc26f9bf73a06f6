"""Finds the maps of public data sets and exports that come with the package.

A name stands for its variants too (`movielens-1m` of `movielens`): the first whose files are there is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources

from deploy.tables.inputs import TableFile, files_of
from deploy.tables.maps import ShopMap, TableMap, read_map


def preset_names() -> list[str]:
    """All of them."""
    folder = resources.files("deploy.tables") / "presets"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def preset(name: str) -> ShopMap:
    """One by its name. Raises ValueError for an unknown one."""
    names = preset_names()
    if name not in names:
        raise ValueError(f"unknown format {name!r}; known are {', '.join(names)}")
    text = (resources.files("deploy.tables") / "presets" / f"{name}.toml").read_text("utf-8")
    return read_map(text, name)


def variant(name: str, given: Sequence[TableFile]) -> ShopMap:
    """The preset, or the first of its variants whose files are all given. Raises ValueError that says what lacks."""
    for other in [name, *(each for each in preset_names() if each.startswith(f"{name}-"))]:
        shop = preset(other)
        if not list(_lacking(shop, given)):
            return shop
    shop = preset(name)
    raise ValueError(f"{name} needs {' and '.join(_lacking(shop, given))}, which is not there. {shop.about}")


def _lacking(shop: ShopMap, given: Sequence[TableFile]) -> Iterator[str]:
    for table in [*shop.events, *shop.items]:
        for each in (table, *table.join):
            if not each.optional and not files_of(each, given):
                yield " or ".join(each.files)


def one_pattern(shop: ShopMap) -> bool:
    """Whether all its tables are made of the same files, so that a single one may have any name."""

    def patterns(table: TableMap) -> list[tuple[str, ...]]:
        return [table.files, *(each for other in table.join for each in patterns(other))]

    return len({each for table in [*shop.events, *shop.items] for each in patterns(table)}) == 1
