"""A page complete in one file: style, headings, tables, charts, and the result itself as JSON.

Asks nothing of any network, is readable on a phone, and follows the reader's choice of light or dark. It does not know
what it shows; text given to it is escaped, HTML from `deploy.reports.charts` is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import orjson

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6470; --line: #dde1e6; --back: #fff; --panel: #f6f7f9;
  --c0: #1f6fd1; --c1: #c2500a; --c2: #7a5195; --c3: #1a8a5a; --c4: #b3245a; --c5: #6b6f19; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3acb8; --line: #363c45; --back: #15181c;
  --panel: #1d2126; --c0: #6fb0ff; --c1: #ff9d57; --c2: #c9a2e8; --c3: #5fd3a0; --c4: #ff86ac; --c5: #d3d76a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; color: var(--ink); background: var(--back);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; } .note { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--soft); font-weight: 600; }
td .of { display: block; color: var(--soft); font-size: .78rem; }
table.facts { white-space: normal; } table.facts td { text-align: left; overflow-wrap: anywhere; vertical-align: top; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
figure { margin: .6rem 0; padding: .7rem .8rem; background: var(--panel); border-radius: 8px; min-width: 0; }
figcaption { font-weight: 600; font-size: .92rem; margin-bottom: .3rem; }
svg { width: 100%; height: auto; max-width: 44rem; display: block; font: 11px system-ui, sans-serif; }
svg text { fill: var(--soft); } .grid { stroke: var(--line); } .zero { stroke: var(--soft); }
.line { fill: none; stroke: var(--c); stroke-width: 2; } .mark line { stroke: var(--c); stroke-width: 1.4; }
.mark circle { fill: var(--c); }
.keys { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .82rem; margin-top: .3rem; }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em;
  background: var(--c); }
.s0 { --c: var(--c0); } .s1 { --c: var(--c1); } .s2 { --c: var(--c2); }
.s3 { --c: var(--c3); } .s4 { --c: var(--c4); } .s5 { --c: var(--c5); }
details { margin-top: 2rem; } pre { overflow: auto; max-height: 24rem; background: var(--panel); padding: .8rem;
  font-size: .78rem; border-radius: 8px; }
"""

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
