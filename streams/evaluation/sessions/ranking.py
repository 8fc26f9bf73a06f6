"""Ranks what was shown by perseid's vectors, LambdaMART, popularity, and as it was shown.

Global time split: LambdaMART learns from slates of the same view that ended before it, as the encoder did from events;
those across it are left out. Ties are broken by one random order a slate. A cold user gets the recently popular first,
as live.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from context.timeline import ContextTimeline
from encoder.inference.incremental import IncrementalEncoder
from encoder.training.holdout import in_turn
from streams.evaluation.comparison import Comparison
from streams.evaluation.rankers import OfflineModel, retrieval_vectors
from streams.evaluation.sessions.features import FEATURES, GROUPS
from streams.evaluation.sessions.lambdamart import Examples, LambdaMart, train_lambdamart
from streams.evaluation.sessions.sessions import LABELS, VIEWS, Label, Slate, View, read_sessions
from streams.evaluation.sessions.timeline import SessionQuestion, session_questions
from streams.evaluation.sessions.two_stage import (
    TRAININGS,
    TREES,
    TWO_STAGE,
    ListFeatures,
    TrainedTrees,
    importance,
    question_of,
    rankers_of,
    taught_slates,
    train_rankers,
)
from streams.evaluation.slices import Facts
from streams.evaluation.tables import moment
from streams.events import Rules
from streams.folder.reader import Folder
from streams.item_vectors import ItemVectors
from streams.ranking.training import TaughtList, TrainedScorer

PERSEID = ("round robin", "h_next", "h_gen")
LEARNED: Mapping[str, tuple[str, ...]] = {  # name → groups of features
    "LambdaMART": tuple(name for name in GROUPS if name not in ("position", "category")),
    "LambdaMART + position": tuple(name for name in GROUPS if name != "category"),
    "LambdaMART + position + category": tuple(GROUPS),
}
BY_COLUMN = {"popularity": "events", "recent popularity": "recent_events", "choice rate": "choice_rate"}
SHOWN = "as shown"
BASELINES = (*LEARNED, *BY_COLUMN, SHOWN)
NAMES: Mapping[View, str] = {"before": "session", "page": "page"}  # what a slate of each is called
SIZES = ((1, "1-10"), (11, "11-30"), (31, "31-100"), (101, "101+"))  # STARS, figure 5
_BATCH = 256  # windows encoded together
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What is measured: slates after `split_ms`, with a `choice` as in `read_sessions`.

    Of the slates of each view every `every`-th is taken, to learn from and to ask about. Every ranker is trained
    `trainings` times; there is also one without each group of features of `without`.
    """

    split_ms: int
    choice: str
    seed: int = 0
    threads: int = 1
    resamples: int = 1000
    views: Sequence[View] = VIEWS
    every: int = 1
    known_ms: int | None = None  # the encoder has learned from what came before; None: from all before the split
    trainings: int = TRAININGS
    without: Sequence[str] = ()


def evaluate_sessions(
    folder: Folder,
    vectors: ItemVectors,
    model: OfflineModel,
    rules: Rules,
    plan: SessionPlan,
    progress: Callable[[int, int], None] | None = None,
    list_features: ListFeatures | None = None,
) -> dict[str, Any]:
    """Metrics of every ranker by view and label, as plain values for JSON.

    With `list_features` the second stage stands beside them, where there are slates that the encoder does not know.

    Raises:
        ValueError: the folder has no impressions or choices, or too few slates lie before or none after the split.
    """
    rankers_of(plan.without)  # refuses an unknown group before anything is computed
    found = read_sessions(folder, plan.choice)
    drawn = {view: _drawn(found.slates[view], plan) for view in plan.views}
    for view, slates in drawn.items():
        _check(folder, view, slates, plan)
    shown = {shown.item_id for slates in drawn.values() for slate in slates for shown in slate.shown}
    if shown.isdisjoint(vectors.item_ids):
        raise ValueError(f"none of the {len(shown)} items that were shown has a vector; left out: {folder.left_out}")
    asked = session_questions(folder, replace(found, slates=drawn), rules, model.encoder.model.config, progress)
    by_view: dict[View, list[SessionQuestion]] = {view: [] for view in plan.views}
    for question in asked:
        by_view[question.view].append(question)
    items, timeline = _Vectors(model.encoder, vectors), ContextTimeline(folder.contexts)
    second = {view: _second(folder, rules, view, by_view[view], list_features, plan) for view in plan.views}
    return {
        "sessions": _counts(found.slates["before"], plan),
        "pages": _counts(found.slates["page"], plan),
        "every": plan.every,
        "drawn": {view: _counts(slates, plan) for view, slates in drawn.items()},
        "left_out": dict(found.left_out),
        "choice": plan.choice,
        "views": {view: _ranked(by_view[view], items, model, timeline, second[view], plan) for view in plan.views},
    }


def _drawn(slates: Sequence[Slate], plan: SessionPlan) -> list[Slate]:
    """Every n-th of those that are used at all."""
    return [slate for slate in slates if _part(slate, plan) != "across the split"][:: plan.every]


def _check(folder: Folder, view: View, drawn: Sequence[Slate], plan: SessionPlan) -> None:
    """Raises ValueError where nothing is asked about."""
    if not drawn or drawn[-1].start_ms < plan.split_ms:
        last = f", the last one does at {moment(drawn[-1].start_ms)}" if drawn else ""
        raise ValueError(
            f"no {NAMES[view]} of {folder.name} with a choice of kind {plan.choice!r} begins after "
            f"{moment(plan.split_ms)}{last}; give an earlier --split, or another --choice"
        )


def _counts(slates: Sequence[Slate], plan: SessionPlan) -> dict[str, int]:
    return dict(Counter(_part(slate, plan) for slate in slates))


def _part(slate: Slate, plan: SessionPlan) -> str:
    if slate.end_ms < plan.split_ms:
        return "to learn from"
    return "asked about" if slate.start_ms >= plan.split_ms else "across the split"


@dataclass(frozen=True, slots=True)
class _SecondStage:
    """Rankers that were trained on slates of one view, or why there are none, and features by test slate and label."""

    rankers: Mapping[str, Sequence[TrainedScorer | TrainedTrees]]  # of each its trainings
    features: Mapping[tuple[int, Label], NDArray[np.float32]]
    missing: str | None = None

    @property
    def trainings(self) -> dict[str, list[str]]:
        """Of each ranker what its lists are called."""
        return {name: [f"{name}, training {n}" for n in range(len(made))] for name, made in self.rankers.items()}

    def scores(self, number: int, label: Label) -> dict[str, Floats]:
        """Of one slate's candidates [m], by training."""
        features, called = self.features[number, label], self.trainings
        return {
            own: trained.scores(features).astype(np.float64)
            for name, made in self.rankers.items()
            for own, trained in zip(called[name], made, strict=True)
        }

    def described(self, asked: Sequence[TaughtList], seed: int) -> dict[str, Any]:
        """How each came to be and, of those with all groups, what each feature is worth on lists that were asked."""
        if self.missing is not None:
            return {"missing": self.missing}
        found: dict[str, Any] = {}
        for name, made in self.rankers.items():
            trainings = [{key: value for key, value in one.facts.items() if key != "lists"} for one in made]
            found[name] = {"lists": made[0].facts["lists"], "trainings": trainings}
            if name in TWO_STAGE and asked:
                networks = [one for one in made if isinstance(one, TrainedScorer)]
                found[name]["importance"] = importance(asked, networks, seed)
        return found


def _second(
    folder: Folder,
    rules: Rules,
    view: View,
    questions: Sequence[SessionQuestion],
    list_features: ListFeatures | None,
    plan: SessionPlan,
) -> _SecondStage:
    if list_features is None or plan.known_ms is None:
        return _SecondStage({}, {}, "the encoder has learned from all that lies before the split")
    taught = taught_slates(folder, rules, plan.choice, view, plan.known_ms, plan.split_ms, plan.every)
    test = [question for question in questions if question.slate.start_ms >= plan.split_ms]
    asked = [(at, label) for at, one in enumerate(test) for label in (LABELS[:1] if one.slate.one_label else LABELS)]
    found = list_features(
        [
            *(question_of(number, one.slate) for number, one in enumerate(taught)),
            *(question_of(len(taught) + at, test[number].slate, label) for at, (number, label) in enumerate(asked)),
        ]
    )
    try:
        lists = [found[number] for number in range(len(taught))]
        rankers = train_rankers(taught, lists, plan.seed, plan.threads, plan.trainings, plan.without)
    except ValueError as error:
        return _SecondStage({}, {}, str(error))
    features = {which: found[len(taught) + at] for at, which in enumerate(asked)}
    alike = {(at, label): features[at, LABELS[0]] for at in range(len(test)) for label in LABELS}
    return _SecondStage(rankers, alike | features)


def _ranked(
    questions: Sequence[SessionQuestion],
    items: _Vectors,
    model: OfflineModel,
    timeline: ContextTimeline,
    second: _SecondStage,
    plan: SessionPlan,
) -> dict[Label, Any]:
    """Results by label; where both labels ask the same of all slates, the same result."""
    train = [question for question in questions if question.slate.end_ms < plan.split_ms]
    test = [question for question in questions if question.slate.start_ms >= plan.split_ms]
    pairs, results = _user_vectors(model, timeline, test), dict[Label, Any]()
    alike = all(question.slate.one_label for question in questions)
    for label in LABELS[:1] if alike else LABELS:
        ranking = _Ranking(label, items, _learned(train, label, plan), second, plan)
        for number, (question, pair) in enumerate(zip(test, pairs, strict=True)):
            ranking.take(question, number, pair)
        results[label] = ranking.result()
    return {label: results.get(label, results[LABELS[0]]) for label in LABELS}


def _learned(train: Sequence[SessionQuestion], label: Label, plan: SessionPlan) -> dict[str, LambdaMart]:
    examples = examples_of(train, label, plan.seed)
    columns = {name: [FEATURES.index(f) for group in groups for f in GROUPS[group]] for name, groups in LEARNED.items()}
    return {name: train_lambdamart(examples, of, plan.seed, plan.threads) for name, of in columns.items()}


def examples_of(train: Sequence[SessionQuestion], label: Label, seed: int = 0) -> Examples:
    """The candidates of all slates in turn, each slate's in a random order.

    LightGBM's NDCG takes equal scores in the order of the rows: in the order shown, few large leaves would look good to
    early stopping because the first places are clicked most.
    """
    rng = np.random.default_rng(seed)
    features, targets = [np.zeros((0, len(FEATURES)), np.float32)], list[bool]()
    for question in train:
        candidates, chosen = question.slate.candidates(label), question.slate.targets(label)
        order = rng.permutation(len(candidates))
        features.append(question.features[label][order])
        targets += [candidates[at].item_id in chosen for at in order]
    return Examples(np.concatenate(features), np.array(targets, np.int64), [len(rows) for rows in features[1:]])


def _user_vectors(
    model: OfflineModel, timeline: ContextTimeline, test: Sequence[SessionQuestion]
) -> NDArray[np.float32]:
    """h_next + Δ and h_gen + Δ of each question [n, 2, d]."""
    requests, deltas = [question.request for question in test], []
    batches = (requests[start : start + _BATCH] for start in range(0, len(requests), _BATCH))
    found = [model.encoder.encode_whole(batch).vectors for batch in batches]
    for question in test:
        record = timeline.active(question.slate.location, question.slate.start_ms) if question.slate.location else None
        deltas.append(model.offset.offset(question.slate.start_ms, record).delta)
    return np.concatenate(found) + np.stack(deltas)[:, None]


class _Vectors:
    """Retrieval vectors of items that have one."""

    def __init__(self, encoder: IncrementalEncoder, vectors: ItemVectors) -> None:
        self._row = {item_id: row for row, item_id in enumerate(vectors.item_ids)}
        self._matrix = retrieval_vectors(encoder, vectors)  # [n, d]

    def products(self, pair: NDArray[np.float32], item_ids: Sequence[str]) -> Floats:
        """Scores by h_next and by h_gen [2, m]; an item without a vector comes last."""
        rows = np.array([self._row.get(item_id, -1) for item_id in item_ids], np.int64)
        return np.where(rows >= 0, pair @ self._matrix[rows].T, -np.inf)


class _Ranking:
    """All rankers on one label's questions of one view."""

    def __init__(
        self,
        label: Label,
        items: _Vectors,
        learned: Mapping[str, LambdaMart],
        second: _SecondStage,
        plan: SessionPlan,
    ) -> None:
        self.label, self.items, self.learned, self.second, self.plan = label, items, learned, second, plan
        ours, whole = (*PERSEID, *second.rankers), [name for name in second.rankers if name in TWO_STAGE]
        pairs = [(name, other) for name in (*PERSEID, *whole) for other in LEARNED]
        pairs += [(name, "h_next") for name in whole]
        pairs += [("two-stage", name) for name in second.rankers if name not in (*TWO_STAGE, *TREES)]
        pairs += [(name, trees) for name, trees in zip(TWO_STAGE, TREES, strict=True) if trees in second.rankers]
        pairs += [("two-stage + position", "two-stage")] if whole else []
        trainings = second.trainings
        self.comparison = Comparison(ours, BASELINES, pairs=pairs, seed=plan.seed, trainings=trainings)
        self.candidates: set[str] = set()
        self._by_size = {
            name: (
                Comparison(ours, BASELINES, pairs=(), seed=plan.seed, sliced=False, trainings=trainings),
                set[str](),
            )
            for _, name in SIZES
        }
        self._asked: list[TaughtList] = []  # with features, for what each of them is worth
        self._cold_users = 0

    def take(self, question: SessionQuestion, number: int, pair: NDArray[np.float32]) -> None:
        """Ranks one slate's candidates by everyone."""
        ids = [shown.item_id for shown in question.slate.candidates(self.label)]
        rng = np.random.default_rng([self.plan.seed, question.slate.start_ms, len(ids)])
        scores = self._scores(question, ids, pair)
        targets = question.slate.targets(self.label)
        if self.second.rankers:
            scores |= self.second.scores(number, self.label)
            gains = np.array([item_id in targets for item_id in ids], np.float32)
            self._asked.append(TaughtList(self.second.features[number, self.label], gains))
        lists = rank_all(ids, scores, rng.permutation(len(ids)))
        facts = Facts(question.slate.user_id, history=len(question.request.items))
        size = next(name for least, name in reversed(SIZES) if len(ids) >= least)
        for comparison, candidates in ((self.comparison, self.candidates), self._by_size[size]):
            comparison.add(lists, targets, facts)
            candidates.update(ids)
        self._cold_users += question.cold

    def result(self) -> dict[str, Any]:
        """As `Comparison.result`, with the same `by_candidates`, and how each LambdaMART came to be."""
        return {
            **self.comparison.result(len(self.candidates), self.plan.resamples),
            "strangers": self._cold_users,
            "by_candidates": {
                name: comparison.result(len(candidates), self.plan.resamples)
                for name, (comparison, candidates) in self._by_size.items()
            },
            "lambdamart": {name: _described(learned) for name, learned in self.learned.items()},
            "two_stage": self.second.described(self._asked, self.plan.seed),
        }

    def _scores(self, question: SessionQuestion, ids: Sequence[str], pair: NDArray[np.float32]) -> dict[str, Floats]:
        features = question.features[self.label]
        column = {name: features[:, number].astype(np.float64) for number, name in enumerate(FEATURES)}
        found = {name: column[of] for name, of in BY_COLUMN.items()}
        if question.cold:
            found |= {"h_next": found["recent popularity"], "h_gen": found["recent popularity"]}
        else:
            found["h_next"], found["h_gen"] = self.items.products(pair, ids)
        found[SHOWN] = -(column["position"] + column["order"] / (1 + len(ids)))  # of one position the earlier page
        return found | {name: learned.scores(features) for name, learned in self.learned.items()}


def rank_all(ids: Sequence[str], scores: Mapping[str, Floats], ties: NDArray[np.int64]) -> dict[str, list[str]]:
    """The list of every ranker: the same candidates, ordered by its scores, equal ones by `ties`; and the round robin
    of `h_next` and `h_gen`.

    Raises:
        ValueError: a ranker did not score each candidate once.
    """
    orders: dict[str, list[int]] = {}
    for name, values in scores.items():
        if len(values) != len(ids) or np.isnan(values).any():
            raise ValueError(f"{name} gave {len(values)} scores for {len(ids)} candidates, or one that is no number")
        orders[name] = np.lexsort((ties, -values)).tolist()
    orders["round robin"] = in_turn([orders["h_next"], orders["h_gen"]], len(ids))
    return {name: [ids[at] for at in order] for name, order in orders.items()}


def _described(learned: LambdaMart) -> dict[str, Any]:
    names = [FEATURES[column] for column in learned.columns]
    gains = sorted(zip(names, learned.gains().tolist(), strict=True), key=lambda pair: -pair[1])
    return {
        "trees": learned.trees,
        "leaves": learned.leaves,
        "validation_ndcg@10": {f"{leaves} leaves": score for leaves, score in learned.tried.items()},
        "gain": {name: round(gain, 4) for name, gain in gains},
    }
