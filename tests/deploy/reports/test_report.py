"""Reports: well formed, complete in one file, safe with any text, and with the numbers that were measured."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import orjson
import pytest

from deploy.reports.charts import Mark, Series, _ticks, dot_chart, line_chart
from deploy.reports.page import page, table
from deploy.reports.report import write_report
from deploy.reports.run_facts import RunFacts, hardware, software
from streams.evaluation.comparison import Comparison
from streams.evaluation.slices import Facts

FACTS = RunFacts("perseid evaluate shop", datetime(2026, 1, 2, 3, 4, tzinfo=UTC))
VOID = {"meta", "br"}


class Tags(HTMLParser):
    """Checks that elements are closed in order, and notes attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def measured(name: str = "ours") -> dict[str, Any]:
    comparison = Comparison((name,), ("popular",), (1, 10))
    for number in range(30):
        facts = Facts(f"u{number % 7}", number, category=f"<b>{number % 3}</b>")
        comparison.add({name: ["a", "b"], "popular": ["b", "c"]}, {"a" if number % 2 else "b"}, facts)
    return {"data": "shop", "model": "m-1", **comparison.result(9)}


def written(tmp_path: Path, kind: str, result: dict[str, Any]) -> str:
    write_report(tmp_path / "deep" / "page.html", kind, result, FACTS)
    return (tmp_path / "deep" / "page.html").read_text()


def test_a_page_is_well_formed_and_asks_nothing_of_a_network(tmp_path: Path) -> None:
    text = written(tmp_path, "evaluate", measured())
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.links == []
    assert not re.search(r"https?:|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    for picture in re.findall(r"<svg.*?</svg>", text):
        ElementTree.fromstring(picture)
    assert list(tmp_path.joinpath("deep").iterdir()) == [tmp_path / "deep" / "page.html"]


def test_a_page_holds_the_result_and_how_to_repeat_it(tmp_path: Path) -> None:
    result = measured("</script><script>alert(1)</script>")
    text = written(tmp_path, "evaluate", result)
    found = re.search(r'<pre id="result">(.*?)</pre>', text, re.DOTALL)
    assert found is not None
    data = orjson.loads(unescape(found[1]))
    assert data["result"] == orjson.loads(orjson.dumps(result)) and data["report"] == "evaluate"
    assert data["run"]["command"] == "perseid evaluate shop" and data["run"]["started"] == "2026-01-02 03:04 UTC"
    assert "<script" not in text and "<b>" not in text
    row = result["lists"]["popular"]
    assert f"{row['recall@1']:.4f}" in text and f"{row['coverage@10']:.4f}" in text


def test_hardware_and_software_are_named() -> None:
    assert re.search(r"\d+ cores, \d+ GiB", hardware())
    assert "python 3." in software() and "numpy " in software() and "unknown" not in software()


def test_no_question_is_said_and_an_unknown_kind_refused(tmp_path: Path) -> None:
    nothing = {"data": "shop", "model": "m", **Comparison(("ours",), (), (1,)).result(3)}
    assert "No question was asked" in written(tmp_path, "evaluate", nothing)
    with pytest.raises(ValueError, match="no report of 'train'"):
        write_report(tmp_path / "x.html", "train", nothing, FACTS)


def test_leave_one_out_has_a_page_too(tmp_path: Path) -> None:
    row = {"recall@10": 0.25, "ndcg@10": 0.125, "coverage@10": 0.5}
    result = {"data": "shop", "model": "m", "users": 4, "catalogue": 8, "list": "next", "metrics": row}
    result |= {"lists": {"next": row, "mixed": row}, "intervals": {"next": {"ndcg@10": [0.0625, 0.1875]}}}
    text = written(tmp_path, "evaluate", result)
    assert "0.1250" in text and "0.1875" in text


def test_a_delay_that_changes_nothing_is_said_in_words(tmp_path: Path) -> None:
    def point(delay: str, mean: float) -> dict[str, Any]:
        metrics = {f"{name}@10": 0.2 + mean for name in ("recall", "ndcg", "mrr", "coverage")}
        bounds = {name: [value - 0.1, value + 0.1] for name, value in metrics.items() if "coverage" not in name}
        gap = {"mean": mean, "interval": [mean - 0.01, mean + 0.01], "p": 0.0001}
        return {"delay": delay, "metrics": metrics, "intervals": bounds,
                "differences": {"recall@10": gap, "ndcg@10": gap} if delay != "0" else {}}  # fmt: skip

    parts = {"user": {"mixed": [point("0", 0), point("daily", -0.05)]},
             "context": {"mixed": [point("0", 0), point("daily", 0)]}}  # fmt: skip
    shared = {"questions": 9, "users": 3, "catalogue": 5, "k": 10, "resamples": 10, "seed": 0}
    text = written(tmp_path, "staleness", {"data": "shop", "model": "m", **shared, "parts": parts})
    assert "No delay changed any list: context." in text
    assert "-0.0500 (-25%)" in text and "&lt;.001" in text and text.count("<polyline") == 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.09, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]), (-0.03, 0.01, [-0.03, -0.02, -0.01, 0.0, 0.01]), (0, 0, [0])],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    found = _ticks(low, high)
    assert found[: len(expected)] == pytest.approx(expected) and found[0] <= low and found[-1] >= high


def test_every_mark_lies_in_its_picture() -> None:
    marks = [Mark(0.3, 0.1, 0.9), Mark(0.0), Mark(math.nan), Mark(-0.2, -0.4, 0.1)]
    series = [Series(name, marks) for name in ("a", "b", "c")]
    charts = [dot_chart("t", ["r1", "r2", "r3", "r4"], series, signed=True),
              line_chart("t", ["0", "1s"], [Series("a", [Mark(0.5, 0.4, 0.6), Mark(0.0)])]),
              line_chart("t", ["0"], [Series("a", [Mark(0.0)])])]  # fmt: skip
    for chart in charts:
        svg = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", chart)[0])
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        circles = list(svg.iter("circle"))
        assert circles
        for circle in circles:
            assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height
    assert len(re.findall("<circle", charts[0])) == 9  # a mark that is no number is left out


def test_text_is_escaped() -> None:
    assert "<i>" not in page("<i>", [table(["<i>"], [[("<i>", "<i>")]])], {})
