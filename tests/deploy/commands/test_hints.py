"""What a newcomer is told: whole sentences in the overview, where a `perseid up` runs, and what to do without Kafka."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from deploy.cli import COMMANDS, cli
from deploy.runtime.producer import DeliveryError
from deploy.settings import load
from deploy.state_folder import running_near, write_addresses
from streams.evaluation.tables import verdict


@pytest.mark.parametrize("group", [[], ["evaluate"], ["stack"]])
def test_no_description_is_cut(group: list[str]) -> None:
    shown = CliRunner().invoke(cli, [*group, "--help"]).output
    assert "Commands:" in shown and "..." not in shown.partition("Commands:")[2]
    assert max(map(len, shown.splitlines())) <= 80
    if not group:
        words = " ".join(shown.split())
        assert len(COMMANDS) > 10 and "worker, embed, API, console and traffic" in words and "in force" not in words


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The usual state folder, in which a `perseid up` runs."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PERSEID_")]:
        monkeypatch.delenv(name)
    Path(".perseid").mkdir()
    write_addresses(Path(".perseid"), load({"PERSEID_KAFKA": "localhost:1"}))
    return Path(".perseid")


def test_a_running_up_is_found_unless_another_kafka_is_named(running: Path) -> None:
    assert running_near({}) == running
    assert running_near({"PERSEID_KAFKA": "kafka:9092"}) is None
    (running / "up.env").unlink()
    assert running_near({}) is None


def test_produce_without_a_broker_says_what_to_do(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any, **__: Any) -> None:
        raise DeliveryError("clickstream: Local: Message timed out")

    monkeypatch.setattr("deploy.jobs.produce.produce", refused)

    def said() -> str:
        return str(CliRunner().invoke(cli, ["produce", "--topic", "clickstream", os.devnull]).exception)

    assert said() == "clickstream: Local: Message timed out; add --state .perseid, where a `perseid up` runs"
    (running / "up.env").unlink()
    assert said().endswith("; start Kafka, or set PERSEID_KAFKA to it")


def test_the_doctor_points_to_a_running_up(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.doctor.doctor.examine", lambda settings: [])
    assert "`perseid doctor --state .perseid` looks at that one" in CliRunner().invoke(cli, ["doctor"]).output
    assert "looks at that one" not in CliRunner().invoke(cli, ["doctor", "--state", str(running)]).output


def test_a_long_verdict_takes_several_lines() -> None:
    difference = {"mean": 0.08, "interval": [-0.16, 0.32], "p": 0.75}
    against = {"list": "one", "baseline": "other", "differences": {"recall@10": difference, "ndcg@10": difference}}
    assert "\n" not in verdict(against)
    lines = verdict({**against, "list": "LambdaMART + position + category"}).splitlines()
    assert lines[0].startswith("LambdaMART + position + category against other: recall@10") and len(lines) == 2
    assert max(map(len, lines)) <= 120
