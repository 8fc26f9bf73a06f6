"""`perseid evaluate`: timeline and loo without a model, sessions with JSON and tables, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from click.testing import CliRunner, Result

from deploy.cli import cli
from deploy.commands.measure import sessions
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from tests.support.folders import DAY_S, START_S, item, write_folder, write_vectors
from tests.support.replay_world import CONFIG, vectors_of
from tests.support.session_world import MIDNIGHT_S, planted

USERS, ITEMS, STEPS = 12, 16, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Users walk through the items in turn, each from another start."""
    rows = [
        (f"u{u}", f"i{(u + n) % ITEMS}", "view", START_S + n * 3600 + u) for n in range(STEPS) for u in range(USERS)
    ]
    return write_folder(tmp_path / "walks", rows, [item(f"i{number}") for number in range(ITEMS)])


def evaluated(protocol: str, folder: Path, *arguments: str) -> Result:
    nowhere = {"PERSEID_MODEL": str(folder / "no-model"), "PERSEID_STATE": str(folder / "state")}
    return CliRunner().invoke(cli, ["evaluate", protocol, str(folder), "--threads", "1", *arguments], env=nowhere)


def answer(done: Result) -> dict[str, Any]:
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = orjson.loads(done.output.splitlines()[-1])
    return found


def test_baselines_alone_on_each_users_last_event(folder: Path) -> None:
    names = "popularity,co-visitation,sasrec-bce"
    ask = ["--baselines", names, "--max-seconds", "1"]
    found = answer(evaluated("loo", folder, *ask, "--json"))
    assert list(found["lists"]) == names.split(",") and (found["users"], found["model"]) == (USERS, None)
    assert found["metrics"]["recall@1"] > 0.5 > found["lists"]["popularity"]["recall@1"]
    low, high = found["intervals"]["popularity"]["recall@1"]
    assert low < found["lists"]["popularity"]["recall@1"] < high and found["list"] == "co-visitation"
    assert found["baselines"]["sasrec-bce"]["ended"] in ("time", "patience") and found["baselines"]["seed"] == 0
    shown = evaluated("loo", folder, *ask).output
    assert "baselines on walks: the last events of 12 users, 16 items" in shown and "sasrec-bce: " in shown


def test_baselines_alone_on_the_timeline(folder: Path) -> None:
    found = answer(evaluated("timeline", folder, "--split", "0.75", "--baselines", "item-knn,co-visitation", "--json"))
    assert found["questions"] == USERS * STEPS // 4
    assert set(found["lists"]) == {"item-knn", "co-visitation", "recent popularity", "all-time popularity"}
    assert found["lists"]["co-visitation"]["hr@5"] > 0.8
    assert "baselines" not in found


def test_what_cannot_be_measured_is_refused(folder: Path) -> None:
    assert "unknown baseline 'random'" in str(evaluated("timeline", folder, "--baselines", "random").exception)
    assert "without a model give --split" in str(evaluated("timeline", folder, "--baselines", "item-knn").exception)
    for protocol in ("loo", "sessions"):
        refused = evaluated(protocol, folder, "--plain")
        assert refused.exit_code == 2 and "No such option: --plain" in refused.output


@pytest.mark.parametrize(
    ("command", "training", "instead"),
    [
        ("evaluate timeline", "--split 0.8", "; --baselines item-knn needs none"),
        ("evaluate loo", "--protocol loo", "; --baselines item-knn needs none"),
        ("evaluate sessions", "--split 0.8", ""),
        ("staleness", "--split 0.8", ""),
    ],
)
def test_without_a_model_it_says_how_to_make_one(folder: Path, command: str, training: str, instead: str) -> None:
    nowhere = {"PERSEID_MODEL": str(folder / "no-model"), "PERSEID_STATE": str(folder / "state")}
    done = CliRunner().invoke(cli, [*command.split(), str(folder)], env=nowhere)
    assert str(done.exception) == (
        f"no model to measure: --model is not given, and PERSEID_MODEL ({folder / 'no-model'}) holds none; "
        f"`perseid train FOLDER {training}` makes one and prints where it is{instead}"
    )


@pytest.mark.parametrize(
    ("arguments", "protocol"),
    [
        (["shop", "--protocol", "loo", "--json"], "loo"),
        (["--protocol", "sessions", "shop"], "sessions"),
        (["--protocol=loo", "shop"], "loo"),
        (["shop", "--protocol", "bogus"], "timeline|loo|sessions"),
        ([str(Path(__file__).parent), "--model", "m"], "timeline"),
    ],
)
def test_the_former_spelling_names_the_new_one(arguments: list[str], protocol: str) -> None:
    done = CliRunner().invoke(cli, ["evaluate", *arguments])
    assert done.exit_code == 2
    assert done.output == f"Error: the protocol is a subcommand now: perseid evaluate {protocol} FOLDER …\n"


@pytest.mark.parametrize(
    ("argument", "said"), [("timelime", "No such command 'timelime'"), ("-x", "No such option: -x")]
)
def test_what_never_was_a_spelling_is_refused_as_such(argument: str, said: str) -> None:
    done = CliRunner().invoke(cli, ["evaluate", argument])
    assert done.exit_code == 2 and said in done.output


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of `perseid evaluate sessions` for a planted shop whose model has seen six of its eight days."""
    monkeypatch.setenv("PERSEID_EMBEDDERS", "toy:4")
    monkeypatch.setenv("PERSEID_STATE", str(tmp_path / "state"))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.LEAVES", (7,))
    monkeypatch.setattr("streams.evaluation.sessions.lambdamart.MOST_TREES", 40)
    folder = planted(tmp_path / "shop", "price", users=20)
    vectors = vectors_of(folder)
    write_vectors(tmp_path / "shop", [vectors.body(row, folder.start_ms) for row in range(len(vectors.item_ids))])
    torch.manual_seed(0)
    metadata = {"embedder": "toy", "context_features": [], "data": "shop"}
    model = StarsEncoder(replace(CONFIG, window=200, slack=56)).eval()
    save(model, tmp_path / "model", {**metadata, "before_ms": (MIDNIGHT_S + 6 * DAY_S) * 1000})
    return [str(tmp_path / "shop"), "--model", str(tmp_path / "model")]


def test_one_object_holds_every_view_label_and_ranker(command: list[str]) -> None:
    done = CliRunner().invoke(sessions, [*command, "--json"], catch_exceptions=False)
    found: dict[str, Any] = orjson.loads(done.output)
    assert found["choice"] == "click" and found["every"] == 1
    for counts in (found["sessions"], found["pages"], *found["drawn"].values()):
        assert counts == {"to learn from": 120, "asked about": 40}
    assert {"recall@10", "ndcg@10", "coverage@10", "hr@1", "hr@50"} <= set(found["metrics"])
    for view in ("before", "page"):
        for label in ("label_pre", "label_any"):
            result = found["views"][view][label]
            assert result["questions"] == 40
            sizes = {name: part["questions"] for name, part in result["by_candidates"].items()}
            assert sizes == {"1-10": 0, "11-30": 40, "31-100": 0, "101+": 0}
            assert result["lists"]["LambdaMART"]["hr@1"] > result["lists"]["as shown"]["hr@1"]
            assert result["lambdamart"]["LambdaMART"]["gain"]["price_rank"] > 0.3
            assert result["two_stage"] == {"missing": "the encoder has learned from all that lies before the split"}
            assert {against["baseline"] for against in result["versus"]} == set(result["lambdamart"])


def test_a_second_stage_stands_beside_what_the_encoder_does_not_know(command: list[str], tmp_path: Path) -> None:
    model, metadata = StarsEncoder(replace(CONFIG, window=200, slack=56)).eval(), {"embedder": "toy", "data": "shop"}
    known_ms = (MIDNIGHT_S + 2 * DAY_S) * 1000
    save(model, tmp_path / "early", {**metadata, "context_features": [], "before_ms": known_ms})
    asked = [command[0], "--model", str(tmp_path / "early"), "--split", "0.75", "--trainings", "2", "--json"]
    more = ["--without", "price, own", "--report", str(tmp_path / "page.html")]
    found: dict[str, Any] = orjson.loads(CliRunner().invoke(sessions, [*asked, *more], catch_exceptions=False).stdout)
    for result in (found["views"][view]["label_pre"] for view in ("before", "page")):
        names = ["two-stage", "two-stage + position", "two-stage without price", "two-stage without own"]
        trees = ["two-stage trees", "two-stage trees + position"]
        lists = {name: facts["lists"] for name, facts in result["two_stage"].items()}
        assert lists == dict.fromkeys([*names, *trees], 80)
        trainings = {name: len(facts["trainings"]) for name, facts in result["two_stage"].items()}
        assert trainings == dict.fromkeys(names, 2) | dict.fromkeys(trees, 1)
        assert result["lists"]["two-stage"]["hr@1"] > 0.5 > result["lists"]["as shown"]["hr@1"]
        assert result["lists"]["two-stage"]["hr@1"] > result["lists"]["two-stage without price"]["hr@1"]
    page = (tmp_path / "page.html").read_text()
    assert "NDCG@10 lost without: groups" in page and "price_rank" in page
    assert "two-stage − two-stage without price" in page


def test_the_tables_name_what_was_known(command: list[str]) -> None:
    done = CliRunner().invoke(sessions, command, catch_exceptions=False)
    assert "label_pre = label_any, known before the session (40)" in done.output
    assert "label_pre = label_any, known before the page (40)" in done.output and "hr@5 of 11-30 (40)" in done.output
    assert "h_next against LambdaMART + position: recall@10" in done.output


def test_one_question_and_a_part_of_it_may_be_asked(command: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    options = ["--question", "page", "--every", "3", "--json", "--report", str(report)]
    done = CliRunner().invoke(sessions, [*command, *options], catch_exceptions=False)
    found: dict[str, Any] = orjson.loads(done.output)
    assert found["views"].keys() == {"page"} and found["questions"] == 14
    assert found["pages"] == {"to learn from": 120, "asked about": 40} and found["every"] == 3
    assert found["drawn"] == {"page": {"to learn from": 40, "asked about": 14}}
    assert "known before the page" in report.read_text()


def test_a_model_that_knows_the_sessions_is_refused(command: list[str], tmp_path: Path) -> None:
    metadata: dict[str, Any] = {"embedder": "toy", "context_features": [], "data": "shop", "before_ms": None}
    save(StarsEncoder(replace(CONFIG, window=200, slack=56)).eval(), tmp_path / "all", metadata)
    done = CliRunner().invoke(sessions, [*command[:-1], str(tmp_path / "all")])
    assert isinstance(done.exception, ValueError) and "was trained on all of 'shop'" in str(done.exception)


def test_without_lightgbm_the_remedy_is_said(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.jobs.evaluate.find_spec", lambda name: None)
    done = CliRunner().invoke(sessions, command)
    assert isinstance(done.exception, ValueError) and "perseid[baselines]" in str(done.exception)
