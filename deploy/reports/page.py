"""Builds a page complete in one file, with style, headings, tables, charts, and the result itself as JSON.

It asks nothing of any network, is readable on a phone, and follows the reader's choice of light or dark. Text given to
it is escaped, HTML from `deploy.reports.charts` is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import orjson

_STYLE = resources.files("deploy.reports").joinpath("page.css").read_text("utf-8")

Cell = str | tuple[str, str]  # shown, or shown with something smaller below it


def page(title: str, sections: Sequence[str], result: Mapping[str, Any]) -> str:
    """The whole document."""
    data = escape(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'{"".join(sections)}<details><summary>The result as JSON</summary><pre id="result">{data}</pre></details>'
        "</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, note: bool = False) -> str:
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """First column to the left, all others numbers."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def facts_table(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    body = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts"><tbody>{body}</tbody></table>'


def charts(figures: Sequence[str]) -> str:
    """Charts beside each other where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    return f'{escape(cell[0])}<span class="of">{escape(cell[1])}</span>'
