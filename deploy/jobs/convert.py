"""Turns public data sets and a shop's own tables into data folders.

The sets are maps that come with the package (`deploy/tables/presets`). Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.tables.conversion import convert_tables
from deploy.tables.inputs import list_files
from deploy.tables.maps import ShopMap
from deploy.tables.presets import one_pattern, preset, variant
from deploy.tables.report import Report


def convert(name: str, source: Path, out: Path | None, report: Report | None = None) -> Report:
    """Writes the data set `name` at `source` as a data folder (None: only reports).

    Raises ValueError for an unknown set, and for what is missing, malformed or empty, with its place.
    """
    report = report or Report()
    shop = preset(name)
    given = list_files([source], report)
    alone = source.is_file() and len(given) == 1 and one_pattern(shop)
    shop = shop.of_any_file() if alone else variant(name, given)
    convert_tables(shop, given, given, out, report)
    return report


def convert_table(
    events: Sequence[Path], items: Sequence[Path], shop: ShopMap, out: Path | None, report: Report | None = None
) -> Report:
    """Writes tables of any form as a data folder, by a map; without files of items they are those of the events."""
    report = report or Report()
    of_events = list_files(events, report)
    convert_tables(shop, of_events, list_files(items, report) if items else of_events, out, report)
    return report
