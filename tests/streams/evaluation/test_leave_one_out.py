"""Leave-one-out against a literal reading of the protocol: order, what is held out, who is ranked, ties, the lists."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.jobs.train import validation_score
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.encoder import StarsEncoder
from streams.evaluation.leave_one_out import LeaveOneOut, Part, compare_lists, leave_one_out, metrics_of
from streams.evaluation.metrics import MISSED
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.rankers import ModelRanker
from streams.evaluation.slices import Facts
from streams.folder.reader import Folder, read_folder
from streams.item_vectors import ItemVectors
from tests.support.devices import DEVICES
from tests.support.folders import START_S, item, write_folder
from tests.support.replay_world import CONFIG, RULES, encoder, rank_targets, shop, vectors_of

PLACED = "user_id,item_id,event_type,timestamp,seq_pos"


def placed(path: Path, rows: list[tuple[str, str, str, int, Any]]) -> Folder:
    return read_folder(write_folder(path, rows, [item(f"i{n}") for n in range(6)], header=PLACED), RULES)


def ids(split: LeaveOneOut, rows: Any) -> list[str]:
    return [split.vectors.item_ids[row] for row in rows]


def test_users_are_ordered_by_their_places_and_lose_their_last_two_events(tmp_path: Path) -> None:
    folder = placed(
        tmp_path / "data",
        [
            ("u", "i2", "view", START_S, 2),
            ("v", "i5", "view", START_S, 0),
            ("u", "i1", "view", START_S, 1),
            ("u", "i4", "view", START_S, -1),  # has no place: outside the protocol
            ("u", "i0", "view", START_S + 9, 0),
            ("v", "i3", "view", START_S + 9, 1),
            ("u", "i3", "view", START_S + 10, 3),
        ],
    )
    split = leave_one_out(folder, vectors_of(folder))
    assert [ids(split, split.items[a:b]) for a, b in zip(split.user_ptr, split.user_ptr[1:], strict=False)] == [
        ["i0", "i1", "i2", "i3"],
        ["i5", "i3"],
    ]
    assert split.users.tolist() == [0]
    assert ids(split, [split.items[split.target(0, "validation")], split.items[split.target(0, "test")]]) == [
        "i2",
        "i3",
    ]
    data = split.training()
    assert data.user_ptr.tolist() == [0, 2, 4]  # too short a history to hold anything out stays whole
    assert ids(split, data.items) == ["i0", "i1", "i5", "i3"]
    validated = split.training(validated=True)
    assert validated.user_ptr.tolist() == [0, 3, 5]
    assert ids(split, validated.items) == ["i0", "i1", "i2", "i5", "i3"]
    assert (np.diff(split.ts_ms[:4]) >= 0).all()  # a place wins over a time
    data.check(CONFIG)


def ranks_by_hand(split: LeaveOneOut, part: Part, user: int) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Ranks of a user's target and whole lists, one score at a time."""
    made = encoder()
    names = list(split.vectors.item_ids)
    made.items.put(names, split.vectors.vectors, split.vectors.tags)
    first, last = int(split.user_ptr[user]), split.target(user, part)
    window = slice(max(first, last - CONFIG.window), last)
    request = EncodeRequest(
        0, ids(split, split.items[window]), split.kinds[window].tolist(), split.ts_ms[window].tolist(), None, 0
    )
    pair = made.encode_whole([request]).vectors[0]
    target = int(split.items[last])
    allowed = [row for row in range(len(names)) if row == target or row not in set(split.items[first:last].tolist())]
    scores = made.items.retrieval(names) @ pair.T
    lists = {name: sorted(allowed, key=lambda r: (-scores[r, at], r)) for at, name in enumerate(("next", "general"))}
    mixed: list[int] = []
    while len(mixed) < len(allowed):
        source = lists[("next", "general")[len(mixed) % 2]]
        mixed.append(next(row for row in source if row not in mixed))
    lists["mixed"] = mixed
    return {name: rows.index(target) + 1 for name, rows in lists.items()}, lists


@pytest.mark.parametrize("part", ["validation", "test"])
def test_ranks_and_metrics_are_those_of_the_protocol(tmp_path: Path, part: Part) -> None:
    folder = shop(tmp_path / "shop", events=300)
    split, ks = leave_one_out(folder, vectors_of(folder)), (1, 3, 10)
    found = rank_targets(encoder(), split, part, ks=ks)
    by_hand = [ranks_by_hand(split, part, user) for user in split.users.tolist()]
    for slot in found.names:
        ranks = found.ranks(slot)
        expected = np.array([ranks_[slot] for ranks_, _ in by_hand])
        within = expected <= max(ks)
        assert np.array_equal(ranks[within], expected[within])
        assert (ranks[~within] == MISSED).all()
        metrics = metrics_of(found, len(folder.item_ids), ks)[slot]
        for k in ks:
            hits = expected <= k
            assert metrics[f"recall@{k}"] == pytest.approx(hits.mean(), abs=1e-6)
            assert metrics[f"ndcg@{k}"] == pytest.approx(
                np.mean([h / math.log2(r + 1) for h, r in zip(hits, expected, strict=True)]), abs=1e-6
            )
            assert metrics[f"mrr@{k}"] == pytest.approx(np.mean(hits / expected), abs=1e-6)
            shown = {row for _, lists in by_hand for row in lists[slot][:k]}
            assert metrics[f"coverage@{k}"] == pytest.approx(len(shown) / len(folder.item_ids), abs=1e-6)
    assert len(found) == len(split.users)


def test_the_comparison_has_the_same_metrics_and_says_who_was_asked(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=300)
    split = leave_one_out(folder, vectors_of(folder))
    made = encoder()
    ranker = ModelRanker(made, split.vectors, ("next", "general", "mixed"))
    found = compare_lists([ranker], split, "test", "general", window=CONFIG.window)
    expected = metrics_of(rank_targets(encoder(), split, "test"), len(folder.item_ids))
    assert found["list"] == "general" and found["metrics"] == found["lists"]["general"]
    for name, metrics in expected.items():
        assert {column: found["lists"][name][column] for column in metrics} == pytest.approx(metrics, abs=1e-6)
        assert found["intervals"][name]["ndcg@10"][0] <= metrics["ndcg@10"] <= found["intervals"][name]["ndcg@10"][1]
    assert {(pair["list"], pair["baseline"]) for pair in found["versus"]} == {("general", "next"), ("general", "mixed")}
    trained = Counter(split.training().items.tolist())
    targets = [int(split.items[split.target(user, "test")]) for user in split.users.tolist()]
    never = sum(trained[target] == 0 for target in targets)
    assert found["slices"].get("item chosen 0 times", {"questions": 0})["questions"] == never
    sizes = Counter(slice_["by"] for slice_ in found["slices"].values())
    assert sum(s["questions"] for s in found["slices"].values() if s["by"] == "history") == len(targets)
    assert sizes["popularity"] >= 2
    with pytest.raises(ValueError, match="two lists of one name"):
        compare_lists([ranker, ranker], split, "test", "next")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", [{}, {"d_model": 768, "n_layers": 4, "window": 200, "slack": 56}])
def test_the_score_while_training_is_that_of_the_table(tmp_path: Path, sizes: dict[str, Any], device: str) -> None:
    folder = shop(tmp_path / "shop", events=100)
    split = leave_one_out(folder, vectors_of(folder))
    torch.manual_seed(0)
    model = StarsEncoder(replace(CONFIG, **sizes)).eval()
    found = validation_score(model, split, device)
    table = rank_targets(IncrementalEncoder(model, cache_bytes=1 << 26, device="cpu"), split, "validation")
    assert found == pytest.approx(float(table.scores("next", (10,))["ndcg@10"].mean()))


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shop(tmp_path / "shop", events=200)
    split = leave_one_out(folder, vectors_of(folder))
    together = rank_targets(encoder(), split, "test").state_dict()
    assert set(together["ranks"]) == {"next", "general", "mixed"}
    monkeypatch.setattr("streams.evaluation.leave_one_out._BATCH", 3)
    assert rank_targets(encoder(), split, "test").state_dict() == together


def test_equal_scores_rank_in_index_order(tmp_path: Path) -> None:
    rows = [("u", f"i{n}", "view", START_S + n, n) for n in (0, 1, 4)]
    folder = placed(tmp_path / "data", rows)
    same = ItemVectors("toy", folder.item_ids, np.ones((6, 4), np.float32), [[] for _ in range(6)])
    found = rank_targets(encoder(), leave_one_out(folder, same), "test", ks=(3,))
    assert found.ranks("next").tolist() == [3]  # after i2 and i3; i0 and i1 are history


def test_an_empty_list_hits_nothing() -> None:
    found = Outcomes(["next"])
    found.add({"next": []}, {"i5"}, Facts("u"))
    assert metrics_of(found, 4, (2,)) == {"next": {"recall@2": 0.0, "ndcg@2": 0.0, "mrr@2": 0.0, "coverage@2": 0.0}}


def test_events_on_items_without_a_vector_are_left_out_and_counted(tmp_path: Path) -> None:
    numbers = (0, 9, 1, 2, 5, 3)  # i9 has no record, i5 no vector
    folder = placed(tmp_path / "shop", [("u", f"i{n}", "view", START_S, at) for at, n in enumerate(numbers)])
    vectors = ItemVectors("toy", [f"i{n}" for n in range(4)], np.ones((4, 4), np.float32), [[]] * 4)
    found = leave_one_out(folder, vectors)
    assert found.items.tolist() == [0, 1, 2, 3] and found.unembedded == 1
    assert list(folder.left_out.to_dict().values()) == [{"count": 1, "first": "row 2, item_id 'i9'"}]


def test_what_the_protocol_cannot_use_is_refused(tmp_path: Path) -> None:
    short = placed(tmp_path / "short", [("u", "i0", "view", START_S, 0), ("u", "i1", "view", START_S, 1)])
    with pytest.raises(ValueError, match="nobody in short has more than 2 events"):
        leave_one_out(short, vectors_of(short))
    blind = placed(tmp_path / "blind", [("u", f"i{n}", "view", START_S, n) for n in range(3)])
    few = ItemVectors("toy", ["i0"], np.ones((1, 4), np.float32), [[]])
    with pytest.raises(ValueError, match="nobody in blind has more than 2 events on items with a vector"):
        leave_one_out(blind, few)
    with pytest.raises(ValueError, match="seq_pos that is no whole number"):
        placed(tmp_path / "odd", [("u", "i0", "view", START_S, "first")])
