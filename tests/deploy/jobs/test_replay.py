"""Replay and evaluation put together: a folder that brings its vectors, a saved model, and a comparison with live."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from deploy.jobs.evaluate import evaluate_folder
from deploy.jobs.replay import Apart, apart, compare_with_live, differences, replay_folder
from deploy.jobs.replay_checkpoint import ReplayPlan
from deploy.settings import Settings, load
from encoder.model.artefact import save
from encoder.model.encoder import StarsEncoder
from index.state.memory_store import MemoryStore
from index.state.store import LogIdentity
from streams.evaluation.held_out import QuestionSettings
from streams.folder.reader import Folder, read_folder
from streams.kafka.topic_merge import Covers
from streams.pipeline.digest import Digest, digest
from streams.pipeline.user_state import RULES_VERSION
from tests.support.folders import write_vectors
from tests.support.replay_world import CONFIG, PARTITIONS, shop, vectors_of

SETTINGS = load({}, partitions=PARTITIONS, embedders="toy:4", device="cpu", cache_mb=4)
MODEL = replace(CONFIG, window=200, slack=56)  # the window of the live state


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = shop(tmp_path / "shop")
    vectors = vectors_of(found)
    write_vectors(tmp_path / "shop", [vectors.body(row, int(found.arrivals_ms[row])) for row in range(40)])
    return found


@pytest.fixture
def path(tmp_path: Path, folder: Folder) -> Path:
    return tmp_path / "shop"


def untrained(seed: int) -> StarsEncoder:
    torch.manual_seed(seed)
    return StarsEncoder(MODEL).eval()


def saved(tmp_path: Path, **metadata: Any) -> Path:
    save(untrained(0), tmp_path / "model", {"embedder": "toy", "context_features": [], **metadata})
    return tmp_path / "model"


def test_questions_begin_where_the_models_training_ended(tmp_path: Path, folder: Folder, path: Path) -> None:
    cut = folder.split_ms(0.75)
    model = saved(tmp_path, data="shop", before_ms=cut)
    report = replay_folder(path, ReplayPlan(model), SETTINGS, {})
    result = evaluate_folder(path, model, SETTINGS, {}, None, QuestionSettings())
    assert report.answers is not None and report.answers["questions"] == result["questions"] > 10
    assert report.answers["skipped"]["before the start"] == folder.events.before(cut)
    assert result["start_ms"] == cut and result["data"] == "shop" and result["model"] == report.model
    assert set(result["lists"]) == {"mixed", "next", "recent popularity", "all-time popularity"}


def test_the_list_that_the_model_is_best_with_leads(tmp_path: Path, path: Path, folder: Folder) -> None:
    model = saved(tmp_path, data="shop", before_ms=folder.split_ms(0.75), slot="general")
    report = replay_folder(path, ReplayPlan(model), SETTINGS, {})
    assert report.answers is not None
    for found in (report.answers, evaluate_folder(path, model, SETTINGS, {}, None, QuestionSettings())):
        assert found["list"] == "general" and found["metrics"] == found["lists"]["general"]
        assert {"mixed", "next"} < set(found["lists"])


def evaluated(path: Path, model: Path, ask: QuestionSettings) -> dict[str, Any]:
    return evaluate_folder(path, model, SETTINGS, {}, None, ask)


def replayed(path: Path, model: Path, ask: QuestionSettings) -> dict[str, Any]:
    answers = replay_folder(path, ReplayPlan(model, ask=ask), SETTINGS, {}).answers
    assert answers is not None
    return dict(answers)


@pytest.mark.parametrize("measured", [evaluated, replayed])
def test_popularity_counts_as_much_as_the_model_says_unless_vectors_alone_are_asked_for(
    tmp_path: Path, path: Path, folder: Folder, measured: Callable[[Path, Path, QuestionSettings], dict[str, Any]]
) -> None:
    silent, loud = (
        saved(tmp_path / name, data="shop", before_ms=folder.split_ms(0.5), slot="next", popularity=weight)
        for name, weight in (("silent", 0.0), ("loud", 1.0))
    )
    without, added = (measured(path, model, QuestionSettings()) for model in (silent, loud))
    plain = [measured(path, model, QuestionSettings(plain=True)) for model in (silent, loud)]
    assert without["lists"]["next"] != added["lists"]["next"]
    assert plain[0]["lists"]["next"] == plain[1]["lists"]["next"]
    if measured is evaluated:
        assert [found["popularity_weight"] for found in (without, added, *plain)] == [0, 1, 0, 0]


def test_dislikes_take_off_the_same_in_evaluation_and_replay(tmp_path: Path, path: Path, folder: Folder) -> None:
    facts = {"data": "shop", "before_ms": folder.split_ms(0.5), "slot": "next", "popularity": 0.1}
    trained, silent = saved(tmp_path / "a", negative=3.0, **facts), saved(tmp_path / "b", negative=0.0, **facts)
    off, strong = (replace_negative(text) for text in ("off", "3"))

    def slices(model: Path, settings: Settings = SETTINGS) -> list[dict[str, Any]]:
        """Of the users with some history, by evaluation and by replay: cold ones get lists with context in replay."""
        ask = QuestionSettings(popularity_ms=0, popularity_events=0)
        answers = replay_folder(path, ReplayPlan(model, ask=ask), settings, {}).answers
        found = (evaluate_folder(path, model, settings, {}, None, ask), answers or {})
        return [each["slices"]["history 21+"]["lists"]["next"] for each in found]

    with_it, without = slices(trained), slices(silent)
    assert with_it[0] == pytest.approx(with_it[1], abs=1e-6) and without[0] == pytest.approx(without[1], abs=1e-6)
    assert with_it[0] != without[0]
    assert slices(trained, off) == without and slices(silent, strong) == with_it
    metadata = evaluate_folder(path, trained, SETTINGS, {}, None, QuestionSettings(plain=True))
    assert metadata["negative_weight"] == 0


def replace_negative(text: str) -> Settings:
    return SETTINGS.model_copy(update={"negative": text})


def test_a_checkpoint_of_another_weight_of_dislikes_is_refused(tmp_path: Path, path: Path, folder: Folder) -> None:
    model = saved(tmp_path, data="shop", before_ms=folder.split_ms(0.5))
    plan = ReplayPlan(model, checkpoint=tmp_path / "kept", part=200)
    replay_folder(path, plan, SETTINGS, {})
    with pytest.raises(ValueError, match="its negative was None, now it is off"):
        replay_folder(path, plan, replace_negative("off"), {})


def test_a_split_says_where_questions_begin(tmp_path: Path, folder: Folder, path: Path) -> None:
    report = replay_folder(path, ReplayPlan(saved(tmp_path, data="shop", before_ms=None)), SETTINGS, {}, split=0.5)
    assert report.answers is not None
    assert report.answers["skipped"]["before the start"] == folder.events.before(folder.split_ms(0.5))


def test_vectors_of_another_embedder_are_refused(tmp_path: Path, path: Path) -> None:
    save(untrained(1), tmp_path / "other", {"embedder": "other", "context_features": []})
    with pytest.raises(ValueError, match=r"brings vectors of \{'toy'\}, the model was trained on those of 'other'"):
        replay_folder(path, ReplayPlan(tmp_path / "other"), SETTINGS, {})


class Kept(MemoryStore):
    """Stays readable after a replay has closed it."""

    async def close(self) -> None:
        return None


def test_a_live_state_with_the_same_history_does_not_differ(path: Path) -> None:
    whole, part = Kept(), Kept()
    report = replay_folder(path, ReplayPlan(store=whole), SETTINGS, {})
    replay_folder(path, ReplayPlan(store=part), SETTINGS, {}, stop_ms=read_folder(path).split_ms(0.9))
    assert report.answers is None and report.model is None
    assert report.digest.differences(asyncio.run(digest(whole, PARTITIONS))) == []
    different = report.digest.differences(asyncio.run(digest(part, PARTITIONS)))
    assert different and set(different) <= {"items", "contexts", *(f"p{n}" for n in range(PARTITIONS))}


def test_a_difference_from_the_live_state_is_explained(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = MemoryStore(SETTINGS.keys())
    whole = replay_folder(path, ReplayPlan(store=live), SETTINGS, {})
    monkeypatch.setattr("deploy.jobs.replay.open_store", lambda settings: live)
    assert compare_with_live(whole, SETTINGS) == {}
    part = replay_folder(path, ReplayPlan(), SETTINGS, {}, stop_ms=read_folder(path).split_ms(0.5))
    positions = asyncio.run(live.read_all(live.keys.owner("p1")))
    read = {"clickstream[1]": Covers(0, 0, 7, 7), "users[1]": Covers(0, 0, int(positions["pos:users"]), 1)}
    found = compare_with_live(replace(part, covers=read), SETTINGS)
    assert list(found)[-3:] == ["p0", "p1", "p2"]
    at = int(positions["pos:clickstream"])
    assert found["p1"] == [Apart(f"the live state is at offset {at} of clickstream[1], the replay at 7")]
    first = next(differences(found, embedded=False))
    assert first == "the live state differs in 5 parts: contexts, items, p0, p1 and 1 more"
    assert found["p0"] == []  # nothing is known of what was read


def test_lists_that_were_shown_are_replayed_where_they_are_counted(
    path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    users, times = folder.user_ids, folder.events.ts_ms.tolist()
    pages = [{"user_id": users[n % 7], "ts_ms": times[n], "shown": folder.item_ids[n % 9 : 12]} for n in range(60)]
    with gzip.open(path / "impressions.jsonl.gz", "wb") as file:
        file.writelines(orjson.dumps(page) + b"\n" for page in pages)
    counting, live = replace_showings(True), MemoryStore(SETTINGS.keys())
    whole = replay_folder(path, ReplayPlan(store=live), counting, {})
    plain = replay_folder(path, ReplayPlan(), replace_showings(False), {})
    shown = {name for name in whole.digest.parts if name.startswith("x")}
    assert whole.records["exposures"] == 60 and "exposures" not in plain.records and shown
    assert whole.digest.differences(plain.digest) == sorted(shown)
    parts = ReplayPlan(checkpoint=path / "kept", part=77)
    assert replay_folder(path, parts, counting, {}).digest == whole.digest
    with pytest.raises(ValueError, match="its showings was True"):
        replay_folder(path, parts, replace_showings(False), {})
    monkeypatch.setattr("deploy.jobs.replay.open_store", lambda settings: live)
    assert compare_with_live(whole, counting) == {}
    assert compare_with_live(plain, counting) == {name: [] for name in sorted(shown)}


def replace_showings(showings: bool) -> Settings:
    return load({}, partitions=PARTITIONS, embedders="toy:4", device="cpu", cache_mb=4, showings=showings)


BEGINNING = "the topics do not hold the beginning of what the live state was built from: "
GONE = "the earlier ones (another broker or topic) are gone"


def test_what_a_replay_cannot_have_read_is_said(path: Path) -> None:
    report = replay_folder(path, ReplayPlan(), SETTINGS, {})
    owner = {"pos:clickstream": b"40", "logs:clickstream": b"2", "pos:users": b"9", "logs:users": b"1"}
    covers = {"clickstream[3]": Covers(20, 20, 40, 40), "users[3]": Covers(0, 4, 9, 9)}
    assert list(apart(replace(report, covers=covers), owner, ("users", "clickstream"), 3)) == [
        Apart("users[3] was replayed from 4 only"),
        Apart(f"{BEGINNING}the log of clickstream[3] is its number 2, {GONE}", True),
        Apart(f"{BEGINNING}the log of clickstream[3] begins at 20, what came before has left Kafka", True),
    ]
    for rules, said in (({"rules": b"1,2"}, "1,2 in turn"), ({"rules": b"2"}, "2"), ({"clock": b"..."}, "1")):
        assert list(apart(report, rules, ("users",), 3)) == [
            Apart(f"partition 3 was applied under the rules {said}", True)
        ]
    for new in ({}, {"rules": str(RULES_VERSION).encode(), "clock": b"..."}):
        assert not list(apart(report, new, ("users",), 3))


def test_a_live_state_of_another_log_is_not_compared_by_offsets(path: Path) -> None:
    logs = {topic: LogIdentity("mockCluster2") for topic in ("users", "clickstream")}
    report = replace(replay_folder(path, ReplayPlan(), SETTINGS, {}), logs=logs)
    report = replace(report, covers={"clickstream[3]": Covers(0, 0, 7, 7), "users[3]": Covers(0, 0, 9, 9)})
    owner = {"pos:clickstream": b"40", "log:clickstream": b"mockCluster1/", "pos:users": b"9"}
    other = Apart(f"{BEGINNING}the log of clickstream[3] is another one (another broker or topic)", True)
    assert list(apart(report, owner, ("users", "clickstream"), 3)) == [other]
    assert list(apart(report, {**owner, "log:clickstream": b"mockCluster2/"}, ("clickstream",), 3)) == [
        Apart("the live state is at offset 40 of clickstream[3], the replay at 7")
    ]


def test_topics_without_the_beginning_are_said_in_one_line() -> None:
    different = {
        f"p{number}": [Apart(f"clickstream[{number}] is log 2 of the live state", True), Apart("at offset 4")]
        for number in range(31)
    }
    first, second = differences(different, embedded=True)
    assert first == "the live state differs in 31 parts: p0, p1, p2, p3 and 27 more"
    assert second == (
        "it cannot become equal: clickstream[0] is log 2 of the live state (and 30 more like it); the embedded "
        "broker's topics end with it and the live state stays; begin a new live state to compare with"
    )
    third = list(differences({**different, "items": []}, embedded=False))[2:]
    assert third == ["items: both have read the same records of the same logs"]
    assert list(differences({"p0": [Apart("at offset 4")]}, embedded=True)) == [
        "the live state differs in 1 part: p0",
        "p0: at offset 4",
        "what differs was not read by both; stop the traffic, let it be applied, and compare again",
    ]


def test_partitions_that_differ_are_sorted_as_numbers() -> None:
    names = ["items", "contexts", *(f"p{number}" for number in range(12))]
    differ = Digest(dict.fromkeys(names, "a")).differences(Digest({}))
    assert differ == ["contexts", "items", *(f"p{number}" for number in range(12))]


def test_what_the_pipeline_refused_is_said_like_what_the_reader_left_out(path: Path) -> None:
    report = replay_folder(path, ReplayPlan(), SETTINGS, {})
    assert report.to_dict()["left_out"] == {} and "left out" not in report.table()
    refused = replace(report, dead_letters={"catalog: title: missing": 2})
    assert refused.to_dict()["left_out"] == {"catalog: title: missing": {"count": 2, "first": ""}}
    assert "\nleft out: 2 x catalog: title: missing\n" in refused.table()
