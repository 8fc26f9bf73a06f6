"""Offline evaluation: who is asked what, and that time, place, history and availability act as they do live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from context.features import ContextFeatures
from context.offsets import ContextOffset
from streams.evaluate import evaluate
from streams.folder import Folder, read_folder
from streams.questions import AskSettings
from tests.folders import START_S, item, write_folder
from tests.replay_world import CONFIG, RULES, encoder, served, shop, vectors_of


def evaluated(folder: Folder, offset: ContextOffset | None = None, **ask: Any) -> dict[str, Any]:
    return evaluate(folder, vectors_of(folder), encoder(), offset or served().offset, RULES, AskSettings(**ask))


def small(path: Path, rows: list[tuple[str, str, str, int]], **more: Any) -> Folder:
    return read_folder(write_folder(path, rows, [item(f"i{n}") for n in range(6)], **more), RULES)


def histories(result: dict[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in result["slices"].items() if found["by"] == "history"}


def test_the_same_folder_and_model_give_the_same_result(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=150)
    assert evaluated(folder) == evaluated(folder)


def test_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shop(tmp_path / "shop", events=150)
    together = evaluated(folder)
    monkeypatch.setattr("streams.evaluate._BATCH", 1)
    assert evaluated(folder) == together


def test_a_stranger_gets_the_popular_list(tmp_path: Path) -> None:
    rows = [(f"u{n}", f"i{n % 2}", "view", START_S + n) for n in range(8)]  # nobody comes twice
    result = evaluated(small(tmp_path / "shop", rows), ks=(1, 2))
    assert result["questions"] == 8 and set(histories(result)) == {"history 0"}
    assert result["lists"]["next"] == result["lists"]["recent popularity"]


def test_context_moves_the_list(tmp_path: Path) -> None:
    folder = shop(tmp_path / "shop", events=200)
    features = served().offset.features
    still = ContextOffset(np.zeros((CONFIG.d_model, len(features)), np.float32), features)
    ask: dict[str, Any] = {"slots": ("next",), "ks": (5,)}
    assert evaluated(folder, **ask)["lists"]["next"] != evaluated(folder, still, **ask)["lists"]["next"]
    nothing = ContextOffset(np.zeros((CONFIG.d_model, 0), np.float32), ContextFeatures([]))
    assert evaluated(folder, nothing, **ask) == evaluated(folder, still, **ask)


def test_items_count_as_candidates_from_their_arrival_on(tmp_path: Path) -> None:
    rows = [("u", "i0", "view", START_S), ("u", "i1", "view", START_S + 100), ("u", "i2", "view", START_S + 200)]
    late = [item(f"i{n}", first_seen=START_S + 150 if n == 1 else START_S) for n in range(6)]
    result = evaluated(read_folder(write_folder(tmp_path / "shop", rows, late), RULES), ks=(6,))
    assert result["targets_out_of_reach"] == {"not to be shown": 1}
    # Nothing is left out but what was seen: five, then four or five places hold every item that had arrived.
    assert result["lists"]["next"]["hr@6"] == pytest.approx(2 / 3, abs=1e-6)
    assert result["catalogue"] == 6


def test_a_forgotten_user_is_a_stranger_again(tmp_path: Path) -> None:
    rows = [("u", "i0", "view", START_S), ("u", "i1", "view", START_S + 1), ("u", "", "forget", START_S + 2),
            ("u", "i0", "view", START_S + 3)]  # fmt: skip
    result = evaluated(small(tmp_path / "shop", rows))
    assert {name: found["questions"] for name, found in histories(result).items()} == {"history 0": 2, "history 1-5": 1}
    assert result["skipped"] == {}


def test_seen_items_are_asked_about_only_when_repeats_count(tmp_path: Path) -> None:
    rows = [("u", "i0", "view", START_S), ("u", "i0", "view", START_S + 1), ("u", "i0", "dislike", START_S + 2)]
    folder = small(tmp_path / "shop", rows)
    without, with_repeats = evaluated(folder, ks=(6,)), evaluated(folder, ks=(6,), repeats=True)
    assert without["questions"] == 1 and without["skipped"] == {"seen before": 1, "not a choice": 1}
    assert with_repeats["questions"] == 2 and with_repeats["lists"]["next"]["hr@6"] == 1


def test_progress_is_told(tmp_path: Path) -> None:
    folder, told = shop(tmp_path / "shop", events=1100), list[int]()
    evaluate(
        folder, vectors_of(folder), encoder(), served().offset, RULES, AskSettings(every=500), progress=told.append
    )
    assert told == [0, 1000]
