"""The command line from outside: help with an example, one clear line on bad input, and produce against a broker."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from deploy.cli import COMMANDS, cli, run
from deploy.jobs.produce import LineIds, read_line
from deploy.servers.mock_kafka import Broker, topic_partitions
from deploy.settings import load
from deploy.state_folder import attach, write_addresses
from index.state.keys import partition_of
from index.state.store import StoreUnavailableError
from streams.events import MalformedError, Rules

pytestmark = pytest.mark.servers

CLICK = {"topic": "clickstream", "event_id": "e1", "user_id": "u1", "item_id": "i1", "kind": "view"}
TS_MS = 1_700_000_000_000


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0, done.output
    assert "Example: " in done.output
    assert f"perseid {command}" in done.output.split("Example: ")[1]


def test_the_overview_names_the_commands_of_users() -> None:
    done = CliRunner().invoke(cli, ["--help"])
    assert all(f"\n  {name} " in done.output for name in set(COMMANDS) - {"traffic"})


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["train", "/nowhere"], 2, "does not exist"),
        (["up", "--data", "/nowhere"], 2, "does not exist"),
        (["up", "--speed", "0"], 2, "0"),
        (
            ["produce", "--state", "/nowhere", os.devnull],
            1,
            "no `perseid up` runs with /nowhere, and none",
        ),
        (["doctor", "--state", "/nowhere"], 1, "start it with `perseid up --state /nowhere`"),
        (["traffic", __file__], 1, "is no traffic plan"),
    ],
)
def test_bad_input_gives_a_status_and_one_clear_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == status
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_what_no_command_expects_ends_with_one_line_below_where_it_happened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailableError("MISCONF Errors writing to the AOF file")

    monkeypatch.setattr("deploy.commands.stack.attach", away)
    assert run(["doctor"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1] == "perseid: StoreUnavailableError: MISCONF Errors writing to the AOF file"


def test_an_unknown_setting_ends_a_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSEID_PARTITION", "8")
    assert run(["doctor"]) == 1
    assert capsys.readouterr().err == "perseid: unknown setting PERSEID_PARTITION; did you mean PERSEID_PARTITIONS?\n"


def test_the_command_line_starts_without_torch() -> None:
    code = (
        "import sys, deploy.cli, deploy.state_folder;"
        "import deploy.commands.roles, deploy.commands.stack, deploy.commands.data;"
        "print(sorted({'torch', 'faust', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has other threads")
@pytest.mark.parametrize(("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_of_torch_give_a_busy_core_back(given: dict[str, str], spins: str) -> None:
    code = (
        "import sys\nfrom deploy.cli import main\nsys.argv = ['perseid', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    import torch\n"
    )
    alone = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environ = {**alone, "OMP_DISPLAY_ENV": "verbose", **given}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr, done.stderr[-2000:]  # as libgomp understood it


def test_addresses_of_a_running_up_are_private_and_the_environment_wins(tmp_path: Path) -> None:
    settings = load({"PERSEID_REDIS": "redis://:pass word's@127.0.0.1:1/0", "PERSEID_PARTITIONS": "4"})
    path = write_addresses(tmp_path, settings)
    assert path.stat().st_mode & 0o777 == 0o600
    assert attach({}, tmp_path) == settings
    assert attach({"PERSEID_PARTITIONS": "8"}, tmp_path).partitions == 8


def test_lines_are_checked_by_the_workers_rules() -> None:
    rules = Rules()
    topic, key, value = read_line(orjson.dumps({**CLICK, "ts_ms": TS_MS}), None, rules, TS_MS)
    assert (topic, key) == ("clickstream", b"u1")
    assert value is not None and orjson.loads(value)["item_id"] == "i1"
    assert read_line(b'{"topic": "catalog", "key": "i1", "value": null}', None, rules, TS_MS) == (
        "catalog",
        b"i1",
        None,
    )
    for line, field in [
        (b"{", "value"),
        (b"[]", "value"),
        (b"{}", "topic"),
        (orjson.dumps(CLICK), "ts_ms"),
        (b'{"topic": "clickstream", "key": "u1", "value": null}', "value"),
        (b'{"topic": "exposures"}', "topic"),
        (orjson.dumps({**CLICK, "ts_ms": TS_MS * 1000}), "ts_ms"),
        (orjson.dumps({"topic": "catalog", "item_id": "i", "title": "t", "ts_ms": TS_MS, "ends_ms": 1}), "ends_ms"),
        (orjson.dumps({"topic": "catalog", "item_id": "i", "title": "t", "ts_ms": TS_MS, "tags": "red"}), "tags"),
    ]:
        with pytest.raises(MalformedError) as caught:
            read_line(line, None, rules, TS_MS)
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ({**CLICK, "key": "other"}, "key", "differs from the record's id 'u1', got 'other'; leave it out"),
        ({"key": "other", "value": CLICK}, "key", "differs from the record's id 'u1', got 'other'; leave it out"),
        ({**CLICK, "key": 7}, "key", "differs from the record's id 'u1', got 7; leave it out"),
        ({**CLICK, "partition": 31}, "partition", "cannot be chosen, it follows from the id; leave it out"),
        ({"key": "u1", "partition": 0, "value": CLICK}, "partition", "cannot be chosen, it follows from the id; "),
        ({"key": "i1", "topic": "catalog", "partition": 0, "value": None}, "partition", "cannot be chosen"),
        ({**CLICK, "kind": "forget"}, "item_id", "a forget has none, it is about the whole user"),
    ],
)
def test_a_line_cannot_choose_another_key_or_partition(line: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(MalformedError) as caught:
        read_line(orjson.dumps(line), "clickstream", Rules(), TS_MS, LineIds())
    assert caught.value.field == field and caught.value.reason.startswith(reason)


def test_a_key_that_is_the_id_is_no_field_of_the_record() -> None:
    record = {name: value for name, value in CLICK.items() if name != "topic"} | {"ts_ms": TS_MS}
    for line in ({**record, "key": "u1"}, {**record, "key": None}, {"key": "u1", "value": record}):
        _, key, value = read_line(orjson.dumps(line), "clickstream", Rules(), TS_MS)
        assert key == b"u1" and value is not None and orjson.loads(value) == record


@pytest.mark.parametrize("line", [b"[{}]", b"[", b"{", b'  "user_id": "u1",', b"  }", b'"kind": {', b"},", b"[]"])
def test_a_list_or_an_object_over_several_lines_is_told_how_lines_are_written(line: bytes) -> None:
    with pytest.raises(MalformedError, match=r"; write one object per line, and no list around them$"):
        read_line(line, "clickstream", Rules(), TS_MS)


@pytest.mark.parametrize("line", [b"user,item", b"7", b"null"])
def test_what_is_no_piece_of_an_object_is_told_as_what_it_is(line: bytes) -> None:
    with pytest.raises(MalformedError, match=r"not JSON: .*\)$|got 7$|got null$"):
        read_line(line, "clickstream", Rules(), TS_MS)


def test_a_line_without_a_topic_says_where_to_name_one() -> None:
    known = "known are catalog, item-vectors, context, rules, users, clickstream"
    for body, found in [
        ({"user_id": "u"}, "the line names none and --topic is not given"),
        ({"topic": None, "user_id": "u"}, "the line names none and --topic is not given"),
        ({"topic": "clicks"}, "'clicks' is none"),
    ]:
        with pytest.raises(MalformedError) as caught:
            read_line(orjson.dumps(body), None, Rules(), TS_MS)
        said, _, rest = caught.value.reason.partition("; ")
        assert said == found and set(rest.removeprefix("known are ").split(", ")) == set(known[10:].split(", "))


def test_a_stamp_fills_in_time_and_an_event_id_that_a_second_run_gives_the_same_line() -> None:
    lines = [orjson.dumps({"user_id": "u", "item_id": item, "kind": "view"}) for item in "aba"]

    def sent(*lines: bytes) -> list[tuple[str, str]]:
        ids, values = LineIds(), []
        for line in lines:
            values.append(orjson.loads(read_line(line, "clickstream", Rules(), TS_MS, ids)[2] or b""))
        assert {value["ts_ms"] for value in values} == {TS_MS}
        return [(value["item_id"], value["event_id"]) for value in values]

    first = sent(*lines)
    assert len(set(first)) == 3, "two equal lines of a file are two events"
    assert sent(*(line + b"\r\n" for line in lines)) == first
    bad = orjson.dumps({"user_id": "u", "item_id": "c", "kind": "view", "ts_ms": 0})
    corrected = orjson.dumps({"user_id": "u", "item_id": "c", "kind": "view"})
    with pytest.raises(MalformedError):
        sent(bad)
    again = sent(lines[0], corrected, *lines[1:])
    assert [event for event in again if event in first] == first and len(set(again)) == 4
    given = orjson.dumps({"event_id": "mine", "user_id": "u", "item_id": "a", "kind": "view"})
    assert sent(given) == [("a", "mine")]


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    broker = Broker(topic_partitions(8), tmp_path_factory.mktemp("broker") / "log")
    yield broker.start()
    broker.stop()


def test_produce_reports_offsets_and_refused_lines(
    bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSEID_KAFKA", bootstrap)
    good = [{**CLICK, "event_id": f"e{n}", "ts_ms": TS_MS + n} for n in range(5)]
    lines = [orjson.dumps(line) for line in good] + [
        b"{",
        b"",
        orjson.dumps({**CLICK, "kind": "stare", "ts_ms": TS_MS}),
    ]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(lines))
    assert run(["produce", "--each", str(tmp_path / "events.jsonl")]) == 1
    shown = capsys.readouterr()
    *each, summary = map(orjson.loads, shown.out.splitlines())
    home = partition_of("u1", 8)
    assert [(line["line"], line["partition"], line["offset"]) for line in each] == [(n + 1, home, n) for n in range(5)]
    assert summary == {"sent": 5, "rejected": 2, "offsets": {"clickstream": {str(home): [0, 4]}}}
    assert shown.err.splitlines()[0].startswith("line 6: value: not JSON")
    assert shown.err.splitlines()[1].startswith("line 8: kind: expected one of view, cart, purchase,")
    assert shown.err.splitlines()[1].endswith(", got 'stare'")


def test_produce_writes_the_refused_lines_and_names_every_wrong_field(
    bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSEID_KAFKA", bootstrap)
    good = [orjson.dumps({**CLICK, "event_id": f"r{n}", "ts_ms": TS_MS}) for n in range(3)]
    bad = [b'{"user_id" : "J\xc3\xbcrgen"', orjson.dumps({**CLICK, "kind": "stare", "ts_ms": 5, "location": "\n"})]
    file, out = tmp_path / "events.jsonl", tmp_path / "bad.jsonl"
    file.write_bytes(b"\r\n".join([good[0], bad[0], good[1], *bad[1:] * 30, good[2], bad[1]]))
    assert run(["produce", "--refused", str(out), str(file)]) == 1
    shown = capsys.readouterr()
    assert orjson.loads(shown.out)["rejected"] == 32 and orjson.loads(shown.out)["sent"] == 3
    assert out.read_bytes().splitlines() == [bad[0], *bad[1:] * 31] and out.read_bytes().endswith(b"\n")
    _, second, *_, last = shown.err.splitlines()
    said = ["line 4: ts_ms: 5 is before 2000, ", "; kind: ", "; location: holds U+000A, "]
    assert all(part in second for part in said) and last == "… and 12 more lines were refused"
    assert run(["produce", str(out)]) == 1
    assert capsys.readouterr().err.endswith("… and 12 more lines were refused; --refused FILE writes them all\n")
    (tmp_path / "link").hardlink_to(file)
    before = file.read_bytes()
    assert run(["produce", "--refused", str(tmp_path / "link"), str(file)]) == 1
    assert "is the file that is read; name another one" in capsys.readouterr().err and file.read_bytes() == before
    (tmp_path / "good.jsonl").write_bytes(good[0])
    assert run(["produce", "--refused", str(out), str(tmp_path / "good.jsonl")]) == 0
    assert out.read_bytes() == b"", "nothing of an earlier run is left"


@pytest.mark.parametrize("from_stdin", [False, True])
def test_produce_reads_packed_files_and_names_the_line_where_one_breaks_off(
    bootstrap: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    from_stdin: bool,
) -> None:
    monkeypatch.setenv("PERSEID_KAFKA", bootstrap)
    lines = b"".join(orjson.dumps({**CLICK, "event_id": f"e{n}", "ts_ms": TS_MS + n}) + b"\r\n" for n in range(5_000))

    def produce(name: str, content: bytes) -> tuple[int, int, list[str]]:
        (tmp_path / name).write_bytes(content)
        with (tmp_path / name).open("rb") as file:
            if from_stdin:
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
            status = run(["produce", "-" if from_stdin else str(tmp_path / name)])
        shown = capsys.readouterr()
        return status, orjson.loads(shown.out.splitlines()[-1])["sent"], shown.err.splitlines()

    assert produce("e.jsonl", gzip.compress(lines)) == (0, 5_000, [])
    assert produce("e.gz", b"\xef\xbb\xbf" + lines) == (0, 5_000, [])  # plain in spite of its name
    assert produce("e.txt", lines.decode().encode("utf-16")) == (0, 5_000, [])
    status, sent, said = produce("cut.gz", gzip.compress(lines)[:-9])
    assert (status, len(said)) == (1, 1)
    assert said[0].startswith(f"line {sent + 1}: file: ") and "is cut or damaged" in said[0]
    latin = orjson.dumps({**CLICK, "user_id": "Jürgen", "event_id": "x", "ts_ms": TS_MS}).decode().encode("latin-1")
    assert produce("latin.jsonl", latin) == (0, 1, [])
