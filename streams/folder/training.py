"""Joins a data folder up to a time into the columns that the encoder trains on.

Events with item vectors, the context in force at each event's own time and place, the items shown on the same page and
not chosen, and profiles. Nothing at or after `before_ms` is looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.features import ContextFeatures
from context.timeline import ContextTimeline
from encoder.training.dataset import TrainingData
from streams.folder.reader import FORGET_CODE, Folder
from streams.folder.reloads import reloads, repeats
from streams.item_vectors import ItemVectors
from streams.pipeline.user_state import BUCKET_MS, VIEW

MAX_SHOWN = 10  # same-page negatives per event: the M of STARS (arXiv 2512.10149)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Training data and what it was made of."""

    data: TrainingData
    user_ids: list[str]  # [n_users] in the order of data.user_ptr
    left_out: int  # events on items without a vector: they cannot be recommended, so nothing is learned from them
    unembedded: int  # those of them whose item has a record; the others count in `Folder.left_out`
    folded: int = 0  # reloads, which change no window


def context_features(folder: Folder, before_ms: int | None = None) -> ContextFeatures:
    """The feature vocabulary of the contexts before `before_ms`, calendar centred on the events before it."""
    times = folder.events.ts_ms[: folder.events.before(before_ms)]
    return ContextFeatures.build(_until(folder.contexts, before_ms), times)


def training_data(
    folder: Folder, vectors: ItemVectors, features: ContextFeatures | None = None, before_ms: int | None = None
) -> Prepared:
    """Everything the folder says before `before_ms` (None: all of it), ready for training.

    Events at or before a user's last forget are left out, and reloads, as they are in the live state. Without
    `features` there is no context. Raises ValueError when nothing is left to train on.
    """
    rows, without, folded = _usable_rows(folder, vectors, before_ms)
    if not len(rows):
        when = "" if before_ms is None else " before the split"
        raise ValueError(
            f"{folder.name} has no event{when} on an item with a vector; nothing to train on (left out: "
            f"{folder.left_out})"
        )
    order = rows[np.argsort(folder.events.users[rows], kind="stable")]  # by (user, time)
    users, counts = np.unique(folder.events.users[order], return_counts=True)
    known = _known_items(folder, vectors, before_ms)
    place = np.full(len(folder.item_ids), -1, np.int32)
    place[known] = np.arange(len(known))
    user_ids = [folder.user_ids[user] for user in users]
    data = TrainingData(
        **_item_columns(folder, vectors, known),
        user_ptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        items=place[folder.events.items[order]],
        kinds=folder.events.kinds[order].astype(np.uint8),
        ts_ms=folder.events.ts_ms[order],
        context=_context(folder, order, features, before_ms),
        pages=_pages(folder, order, folded, place) if folder.impressions else None,
        profiles=_profiles(folder, user_ids, before_ms) if folder.profiles else None,
        worth=_worth(folder, order),
        places=np.array(folder.events.detail("location"), dtype=object)[order].tolist(),
    )
    return Prepared(data, user_ids, len(without), int((without < len(folder.items)).sum()), len(folded))


def _usable_rows(
    folder: Folder, vectors: ItemVectors, before_ms: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Positions of the events to train on, in time order; items of those without a vector; positions that fold."""
    stop, events = folder.events.before(before_ms), folder.events
    has_vector = np.append(_vectored(folder, vectors), False)  # the last entry serves the item -1 of a forget
    remembered = events.ts_ms[:stop] > _forgotten_ms(folder, stop)[events.users[:stop]]
    clicks = np.flatnonzero((events.kinds[:stop] != FORGET_CODE) & remembered)
    views = events.kinds[clicks] == (folder.kind_names.index(VIEW) if VIEW in folder.kind_names else FORGET_CODE)
    folded = reloads(events.users[clicks], events.items[clicks], views, events.ts_ms[clicks], folder.reload_ms)
    stored = clicks[~folded]
    usable = has_vector[events.items[stored]]
    return stored[usable], events.items[stored[~usable]], clicks[folded]


def _worth(folder: Folder, order: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each event in `order`, a user's in time order, counts for popularity [n], as `user_state.voice`."""
    events = folder.events
    kinds = events.kinds[order]
    heard = repeats(events.users[order], events.items[order], kinds, events.ts_ms[order] // BUCKET_MS)
    return np.right_shift(np.maximum(folder.kind_weights, 0)[kinds], np.minimum(heard, 62)).astype(np.float32)


def _forgotten_ms(folder: Folder, stop: int) -> NDArray[np.int64]:
    """When each user was last forgotten [users], -1 = never."""
    marks = np.full(len(folder.user_ids), -1, np.int64)
    forgets = np.flatnonzero(folder.events.kinds[:stop] == FORGET_CODE)
    np.maximum.at(marks, folder.events.users[forgets], folder.events.ts_ms[forgets])
    return marks


def _known_items(folder: Folder, vectors: ItemVectors, before_ms: int | None) -> list[int]:
    """Items with a vector that had become known, or were acted upon, before `before_ms`."""
    stop = folder.events.before(before_ms)
    known = folder.arrivals_ms < before_ms if before_ms is not None else np.ones(len(folder.item_ids), bool)
    acted = folder.events.items[:stop]
    known[acted[acted >= 0]] = True
    return [int(number) for number in np.flatnonzero(known & _vectored(folder, vectors))]


def _vectored(folder: Folder, vectors: ItemVectors) -> NDArray[np.bool_]:
    """Which items have a vector [items]."""
    known = set(vectors.item_ids)
    return np.array([item_id in known for item_id in folder.item_ids], bool)


def _item_columns(folder: Folder, vectors: ItemVectors, known: Sequence[int]) -> dict[str, Any]:
    row = {item_id: number for number, item_id in enumerate(vectors.item_ids)}
    rows = [row[folder.item_ids[number]] for number in known]
    return {
        "item_ids": [folder.item_ids[number] for number in known],
        "item_vectors": np.asarray(vectors.vectors, np.float32)[rows],
        "item_tags": [list(vectors.tags[number]) for number in rows],
        "item_subclass": [subclass_of(folder.items[n]) if n < len(folder.items) else "" for n in known],
    }


def subclass_of(item: Mapping[str, Any]) -> str:
    """The item's subclass, else its last category."""
    return str(item.get("subclass") or next(iter((item.get("category") or [])[-1:]), ""))


def _context(
    folder: Folder, order: NDArray[np.int64], features: ContextFeatures | None, before_ms: int | None
) -> NDArray[np.float32] | None:
    """Features at each event's own time and place [n, F]."""
    if features is None:
        return None
    timeline = ContextTimeline(_until(folder.contexts, before_ms))
    places = np.array(folder.events.detail("location"), dtype=object)[order]
    ts_ms = folder.events.ts_ms[order]
    return features.encode_many(ts_ms, timeline.index(places.tolist(), ts_ms), timeline.records)


def _until(records: Sequence[Mapping[str, Any]], before_ms: int | None) -> list[Mapping[str, Any]]:
    return [record for record in records if before_ms is None or record["ts_ms"] < before_ms]


def _profiles(folder: Folder, user_ids: Sequence[str], before_ms: int | None) -> list[Mapping[str, Any] | None]:
    """The newest profile of each user [users]; None without one."""
    newest = {
        record["user_id"]: {name: record.get(name) or {} for name in ("numeric", "categorical")}
        for record in _until(folder.profiles, before_ms)
    }
    return [newest.get(user_id) for user_id in user_ids]


def _pages(
    folder: Folder, order: NDArray[np.int64], folded: NDArray[np.int64], place: NDArray[np.int32]
) -> list[NDArray[np.int32]]:
    """For each event up to MAX_SHOWN items of its page that were not chosen, the nearest to the chosen one first."""
    events, pages = folder.events, folder.impressions
    item_index = {item_id: number for number, item_id in enumerate(folder.item_ids)}
    found: list[tuple[int, int]] = []  # (page, item) of each event in `order`, page -1 without one
    chosen: dict[int, set[int]] = defaultdict(set)
    for at, page in zip(order.tolist(), _pages_of(folder, order), strict=True):
        chosen[page].add(int(events.items[at]))
        found.append((page, int(events.items[at])))
    for at, page in zip(folded.tolist(), _pages_of(folder, folded), strict=True):
        chosen[page].add(int(events.items[at]))
    shown = {
        page: [item_index.get(item, -1) for item in pages[page].get("shown") or ()] for page in chosen if page >= 0
    }
    return [_not_chosen(shown.get(page, []), item, chosen[page], place) for page, item in found]


def _pages_of(folder: Folder, order: NDArray[np.int64]) -> Iterator[int]:
    """The page of each event in `order` as its place among the impressions, -1 without one.

    It is the list of the event's `recommendation_id`, else of its user's page `page_id` (of several lists the last that
    shows the item), else the one on which its user clicked its item in that second.
    """
    pages, events = folder.impressions, folder.events
    by_list = {page["recommendation_id"]: number for number, page in enumerate(pages) if page.get("recommendation_id")}
    by_page: dict[tuple[Any, str], list[int]] = defaultdict(list)
    for number, page in enumerate(pages):
        if page.get("page_id"):
            by_page[page.get("user_id"), page["page_id"]].append(number)
    by_click = {
        (page.get("user_id"), page.get("timestamp"), page.get("clicked")): number for number, page in enumerate(pages)
    }
    lists, page_ids = events.detail("recommendation_id"), events.detail("page_id")
    for at in order.tolist():
        user, item = folder.user_ids[events.users[at]], folder.item_ids[int(events.items[at])]
        same = by_page.get((user, page_ids[at])) or by_page.get((None, page_ids[at]), [])
        showing = (number for number in reversed(same) if item in (pages[number].get("shown") or ()))
        clicked = by_click.get((user, int(events.ts_ms[at]) // 1000, item), -1)
        yield by_list.get(lists[at], next(showing, same[-1] if same else clicked))


def _not_chosen(shown: Sequence[int], item: int, chosen: set[int], place: NDArray[np.int32]) -> NDArray[np.int32]:
    at = shown.index(item) if item in shown else 0
    # Nearest first, and of two equally near ones that above: it was looked at before the click.
    nearest = sorted(range(len(shown)), key=lambda position: (abs(position - at), position))
    candidates = [int(place[shown[p]]) for p in nearest if shown[p] >= 0 and shown[p] not in chosen]
    return np.array([number for number in candidates if number >= 0][:MAX_SHOWN], np.int32)
