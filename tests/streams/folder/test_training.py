"""Training data: columns sorted by user and time, joined with what was known then and with nothing that came later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streams.folder.reader import Folder, read_folder
from streams.folder.training import MAX_SHOWN, context_features, training_data
from streams.item_vectors import ItemVectors
from tests.support.folders import START_S, item, write_folder

MS = START_S * 1000
ITEMS = [item("a", subclass="sa", category=["c1", "c2"]), item("b", category=["c1", "c3"]), item("c"), item("d")]
ROWS = [("u1", "a", "view", START_S), ("u2", "b", "cart", START_S + 1), ("u1", "c", "purchase", START_S + 2),
        ("u2", "a", "view", START_S + 3), ("u1", "d", "view", START_S + 4)]  # fmt: skip


def vectors(*item_ids: str) -> ItemVectors:
    matrix = np.array([[float(ord(name[0])), 1.0] for name in item_ids], np.float32)
    return ItemVectors("toy", item_ids, matrix, [[f"tag:{name}"] for name in item_ids])


def folder_of(tmp_path: Path, rows: Any = ROWS, **more: Any) -> Folder:
    return read_folder(write_folder(tmp_path / "shop", rows, ITEMS, **more))


def test_events_are_sorted_by_user_and_time(tmp_path: Path) -> None:
    prepared = training_data(folder_of(tmp_path), vectors("d", "c", "b", "a"))
    data = prepared.data
    assert prepared.user_ids == ["u1", "u2"] and data.user_ptr.tolist() == [0, 3, 5]
    assert [data.item_ids[i] for i in data.items] == ["a", "c", "d", "b", "a"]
    assert data.kinds.tolist() == [0, 2, 0, 1, 0]
    assert (data.ts_ms - MS).tolist() == [0, 2000, 4000, 1000, 3000]
    assert data.item_vectors[:, 0].tolist() == [ord(name) for name in data.item_ids]
    assert data.item_tags == [[f"tag:{name}"] for name in data.item_ids]
    assert data.item_subclass == ["sa", "c3", "", ""]
    assert data.context is None and data.pages is None and data.profiles is None


def test_nothing_from_the_split_on_is_looked_at(tmp_path: Path) -> None:
    contexts = [
        {"location": "x", "ts_ms": MS, "valid_until_ms": MS + 9000, "weather": {"sky": "blue"}},
        {"location": "x", "ts_ms": MS + 3000, "valid_until_ms": MS + 9000, "weather": {"sky": "grey"}},
    ]
    users = [{"user_id": "u1", "ts_ms": MS, "categorical": {"v": "old"}},
             {"user_id": "u1", "ts_ms": MS + 3000, "categorical": {"v": "new"}}]  # fmt: skip
    folder = folder_of(tmp_path, context=contexts, users=users)
    features = context_features(folder, MS + 3000)
    data = training_data(folder, vectors("a", "b", "c", "d"), features, MS + 3000).data
    assert data.item_ids == ["a", "b", "c"] and len(data.items) == 3
    assert "weather.sky=blue" in features.names and "weather.sky=grey" not in features.names
    assert data.profiles == [{"numeric": {}, "categorical": {"v": "old"}}, None]


def test_context_is_that_of_the_events_own_time_and_place(tmp_path: Path) -> None:
    contexts = [{"location": "x", "ts_ms": MS + 1000, "valid_until_ms": MS + 2500, "weather": {"sky": "blue"}}]
    rows = [(*row, "x" if n != 1 else "y") for n, row in enumerate(ROWS)]
    folder = folder_of(tmp_path, rows, header="user_id,item_id,event_type,timestamp,location", context=contexts)
    features = context_features(folder)
    data = training_data(folder, vectors("a", "b", "c", "d"), features).data
    assert data.context is not None
    column = data.context[:, features.names.index("weather.sky=blue")]
    # u1: before it, during it, after it; u2: elsewhere, after it
    assert column.tolist() == [0, 1, 0, 0, 0]


def test_items_without_a_vector_are_left_out_and_counted(tmp_path: Path) -> None:
    prepared = training_data(folder_of(tmp_path), vectors("b", "c"))
    assert prepared.left_out == 3 and prepared.data.item_ids == ["b", "c"]
    assert [prepared.data.item_ids[i] for i in prepared.data.items] == ["c", "b"]
    with pytest.raises(ValueError, match="nothing to train on"):
        training_data(folder_of(tmp_path), vectors("zzz"))


def test_what_a_user_did_before_being_forgotten_is_left_out(tmp_path: Path) -> None:
    rows = [*ROWS[:4], ("u1", "", "forget", START_S + 3), ROWS[4]]
    folder = folder_of(tmp_path, rows)
    data = training_data(folder, vectors("a", "b", "c", "d")).data
    assert [data.item_ids[i] for i in data.items] == ["d", "b", "a"]
    early = training_data(folder, vectors("a", "b", "c", "d"), before_ms=MS + 3000).data
    assert [early.item_ids[i] for i in early.items] == ["a", "c", "b"]  # the forget was still to come


def test_the_items_shown_around_the_chosen_one_are_negatives(tmp_path: Path) -> None:
    shown = [f"x{n}" for n in range(8)] + ["a"] + [f"x{n}" for n in range(8, 14)] + ["b"]
    lines = [*ITEMS, *(item(name) for name in shown if name.startswith("x"))]
    rows = [
        ("u1", "a", "view", START_S, "p1"),
        ("u1", "b", "cart", START_S + 1, "p1"),
        ("u2", "a", "view", START_S + 2, ""),
    ]
    pages = [
        {"page_id": "p1", "user_id": "u1", "timestamp": START_S, "shown": shown, "clicked": "a"},
        {"user_id": "u2", "timestamp": START_S + 2, "shown": ["c", "a", "unknown"], "clicked": "a"},
    ]
    header = "user_id,item_id,event_type,timestamp,page_id"
    folder = read_folder(write_folder(tmp_path / "shop", rows, lines, header=header, impressions=pages))
    data = training_data(folder, vectors(*folder.item_ids)).data
    assert data.pages is not None
    first, second, third = ([data.item_ids[number] for number in page] for page in data.pages)
    assert first == ["x7", "x8", "x6", "x9", "x5", "x10", "x4", "x11", "x3", "x12"]  # both sides, nearest first
    assert len(second) == MAX_SHOWN and "a" not in second and second[0] == "x13"
    assert third == ["c"]  # found by user, second and item; what nobody knows is no negative


def test_an_event_belongs_to_its_recommendation_else_to_its_users_page(tmp_path: Path) -> None:
    rows = [
        ("u1", "a", "view", START_S, "home", "r1"),
        ("u1", "a", "cart", START_S + 1, "home", ""),  # of the two lists that show it, the last
        ("u1", "b", "view", START_S + 2, "home", "lost"),
        ("u2", "d", "view", START_S + 3, "home", ""),  # on no list of the page: the last one
        ("u3", "a", "view", START_S + 4, "home", ""),  # nothing was shown to this user
    ]
    lists = [("r1", "u1", ["a", "b"]), ("r2", "u1", ["a", "c"]), ("r3", "u1", ["c", "d"]), ("r4", "u2", ["a", "b"])]
    pages = [
        {"recommendation_id": name, "page_id": "home", "user_id": user, "ts_ms": MS, "shown": shown}
        for name, user, shown in lists
    ]
    header = "user_id,item_id,event_type,timestamp,page_id,recommendation_id"
    data = training_data(folder_of(tmp_path, rows, header=header, impressions=pages), vectors("a", "b", "c", "d")).data
    assert data.pages is not None
    # b was chosen from r1 too, so only what nobody chose of a list is left
    assert [[data.item_ids[n] for n in page] for page in data.pages] == [[], ["c"], [], ["a", "b"], []]


def test_an_event_without_a_page_has_no_negatives(tmp_path: Path) -> None:
    pages = [{"user_id": "u9", "timestamp": START_S, "shown": ["a", "b"], "clicked": "a"}]
    data = training_data(folder_of(tmp_path, impressions=pages), vectors("a", "b", "c", "d")).data
    assert data.pages is not None and [len(page) for page in data.pages] == [0] * 5
