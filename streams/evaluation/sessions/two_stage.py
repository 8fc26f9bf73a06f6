"""Trains the second-stage ranker on slates between the encoder's training and the split, and ranks the later ones.

Its features are computed by the serving code (`streams.ranking.walk`). What the encoder has learned from is left out:
scores of known events look better than those of new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from context.counting import counted
from encoder.ranking.training import FEWEST, RankerSettings, RankingLists, ndcg
from index.ranking.features import GROUPS, Floats
from index.ranking.ranker import columns_of
from streams.evaluation.sessions.lambdamart import Examples, LambdaMart, train_lambdamart
from streams.evaluation.sessions.sessions import CLICK, Label, Slate, View, read_sessions
from streams.events import Rules
from streams.folder.reader import Folder
from streams.ranking.training import ANYWHERE, WITHOUT_POSITION, TaughtList, TrainedScorer, train_scorer
from streams.ranking.walk import ListQuestion

TWO_STAGE: Mapping[str, tuple[str, ...]] = {  # name → groups of features
    "two-stage": WITHOUT_POSITION,
    "two-stage + position": ANYWHERE,
}
TREES: Mapping[str, tuple[str, ...]] = {  # the same by LambdaMART instead of a network
    "two-stage trees": WITHOUT_POSITION,
    "two-stage trees + position": ANYWHERE,
}
TRAININGS = 3  # of each ranker, from seeds that follow each other: single ones differ by .005 in NDCG@10
_PERMUTED = 500  # lists in which features are permuted
_ACTED, _BOUGHT = 1.0, 3.0  # what a cart or like, and a purchase, teach beside each other
ListFeatures = Callable[[Sequence[ListQuestion]], Mapping[int, Floats]]  # features [m, F] by number of the question


@dataclass(frozen=True, slots=True)
class TaughtSlate:
    """A slate to learn from, and what each of its candidates gained."""

    slate: Slate
    gains: Floats  # [m]

    @property
    def ids(self) -> list[str]:
        return [shown.item_id for shown in self.slate.shown]


def taught_slates(
    folder: Folder, rules: Rules, choice: str, view: View, known_ms: int, split_ms: int, every: int = 1
) -> list[TaughtSlate]:
    """Every n-th slate to learn from, by time: after `known_ms`, over before `split_ms`.

    Where purchases are asked about, carts and likes teach as well: there are more of them.
    """
    kinds = {choice: 1.0}
    bought = {kind.name for kind in rules.kinds if kind.remembered}
    if choice in bought:
        kinds = {kind.name: _ACTED for kind in rules.kinds if kind.weight > 1} | dict.fromkeys(bought, _BOUGHT)
    gains: dict[tuple[str, int], tuple[Slate, dict[str, float]]] = {}
    for kind, gain in kinds.items():
        for slate in _slates(folder, kind, view):
            if known_ms <= slate.start_ms and slate.end_ms < split_ms:
                _, found = gains.setdefault((slate.user_id, slate.start_ms), (slate, {}))
                found.update({item: max(gain, found.get(item, 0.0)) for item in slate.chosen})
    ordered = sorted(gains.values(), key=lambda pair: (pair[0].start_ms, pair[0].user_id))[::every]
    return [
        TaughtSlate(slate, np.array([found.get(shown.item_id, 0.0) for shown in slate.shown], np.float32))
        for slate, found in ordered
    ]


def _slates(folder: Folder, kind: str, view: View) -> Sequence[Slate]:
    """Those with a choice of a kind; none where it never happens."""
    code = folder.kind_names.index(kind) if kind in folder.kind_names else None
    if kind != CLICK and (code is None or not (folder.events.kinds == code).any()):
        return ()
    return read_sessions(folder, kind).slates[view]


def question_of(number: int, slate: Slate, label: Label | None = None) -> ListQuestion:
    """A slate as a list to order: all of it, or what a label asks about."""
    shown = slate.shown if label is None else slate.candidates(label)
    ids, positions = [one.item_id for one in shown], [float(one.position) for one in shown]
    return ListQuestion(number, slate.start_ms, slate.user_id, ids, slate.location, positions)


def without(group: str) -> str:
    """What the ranker is called that never sees a group of features."""
    return f"two-stage without {group}"


def rankers_of(left_out: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
    """The networks of `TWO_STAGE`, and one without each of these groups; name → groups of features.

    Raises:
        ValueError: there is no such group, or it is that of positions, which "two-stage" lacks anyway.
    """
    found = dict(TWO_STAGE)
    for group in left_out:
        if group not in WITHOUT_POSITION:
            raise ValueError(f"group {group!r} cannot be left out; give some of {', '.join(WITHOUT_POSITION)}")
        found[without(group)] = tuple(name for name in WITHOUT_POSITION if name != group)
    return found


@dataclass(frozen=True, slots=True)
class TrainedTrees:
    """LambdaMART over features of the second stage, and how it came to be."""

    learned: LambdaMart
    facts: Mapping[str, Any]

    def scores(self, features: Floats) -> Floats:
        """Of one list's items [m], from all features."""
        return self.learned.scores(features).astype(np.float32)


def train_rankers(
    taught: Sequence[TaughtSlate],
    features: Sequence[Floats],
    seed: int = 0,
    threads: int = 1,
    trainings: int = 1,
    left_out: Sequence[str] = (),
) -> dict[str, Sequence[TrainedScorer | TrainedTrees]]:
    """The rankers of `rankers_of`, each trained so many times, and those of `TREES`.

    Raises:
        ValueError: there are too few slates.
    """
    if len(taught) < FEWEST:
        found = counted(len(taught), "list")
        raise ValueError(f"{found} between the encoder's training and the split; {FEWEST} are needed")
    lists = [TaughtList(found, slate.gains) for found, slate in zip(features, taught, strict=True)]
    settings = [RankerSettings(seed=seed + number, threads=threads) for number in range(trainings)]
    networks = {
        name: [train_scorer(lists, groups, each) for each in settings] for name, groups in rankers_of(left_out).items()
    }
    examples = _examples(lists, seed)
    return {**networks, **{name: [_trees(examples, groups, seed, threads)] for name, groups in TREES.items()}}


def _trees(examples: Examples, groups: Sequence[str], seed: int, threads: int) -> TrainedTrees:
    columns = columns_of([name for group in groups for name in GROUPS[group]])
    learned = train_lambdamart(examples, columns, seed, threads)
    facts = {"trees": learned.trees, "leaves": learned.leaves, "validation_ndcg@10": max(learned.tried.values())}
    return TrainedTrees(learned, {"seed": seed, "lists": len(examples.sizes), **facts})


def _examples(lists: Sequence[TaughtList], seed: int) -> Examples:
    """The items of all lists in turn, each list's in a random order; what a choice gained becomes its rank."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(one.gains)) for one in lists]
    gains = np.concatenate([one.gains[order] for one, order in zip(lists, orders, strict=True)])
    features = np.concatenate([one.features[order] for one, order in zip(lists, orders, strict=True)])
    return Examples(features, np.unique(gains, return_inverse=True)[1].astype(np.int64), [len(one) for one in orders])


def importance(asked: Sequence[TaughtList], trained: Sequence[TrainedScorer], seed: int = 0) -> dict[str, Any]:
    """NDCG@10 that is lost when the values of a group, or of one feature, change places within each list.

    Means over trainings; highest first. What is alike for all items of a list loses nothing.
    """
    places = np.linspace(0, len(asked) - 1, min(_PERMUTED, len(asked))).round().astype(int)
    some = [asked[at] for at in places.tolist()]
    rows, sizes = np.concatenate([one.features for one in some]), [len(one.gains) for one in some]
    ends = np.cumsum(sizes).tolist()
    lists = RankingLists(rows, np.concatenate([one.gains for one in some]), sizes)
    order = np.lexsort((np.random.default_rng(seed).random(len(rows)), np.repeat(np.arange(len(sizes)), sizes)))

    def reached(features: Floats) -> float:
        return float(np.mean([ndcg(one.scores(features, ends), lists) for one in trained]))

    def lost(names: Sequence[str]) -> float:
        columns, permuted = columns_of(names), rows.copy()
        permuted[:, columns] = rows[order][:, columns]
        return round(whole - reached(permuted), 6)

    whole, read = reached(rows), trained[0].scorer.features
    groups = {group: [name for name in names if name in read] for group, names in GROUPS.items()}
    parts = {"groups": {group: names for group, names in groups.items() if names}, "features": {n: [n] for n in read}}
    return {
        part: dict(sorted(((name, lost(names)) for name, names in named.items()), key=lambda pair: -pair[1]))
        for part, named in parts.items()
    }
