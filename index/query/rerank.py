"""Orders a list of the caller's for one user, by the scores of `recommend`.

Finds nothing and leaves nothing out. What has no vector here has no score, so the caller is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from index.items.catalogue import Catalogue
from index.items.search import Labels
from index.query.counts.popularity import Popularity
from index.query.model import RequestedList
from index.query.plan import Candidates, SearchPlan
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import Recommendations, plan_searches, score
from index.query.second_stage import ListOrder


def plan_list(
    labels: Labels,
    slot: RequestedList,
    user: UserView,
    catalogue: Catalogue,
    context: ContextView,
    popularity: Popularity,
    now_ms: int,
    weights: Weights,
    ranker: ListOrder | None = None,
) -> SearchPlan:
    """What the scores of items [m] are made of; a `ranker` sees them in this order."""
    query = Query(len(labels), slot, include_seen=True)
    plan = plan_searches(query, user, catalogue, context, popularity, now_ms, weights, ranker=ranker)
    return plan if plan.negative is None else plan.with_feedback(catalogue.search.vectors(plan.negative.labels))


def rank_list(plan: SearchPlan, labels: Labels) -> Recommendations:
    """The items of a plan of `plan_list`, best first, with the parts of their scores."""
    if not len(labels):
        return Recommendations([], {})
    nothing_else = np.full(len(plan.slots), -np.inf)
    found = score(plan, Candidates(labels, {}, nothing_else), plan.catalogue.search.vectors(labels))
    assert found is not None  # nothing that was not found can be better
    return replace(found, removed={})


def known_labels(catalogue: Catalogue, item_ids: Sequence[str]) -> tuple[Labels, list[int]]:
    """Labels of the items that have a vector, and their places among `item_ids`."""
    labels = catalogue.places(item_ids)
    places = np.flatnonzero(labels >= 0)
    return labels[places], places.tolist()
