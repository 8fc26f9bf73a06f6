"""Ranks with the serving code just before each click is applied, then scores the click (prequential evaluation).

Reads the user from the live state, ranks with `index.query.recommend.recommend` over a catalogue that follows the item
log, and sets popularity beside it. `streams.replay.replay.replay` applies the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from itertools import product
from typing import Any

from context.features import is_active
from index.items.catalogue import Catalogue
from index.items.follower import ItemFollower
from index.query.counts.popularity import Popularity
from index.query.live_user import LiveUser, UserReader
from index.query.model import ServedModel
from index.query.question import ContextView, Query, UserView, Weights
from index.query.recommend import answer_in_process, plan_searches, recommend, seen_items
from index.query.second_stage import SecondStage
from index.ranking.features import event_classes
from index.state.records import ItemRecord
from index.state.store import LiveStore
from index.state.user_columns import event_key
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import QuestionSettings, Selection, all_out_of_reach
from streams.evaluation.popularity import PopularityLists
from streams.evaluation.slices import UNKNOWN, Facts
from streams.events import Click, Rules
from streams.pipeline.encoder_thread import EncoderThread
from streams.ranking.pools import PoolRecorder
from streams.ranking.rows import TWO_STAGE, RankedRow


class CatalogueSink:
    """Sink of the item log that feeds the catalogue, the baselines' candidates and the encoder's removals alike."""

    def __init__(self, catalogue: Catalogue, baselines: PopularityLists, encoder: EncoderThread | None) -> None:
        self.catalogue, self._baselines, self._encoder = catalogue, baselines, encoder
        self._listed: set[str] = set()
        self._categories: dict[str, str] = {}  # item → first of its path

    def apply(self, records: Sequence[ItemRecord]) -> None:
        self.catalogue.apply(records)
        for record in records:
            fields = record.catalogue or {}
            listed = record.catalogue is not None and record.retrieval is not None
            self._know(record.item_id, listed and fields.get("available") is not False)
            self._categories[record.item_id] = next(iter(fields.get("category") or ()), "")
        removed = [record for record in records if record.embedder is None]
        if self._encoder is not None and removed:
            self._encoder.apply(removed)

    def reset(self, item_ids: Set[str]) -> None:
        self.catalogue.reset(item_ids)
        for item_id in self._listed - item_ids:
            self._know(item_id, False)

    def can_show(self, item_id: str, now_ms: int) -> bool:
        """Whether the item could be in a list at `now_ms`."""
        return item_id in self._listed and item_id not in self.catalogue.outside(now_ms)

    def category(self, item_id: str) -> str:
        """The first of the item's category path, "" without one."""
        return self._categories.get(item_id, "")

    @property
    def size(self) -> int:
        return len(self._listed)

    def _know(self, item_id: str, shown: bool) -> None:
        self._baselines.set_candidate(item_id, shown)
        (self._listed.add if shown else self._listed.discard)(item_id)


class PrequentialEvaluator:
    """Asks questions of a live state.

    Args:
        model: what is served; its vectors are read.
        encoder: told of items that lose their vector, as a worker's would be.
        second: what orders the row "two-stage", the list of the first slot.
    """

    def __init__(
        self,
        store: LiveStore,
        model: ServedModel,
        rules: Rules,
        partitions: int,
        bucket_ms: int,
        settings: QuestionSettings,
        encoder: EncoderThread | None,
        weights: Weights | None = None,
        second: RankedRow | None = None,
    ) -> None:
        self.settings, self._second = settings, second
        self._selection = Selection(rules, self.settings.start_ms, self.settings.every)
        self._model, self._partitions, self._bucket_ms = model, partitions, bucket_ms
        self._weights = weights or (Weights(popularity=0, promotion=0, negative=0) if settings.plain else model.weights)
        self._kind_weights = [kind.weight for kind in rules.kinds]
        self._reader = UserReader(store, partitions, model.version, model.dim)
        self._popularity = Popularity(store, kinds=second is not None)
        self._baselines = PopularityLists(self.settings.baseline_ms)
        self._candidates = CatalogueSink(Catalogue(model.version, model.dim), self._baselines, encoder)
        classes = event_classes(self._kind_weights, [kind.remembered for kind in rules.kinds])
        self._stage = SecondStage(self._candidates.catalogue, self._popularity, classes)
        self._follower = ItemFollower(store, model.version, self._candidates, model.embedder)
        self._arrived_ms: dict[str, int] = {}  # when each item became known
        self._refreshed_ms, self._since_refresh = -1, 0
        self.targets: Counter[str] = Counter()  # questions whose target no list could hold
        self.comparison = self._compared()

    def _compared(self) -> Comparison:
        """Every list against popularity, and the second stage against the first."""
        slots, ks = self.settings.slots, self.settings.ks
        if self._second is None:
            return Comparison(slots, PopularityLists.names, ks)
        names, trainings = (*slots, TWO_STAGE), self._second.trainings()
        pairs = [(TWO_STAGE, slots[0]), *product(names, PopularityLists.names)]
        return Comparison(names, PopularityLists.names, ks, pairs, trainings=trainings)

    def wants(self, click: Click, now_ms: int) -> bool:
        """Whether to ask about a click that arrives at `now_ms`; counts it as skipped otherwise."""
        return self._selection.takes(click, now_ms)

    def arrived(self, item_id: str, now_ms: int) -> None:
        """Notes when an item became known; only the first time counts."""
        self._arrived_ms.setdefault(item_id, now_ms)

    async def items_changed(self) -> None:
        """Takes over what the item log holds by now."""
        await self._follower.catch_up()

    def observe(self, click: Click, now_ms: int) -> None:
        """Tells the baselines what was chosen."""
        self._since_refresh += 1
        if self._selection.is_choice(click):
            self._baselines.add(click.item_id, now_ms)

    async def ask(self, click: Click, now_ms: int) -> None:
        """Asks for lists as of `now_ms`, before `click` is applied, and scores them against its item.

        Raises:
            StoreUnavailableError: nothing was scored.
        """
        user = await self._reader.read(click.user_id, click.location or None)
        view = UserView.of(user.vectors, user.state, self._kind_weights)
        seen = seen_items(view.window, view.purchases, now_ms, self._weights)
        reason = self._not_new(click, user, seen)
        if reason is not None:
            self._selection.skipped[reason] += 1
            return
        await self._refresh(now_ms)
        without = self._candidates.catalogue.outside(now_ms) | (set() if self.settings.repeats else seen)
        baselines: dict[str, Sequence[str]] = {**self._baselines.lists(max(self.settings.ks), now_ms, without)}
        if self.settings.plain and view.vectors is None:
            lists = baselines | dict.fromkeys(self.settings.slots, baselines[PopularityLists.names[0]])
        else:
            lists = baselines | self._lists(user, view, now_ms)
        if not self._candidates.can_show(click.item_id, now_ms):
            known = click.item_id in self._candidates.catalogue
            self.targets["not to be shown" if known else "not in the catalogue"] += 1
        facts = self._facts(click, now_ms, len(user.state.items), click.item_id in seen)
        self.comparison.add(lists, {click.item_id}, facts)

    def result(self) -> dict[str, Any]:
        """The comparison's result, with what was not asked and what could not be found.

        Where no list could hold a single target there are no metrics but an `error` that says so.
        """
        found = {
            **self.comparison.result(self._candidates.size),
            "skipped": dict(self._selection.skipped),
            "targets_out_of_reach": dict(self.targets),
        }
        error = all_out_of_reach(self.targets, len(self.comparison.outcomes))
        nothing: dict[str, Any] = {"metrics": {}, "lists": {}, "intervals": {}, "slices": {}, "versus": []}
        return found if error is None else {**found, **nothing, "error": error}

    def state_dict(self) -> dict[str, Any]:
        """What was asked and counted so far, as plain values for JSON; catalogue and popularity are read anew."""
        return {
            "due": self._selection.due,
            "skipped": self._selection.skipped,
            "targets": self.targets,
            "comparison": self.comparison.outcomes.state_dict(),
            "baselines": self._baselines.state_dict(),
            "arrived_ms": self._arrived_ms,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` said of an evaluator with the same settings."""
        self._selection.due, self._selection.skipped = state["due"], Counter(state["skipped"])
        self.targets = Counter(state["targets"])
        self.comparison.outcomes.load_state_dict(state["comparison"])
        self._baselines.load_state_dict(state["baselines"])
        self._arrived_ms = dict(state["arrived_ms"])

    def close(self) -> None:
        """Ends background work of the search index."""
        self._candidates.catalogue.close()

    def _not_new(self, click: Click, user: LiveUser, seen: Set[str]) -> str | None:
        if click.ts_ms <= user.state.forgotten_ms:
            return "forgotten"
        if user.state.remembers(event_key(click.event_id)):
            return "sent before"
        return "seen before" if not self.settings.repeats and click.item_id in seen else None

    def _facts(self, click: Click, now_ms: int, history: int, repeat: bool) -> Facts:
        arrived_ms = self._arrived_ms.get(click.item_id)
        return Facts(
            user_id=click.user_id,
            history=history,
            age_ms=UNKNOWN if arrived_ms is None else max(0, now_ms - arrived_ms),
            popularity=self._baselines.chosen(click.item_id),
            category=self._candidates.category(click.item_id),
            repeat=repeat,
        )

    def _lists(self, user: LiveUser, view: UserView, now_ms: int) -> dict[str, Sequence[str]]:
        """Ranked ids of each slot, as the API would answer."""
        record = user.context if is_active(user.context, now_ms) else None
        offset = self._model.offset.offset(now_ms, record)
        promotions = (record or {}).get("promotions") or ()
        context = ContextView(user.location, offset.delta if offset.applied else None, promotions)
        found: dict[str, Sequence[str]] = {}
        for slot in self.settings.slots:
            query = Query(max(self.settings.ks), slot, include_seen=self.settings.repeats)
            answer = recommend(
                query, view, self._candidates.catalogue, context, self._popularity, now_ms, self._weights
            )
            found[slot] = [entry.item_id for entry in answer.items]
        return found | self._ranked(view, context, now_ms)

    def _ranked(self, view: UserView, context: ContextView, now_ms: int) -> dict[str, Sequence[str]]:
        """The lists of the second stage."""
        if self._second is None:
            return {}
        count, recorder = max(self.settings.ks), PoolRecorder(self._stage)
        query = Query(count, self.settings.slots[0], include_seen=self.settings.repeats)
        about = view, self._candidates.catalogue, context, self._popularity, now_ms, self._weights
        plan = plan_searches(query, *about, ranker=recorder)
        answer_in_process(plan)
        return {**self._second.lists(recorder.pool(plan), count)}

    async def _refresh(self, now_ms: int) -> None:
        elapsed = self._refreshed_ms < 0 or now_ms - self._refreshed_ms >= self.settings.popularity_ms
        if self._refreshed_ms < 0 or (elapsed and self._since_refresh >= self.settings.popularity_events):
            await self._popularity.refresh(self._partitions, self._bucket_ms, now_ms)
            self._refreshed_ms, self._since_refresh = now_ms, 0
