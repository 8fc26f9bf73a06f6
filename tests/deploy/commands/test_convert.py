"""`perseid convert` as it is typed: its help, a dry run, and one clear line where something is wrong."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from deploy.cli import run
from deploy.tables.presets import preset_names

MAP = """
[events.fields]
user_id = "user"
item_id = "item"
kind = { constant = "view" }
time = "time"
"""


@pytest.fixture
def shop(tmp_path: Path) -> list[str]:
    """The arguments that name events and map."""
    (tmp_path / "events.csv").write_text("user,item,time\nu,i,1600000000\n,i,1600000001\n")
    (tmp_path / "shop.toml").write_text(MAP)
    return ["--events", str(tmp_path / "events.csv"), "--map", str(tmp_path / "shop.toml")]


def test_a_table_becomes_a_folder_and_the_last_line_is_json(
    tmp_path: Path, shop: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", "table", *shop, str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    first = f"{tmp_path / 'events.csv'} line 3"
    assert orjson.loads(shown.out) == {
        "events": 1,
        "items": 1,
        "left_out": {"no user": {"count": 1, "first": first}},
        "without_record": {"events": 0, "items": 0, "first": ""},
    }
    assert f"left out: 1 x no user (first: {first})" in shown.err.splitlines()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["events.csv.gz", "items.jsonl.gz"]


def test_a_dry_run_shows_the_first_rows(tmp_path: Path, shop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "table", *shop, "--dry-run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "first events:" and orjson.loads(shown[1])["user_id"] == "u"
    assert orjson.loads(shown[1])["timestamp"] == "1600000000 (2020-09-13 12:26:40 UTC)", "a wrong zone is seen here"
    assert shown[2] == "first items:" and orjson.loads(shown[3]) == {"item_id": "i"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv", "shop.toml"]


def test_without_a_map_one_is_printed(shop: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "table", *shop[:2]]) == 0
    shown = capsys.readouterr().out
    assert 'user_id = "user"' in shown and "All words of a map" in shown


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["convert", "netflix", ".", "out"], 2, "No such command 'netflix'"),
        (["convert", "movielens", "."], 2, "OUT, the data folder to write, is missing"),
        (["convert", "table", "--events", "nowhere.csv", "--map", "shop.toml", "out"], 1, "nowhere.csv does not exist"),
        (["convert", "movielens", ".", "out"], 1, "movielens needs ratings.csv and movies.csv, which is not there"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    shop: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table", *preset_names()])
def test_every_format_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", name, "--help"]) == 0
    assert f"Example: perseid convert {name} " in " ".join(capsys.readouterr().out.split())
