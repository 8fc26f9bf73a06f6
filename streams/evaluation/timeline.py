"""Evaluates a model and baselines offline on the held-out part of a data folder, over a global time split.

It is the sweep of `streams.evaluation.staleness.sweep` with nothing late. Lists are made by products, popularity
and negative feedback, without promotions, so it also checks replay, which asks the production path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import HeldOut
from streams.evaluation.popularity import PopularityLists
from streams.evaluation.rankers import OfflineModel, OfflineRanker
from streams.evaluation.staleness.delays import FRESH
from streams.evaluation.staleness.sweep import SecondStageAnswers, Sweep


def evaluate(
    held: HeldOut,
    model: OfflineModel | None,
    rankers: Sequence[OfflineRanker] = (),
    baskets: bool = False,
    progress: Callable[[int, int], None] | None = None,
    second: SecondStageAnswers | None = None,
) -> dict[str, Any]:
    """Metrics of the model's lists, of `rankers` and of popularity, as `PrequentialEvaluator.result`.

    Candidates of a question are the items that have a vector, had arrived and pass the live catalogue's hard rules at
    that time, but for seen ones unless `held.ask.repeats`; a cold user gets the recently popular list from everyone.
    With `baskets` all that a user chose at one time is one question (see `Sweep`). Without a model only `rankers` are
    measured. `progress` is told how many events are done, of how many. The lists of a `second` stage stand beside the
    model's first one.

    Raises:
        ValueError: there is neither model nor ranker, or two lists have one name.
    """
    names, baselines = [name for ranker in rankers for name in ranker.lists], list(PopularityLists.names)
    if model is not None:
        names, baselines = list(held.ask.slots), [*baselines, *names]
    if len({*names, *baselines}) < len(names) + len(baselines):
        raise ValueError(f"two lists of one name among {[*names, *baselines]}; name each baseline once")
    run = Sweep(held, model, [FRESH], Comparison(names, baselines, held.ask.ks), rankers, baskets)
    run.run(progress)
    if second is not None:
        run.stand_beside(second(run.questions, run.arms), names[0])
    found = run.comparison.result(run.catalogue_size)
    return {**found, "skipped": run.skipped, "targets_out_of_reach": dict(run.targets)}
