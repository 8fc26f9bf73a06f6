"""Offline evaluation: who is asked what, and that time, place, history and availability act as they do live."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from context.features import ContextFeatures
from context.offsets import ContextOffset
from index.query.question import Weights
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut, QuestionSettings
from streams.evaluation.rankers import OfflineModel
from streams.evaluation.staleness.delays import FRESH
from streams.evaluation.timeline import evaluate
from streams.folder.reader import Folder, read_folder
from tests.support.folders import START_S, item, write_folder
from tests.support.replay_world import CONFIG, RULES, encoder, held_out, offline, served, shop, vectors_of
from tests.support.staleness_world import Oracle, asked, offset_of, stream
from tests.support.staleness_world import vectors_of as lattice_vectors


def evaluated(folder: Folder, offset: ContextOffset | None = None, baskets: bool = False, **ask: Any) -> dict[str, Any]:
    model = OfflineModel(encoder(), offset or served().offset)
    return evaluate(held_out(folder, QuestionSettings(**ask)), model, baskets=baskets)


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
    monkeypatch.setattr("streams.evaluation.staleness.sweep._BATCH", 1)
    assert evaluated(folder) == together


def test_a_cold_user_gets_the_popular_list(tmp_path: Path) -> None:
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


def lists_of(folder: Folder, monkeypatch: pytest.MonkeyPatch, **ask: Any) -> list[dict[str, set[str]]]:
    """What each list held at each question."""
    found: list[dict[str, set[str]]] = []

    def add(self: Comparison, lists: dict[str, list[str]], *_: Any) -> None:
        found.append({name: set(ranked) for name, ranked in lists.items()})

    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "add", add)
        evaluated(folder, **ask)
    return found


def test_the_live_hard_rules_hold_at_the_time_of_each_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noon_ms = (START_S + 1000) * 1000
    times = [noon_ms - 2000, noon_ms - 1, noon_ms, noon_ms + 1]
    rows = [("u", "i0", "view", ms // 1000, ms) for ms in times]
    header = "user_id,item_id,event_type,timestamp,ts_ms"
    here = {"first_seen": START_S}
    items = [
        item("i0", **here), item("always", **here, starts_ms=None, ends_ms=None, regions=["mars"]),
        item("ends", **here, ends_ms=noon_ms), item("starts", **here, starts_ms=noon_ms),
        item("one ms", **here, starts_ms=noon_ms, ends_ms=noon_ms + 1), item("out of stock", **here, available=False),
        item("refused", **here, brand="\u0007"), item("arrives", first_seen=START_S + 1000),
    ]  # fmt: skip
    folder = read_folder(write_folder(tmp_path / "shop", rows, items, header=header), RULES)
    before, at, after = {"ends"}, {"starts", "one ms", "arrives"}, {"starts", "arrives"}
    expected = [{"i0", "always"} | more for more in (before, before, at, after)]
    found = lists_of(folder, monkeypatch, ks=(9,), repeats=True)
    assert [set(map(frozenset, lists.values())) for lists in found] == [{frozenset(names)} for names in expected]


def test_a_target_that_may_not_be_shown_now_is_out_of_reach(tmp_path: Path) -> None:
    rows = [("u", name, "view", START_S + n) for n, name in enumerate(["i0", "ended", "ended", "i1"])]
    items = [item("i0"), item("i1"), item("ended", first_seen=START_S, ends_ms=(START_S + 2) * 1000)]
    result = evaluated(read_folder(write_folder(tmp_path / "shop", rows, items), RULES), ks=(9,), repeats=True)
    assert result["targets_out_of_reach"] == {"not to be shown": 1} and result["questions"] == 4
    assert result["lists"]["next"]["hr@9"] == result["lists"]["recent popularity"]["hr@9"] == 0.75
    assert result["catalogue"] == 3  # it could have been shown


def test_a_forgotten_user_is_a_cold_user_again(tmp_path: Path) -> None:
    rows = [("u", "i0", "view", START_S), ("u", "i1", "view", START_S + 1), ("u", "", "forget", START_S + 2),
            ("u", "i0", "view", START_S + 3)]  # fmt: skip
    result = evaluated(small(tmp_path / "shop", rows))
    assert {name: found["questions"] for name, found in histories(result).items()} == {"history 0": 2, "history 1": 1}
    assert result["skipped"] == {}


def test_seen_items_are_asked_about_only_when_repeats_count(tmp_path: Path) -> None:
    rows = [("u", "i0", "view", START_S), ("u", "i0", "view", START_S + 1), ("u", "i0", "dislike", START_S + 2)]
    folder = small(tmp_path / "shop", rows)
    without, with_repeats = evaluated(folder, ks=(6,)), evaluated(folder, ks=(6,), repeats=True)
    assert without["questions"] == 1 and without["skipped"] == {"seen before": 1, "not a choice": 1}
    assert with_repeats["questions"] == 2 and with_repeats["lists"]["next"]["hr@6"] == 1


def test_a_basket_is_one_question_about_all_that_is_new_in_it(tmp_path: Path) -> None:
    def basket(user: str, second: int, *names: str) -> list[tuple[str, str, str, int]]:
        return [(user, name, "purchase", START_S + second) for name in names]

    rows = (
        basket("u", 0, "i0", "i1")
        + basket("v", 0, "i0")
        + basket("u", 5, "i1", "i2", "i3", "i2")
        + basket("u", 9, "i0")
    )
    folder = small(tmp_path / "shop", rows)
    result = evaluated(folder, baskets=True, ks=(1, 6))
    # Of u's second basket i1 is known and i2 is there twice; the third has nothing new.
    assert result["questions"] == 3 and result["skipped"] == {"seen before": 3}
    assert {name: found["questions"] for name, found in histories(result).items()} == {"history 0": 2, "history 2-3": 1}
    assert result["lists"]["next"]["recall@6"] == 1
    # A list of one place holds at most one of two targets.
    assert result["lists"]["next"]["recall@1"] <= (0.5 + 1 + 0.5) / 3
    assert evaluated(folder, ks=(6,))["questions"] == 5


def test_what_lies_in_a_basket_does_not_help_to_guess_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("u", "i0", "view", START_S)] + [("u", f"i{n}", "purchase", START_S + 9) for n in (0, 1, 2)]
    asked = [set[str]()]
    for order in (rows, [rows[0], *rows[:0:-1]]):
        folder = small(tmp_path / f"shop-{len(asked)}", order)
        (_, lists) = lists_of(folder, monkeypatch, baskets=True, ks=(9,))
        asked.append(lists["next"])
    assert asked[1:] == [{f"i{n}" for n in range(1, 6)}] * 2


def test_each_second_basket_is_asked_about_whole(tmp_path: Path) -> None:
    rows = [("u", f"i{n}", "purchase", START_S + n // 2) for n in range(6)]
    result = evaluated(small(tmp_path / "shop", rows), baskets=True, every=2, ks=(2,))
    assert result["questions"] == 1 and result["skipped"] == {"between questions": 4}


def test_batches_change_no_basket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    rows = [(f"u{rng.randrange(9)}", f"i{rng.randrange(6)}", "purchase", START_S + n // 12) for n in range(150)]
    folder = small(tmp_path / "shop", rows)
    together = evaluated(folder, baskets=True, repeats=True)
    assert together["questions"] < 120
    monkeypatch.setattr("streams.evaluation.staleness.sweep._BATCH", 2)
    assert evaluated(folder, baskets=True, repeats=True) == together


@pytest.mark.parametrize(("repeats", "popularity"), [(True, 0.0), (False, 0.0), (False, 0.4)])
def test_every_target_is_where_brute_force_puts_it(tmp_path: Path, repeats: bool, popularity: float) -> None:
    folder = stream(tmp_path / "f")
    model = OfflineModel(encoder(), offset_of(folder), Weights(popularity=popularity))
    found = evaluate(HeldOut(folder, lattice_vectors(folder), RULES, asked(repeats), model.weights), model)
    expected = Oracle(folder, repeats, popularity).ranks(FRESH)
    for way, ranks in expected.items():
        assert found["questions"] == len(ranks) > 40
        mean = sum(1 / rank for rank in ranks if rank) / len(ranks)
        assert found["lists"][way]["mrr@36"] == pytest.approx(mean, abs=1e-6), way


def test_a_purchase_counts_as_seen_for_as_long_as_the_models_weights_say(tmp_path: Path) -> None:
    clicks = [("u", "i0", "purchase", START_S), *(("u", f"i{n}", "view", START_S + n) for n in range(1, 26))]
    rows = [*clicks, ("u", "i0", "view", START_S + 60)]  # i0 has left the window of 20 + 4 events
    folder = read_folder(write_folder(tmp_path / "shop", rows, [item(f"i{n}") for n in range(26)]), RULES)
    skipped = []
    for purchase_ms in (59_000, 61_000):
        model = OfflineModel(encoder(), served().offset, Weights(popularity=0, purchase_ms=purchase_ms))
        held = HeldOut(folder, vectors_of(folder), RULES, QuestionSettings(ks=(6,)), model.weights)
        skipped.append(evaluate(held, model)["skipped"])
    assert skipped == [{}, {"seen before": 1}]


def test_baskets_are_answered_as_they_were(tmp_path: Path) -> None:
    """Known answers, of the evaluator that went through the timeline on its own until it became a sweep.

    But for what popularity adds since a user's repeats count less and less.
    """
    rng = random.Random(3)
    kinds = ("purchase", "view")
    rows = [
        (f"u{rng.randrange(9)}", f"i{rng.randrange(12)}", rng.choice(kinds), START_S + n // 5 * 7) for n in range(300)
    ]
    folder = read_folder(write_folder(tmp_path / "bask", rows, [item(f"i{n}") for n in range(12)]), RULES)
    start_ms = int(folder.events.ts_ms[len(folder.events) // 4])
    ask = QuestionSettings(("mixed", "next", "general"), (1, 5, 10), start_ms)
    found = evaluate(held_out(folder, ask), offline(popularity=0.4), baskets=True)
    assert found["questions"] == 43
    assert found["skipped"] == {"before the start": 62, "between questions": 13, "seen before": 174}
    assert {name: (means["recall@5"], means["ndcg@10"]) for name, means in found["lists"].items()} == {
        "mixed": (0.930233, 0.722332),
        "next": (0.930233, 0.719818),
        "general": (0.906977, 0.693769),
        "recent popularity": (0.918605, 0.717446),
        "all-time popularity": (0.918605, 0.717446),
    }


def test_progress_is_told(tmp_path: Path) -> None:
    folder, told = shop(tmp_path / "shop", events=1100), list[tuple[int, int]]()
    evaluate(held_out(folder, QuestionSettings(every=500)), offline(), progress=lambda *step: told.append(step))
    assert told == [(0, 1100), (1000, 1100)]
