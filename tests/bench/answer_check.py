"""Checks answers offline: were their scores made with the model that they name, and with no part of another?

An answer names the newest event that it knows, so the log says which window it was made of. Each model encodes that
window as a whole and gives its own item vectors; what `explain` says must be the products of the named model's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from context.offsets import ContextOffset
from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from index.query.question import ContextView
from index.state.records import Vector, decode_vectors, encode_vectors
from tests.support.oracle import Oracle

TOLERANCE = 2e-3  # what DESIGN grants user vectors that are stored in halves
_ROUNDING = 1e-5  # of a score and its parts, which are shown with six digits
_AT_ONCE = 256  # windows encoded
_SLOTS = {"next": 0, "general": 1}  # rows of a user's vectors

Window = tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]  # items, kinds and times, oldest first
Newest = tuple[str, int | None]  # a user, and the time of the newest event of the window, None without events
NO_EVENTS: Window = ((), (), ())


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a recommendation asked with `explain`, and between which wall times it was made."""

    body: Mapping[str, Any]
    sent_ms: int
    done_ms: int

    @property
    def newest(self) -> Newest:
        return self.body["user_id"], self.body["as_of"]["ts_ms"]

    @property
    def has_vectors(self) -> bool:
        return bool(self.body["served_by"] != "popular")


class WindowHistory(Oracle):
    """The oracle, which keeps the windows that are `wanted`; several where two events have the newest time."""

    def __init__(self, partitions: int, wanted: Collection[Newest]) -> None:
        super().__init__(partitions)
        self._wanted = wanted
        self.found: dict[Newest, list[Window]] = defaultdict(list)

    def click(self, partition: int, body: dict[str, Any], timestamp_ms: int) -> None:
        super().click(partition, body, timestamp_ms)
        user = self.users[partition].get(body["user_id"])
        if user is None or not user.window or (body["user_id"], user.window[-1][0]) not in self._wanted:
            return
        times, _, _, items, kinds = zip(*user.window, strict=True)
        known = self.found[body["user_id"], times[-1]]
        if (items, kinds, times) not in known:
            known.append((items, kinds, times))


@dataclass(frozen=True, slots=True)
class ScoringModel:
    """A model with all items, which nobody else uses."""

    encoder: IncrementalEncoder
    offset: ContextOffset

    def users(self, windows: Sequence[tuple[Window, Mapping[str, Any] | None]]) -> Vector:
        """[n, 2, d] of windows with their users' profiles, as they are stored."""
        found = []
        for at in range(0, len(windows), _AT_ONCE):
            part = enumerate(windows[at : at + _AT_ONCE])
            requests = [EncodeRequest(n, *window, profile, 0) for n, (window, profile) in part]
            found.append(self.encoder.encode_whole(requests).vectors)
        stored = np.concatenate(found)
        return decode_vectors(encode_vectors(stored), 2 * len(stored), stored.shape[2]).reshape(stored.shape)

    def items(self, item_ids: Sequence[str]) -> Vector:
        """[n, d]; ValueError for an item that is not known."""
        return self.encoder.items.retrieval(item_ids)


@dataclass(slots=True)
class CheckedAnswers:
    """What was found. `wrong` says of each answer that is not its model's what fits instead."""

    answers: int = 0
    exact: int = 0  # right, and the window is the only one that the log has for it
    several: int = 0  # right with one of the windows that the log has for it
    unexplained: int = 0  # of a window that the log has not
    without_vectors: int = 0  # of a user without vectors: what context adds was checked, if anything
    told_apart: int = 0  # with vectors, where no mixture with another model, nor that one, would have passed
    worst: float = 0.0  # largest difference of a right answer
    wrong: list[str] = field(default_factory=list)


class AnswerCheck:
    """Compares answers with `models` by version.

    Args:
        windows: those that a user had when an event was the newest.
        profiles: by user.
        contexts: the records in force, by location.
    """

    def __init__(
        self,
        models: Mapping[str, ScoringModel],
        windows: Mapping[Newest, Sequence[Window]],
        profiles: Mapping[str, Mapping[str, Any] | None],
        contexts: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._models, self._windows, self._profiles, self._contexts = models, windows, profiles, contexts
        self._users: dict[str, dict[tuple[str, Window], Vector]] = {version: {} for version in models}

    def check(self, answers: Sequence[Answer]) -> CheckedAnswers:
        """All answers."""
        self._encode(answers)
        found = CheckedAnswers(len(answers))
        for answer in answers:
            self._check(answer, found)
        return found

    def planted(self, answers: Iterable[Answer]) -> list[Answer]:
        """These answers as they would be if their item vectors came from another model than their user vectors."""
        versions, made = list(self._models), []
        for answer in answers:
            named = answer.body["model"]
            other = versions[versions.index(named) - 1]
            windows = self._known(answer)
            if answer.has_vectors and windows and other != named:
                users = self._users[named][answer.newest[0], windows[0]]
                cosines = _cosines(answer, users, self._models[other])
                made.append(_with_cosines(answer, cosines))
        return made

    def _known(self, answer: Answer) -> Sequence[Window]:
        """The windows that it may have been made of."""
        return [NO_EVENTS] if answer.newest[1] is None else self._windows.get(answer.newest, ())

    def _encode(self, answers: Sequence[Answer]) -> None:
        """User vectors of every model for every window that an answer may have been made of."""
        wanted = {
            (answer.newest[0], window): None
            for answer in answers
            if answer.has_vectors
            for window in self._known(answer)
        }
        for version, model in self._models.items():
            known = self._users[version]
            new = [key for key in wanted if key not in known]
            if new:
                vectors = model.users([(window, self._profiles.get(user)) for user, window in new])
                known.update(zip(new, vectors, strict=True))

    def _check(self, answer: Answer, found: CheckedAnswers) -> None:
        body, named = answer.body, answer.body["model"]
        if named not in self._models:
            found.wrong.append(f"{named} is no model of this deployment")
            return
        if bad := [item["item_id"] for item in body["items"] if not _adds_up(item)]:
            found.wrong.append(f"the parts of {bad} do not make up their scores")
            return
        context_gap = self._context_gap(answer, self._models[named])
        if context_gap > TOLERANCE:
            found.wrong.append(f"what context adds is not {named}'s, by {context_gap:.4f}")
            return
        if not answer.has_vectors:
            found.without_vectors += 1
            return
        windows = self._known(answer)
        if not windows:
            found.unexplained += 1
            return
        gaps = self._gaps(answer, windows)
        fitting = {pair for pair, gap in gaps.items() if gap <= TOLERANCE}
        if (named, named) not in fitting:
            user, item = min(gaps, key=gaps.__getitem__)
            found.wrong.append(
                f"{body['user_id']}'s answer names {named}, from which it differs by {gaps[named, named]:.4f}; "
                f"nearest: users of {user} and items of {item}, by {gaps[user, item]:.4f}"
            )
            return
        found.exact += len(windows) == 1
        found.several += len(windows) > 1
        found.told_apart += fitting == {(named, named)}
        found.worst = max(found.worst, gaps[named, named], context_gap)

    def _gaps(self, answer: Answer, windows: Sequence[Window]) -> dict[tuple[str, str], float]:
        """By the models of user and item vectors, how far the shown products are from theirs, at the best window."""
        shown = np.array([item["explain"]["cosine"] for item in answer.body["items"]])
        gaps: dict[tuple[str, str], float] = {}
        for of_items, model in self._models.items():
            for of_users, known in self._users.items():
                found = [_cosines(answer, known[answer.newest[0], window], model) for window in windows]
                gaps[of_users, of_items] = min(float(np.abs(shown - one).max(initial=0.0)) for one in found)
        return gaps

    def _context_gap(self, answer: Answer, model: ScoringModel) -> float:
        """How far what context adds is from what it would at either end of the time in which the answer was made."""
        items = answer.body["items"]
        shown = np.array([item["explain"].get("context", 0.0) for item in items])
        rows, location = model.items([item["item_id"] for item in items]), answer.body["context"]["location"]
        gaps = []
        for now_ms in (answer.sent_ms, answer.done_ms):
            delta = ContextView.at(location, self._contexts.get(location), now_ms, model.offset).delta
            added = np.zeros(len(items)) if delta is None else rows @ delta
            gaps.append(float(np.abs(shown - added).max(initial=0.0)))
        return min(gaps)


def _cosines(answer: Answer, users: Vector, model: ScoringModel) -> Vector:
    """[n] products of a user's vectors [2, d] with the listed items' of a model."""
    items = answer.body["items"]
    rows = model.items([item["item_id"] for item in items])
    return np.asarray(np.einsum("nd,nd->n", rows, users[[_SLOTS[item["slot"]] for item in items]]), np.float32)


def _with_cosines(answer: Answer, cosines: Vector) -> Answer:
    """The answer with other products, and scores to match."""
    items = []
    for item, cosine in zip(answer.body["items"], cosines.tolist(), strict=True):
        parts = {**item["explain"], "cosine": cosine}
        items.append({**item, "explain": parts, "score": sum(parts.values())})
    return Answer({**answer.body, "items": items}, answer.sent_ms, answer.done_ms)


def _adds_up(item: Mapping[str, Any]) -> bool:
    return bool(abs(item["score"] - sum(item["explain"].values())) <= _ROUNDING)
