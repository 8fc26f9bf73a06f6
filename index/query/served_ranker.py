"""Says what orders the lists of a served model, its ranker or the first stage, and why.

Assumes the two files of the ranker's artefact in the model's hash, written at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from index.query.second_stage import GivenList, ListRanker, SecondStage
from index.ranking.features import GROUPS
from index.ranking.ranker import DOCUMENT, TENSORS, ListSource, Ranker, is_ranker_version, parse_ranker
from index.state.store import LiveStore

RANKER_FIELDS = (TENSORS, DOCUMENT)
FIRST_STAGE = "first stage"
AUTO, OFF = "auto", "off"
_FAILED = "its scores are no numbers, or all alike"


def parse_choice(text: str) -> str:
    """What PERSEID_RANKER may say. Raises ValueError saying what is wrong."""
    if text not in (AUTO, OFF) and not is_ranker_version(text):
        raise ValueError("expected auto, off or the version of a ranker, as r-0a1b2c3d")
    return text


@dataclass(frozen=True, slots=True)
class ServedRanker:
    """What orders lists by source; of a source that no ranker orders, `reasons` says why."""

    ranker: Ranker | None = None
    orders: Mapping[ListSource, ListSource] = field(default_factory=dict)  # source of a list → scorer
    reasons: Mapping[ListSource, str] = field(default_factory=dict)
    broken: bool = False  # there is a ranker, or one is named, that cannot be used
    document: bytes | None = None  # as stored

    def order(self, source: ListSource, stage: SecondStage, given: GivenList | None = None) -> ListRanker | None:
        """What orders a list; None: the first stage."""
        scorer = self.orders.get(source)
        if scorer is None or self.ranker is None:
            return None
        return ListRanker(stage, self.ranker.scorers[scorer], self.ranker.version, given)

    def said(self, source: ListSource, ranked_by: str | None) -> str:
        """Why a list is ordered by the first stage; "" for one that a ranker has ordered."""
        if ranked_by is not None:
            return ""
        if source in self.orders and self.ranker is not None:
            return f"{self.ranker.version}: {_FAILED}"
        return self.reasons[source]

    @property
    def summary(self) -> str:
        """Version of the ranker that orders what is retrieved, else why none does."""
        return self.ranker.version if self.ranker and "retrieved" in self.orders else self.reasons["retrieved"]


def no_ranker(reason: str, broken: bool = False) -> ServedRanker:
    """The first stage orders all lists."""
    return ServedRanker(None, {}, dict.fromkeys(("retrieved", "shown", "placed"), reason), broken)


def chosen(
    version: str, choice: str, document: bytes | None, tensors: bytes | None, showings: bool = False
) -> ServedRanker:
    """What orders the lists of model `version`, by PERSEID_RANKER and the stored files of its ranker.

    `showings` says whether they are counted here.
    """
    if choice == OFF:
        return no_ranker("PERSEID_RANKER is off")
    if document is None or tensors is None:
        named = "" if choice == AUTO else f", so not {choice} that PERSEID_RANKER names"
        return no_ranker(f"{version} has no ranker{named}", broken=choice != AUTO)
    try:
        ranker = parse_ranker(document, tensors, f"the ranker of {version}")
    except ValueError as error:
        return no_ranker(str(error), broken=True)
    if ranker.encoder != version:
        return no_ranker(f"{ranker.version} was trained with {ranker.encoder}, not with {version}", broken=True)
    if choice not in (AUTO, ranker.version):
        said = f"PERSEID_RANKER names {choice}, {version} has {ranker.version}"
        return no_ranker(said, broken=True)
    return _by_source(ranker, forced=choice == ranker.version, showings=showings)


def _by_source(ranker: Ranker, forced: bool, showings: bool) -> ServedRanker:
    """A ranker orders what it was better at, or `forced` all that it can, where what it reads is counted.

    Lists of the caller's that it never learned are ordered as those without places, else as what is retrieved.
    """
    orders: dict[ListSource, ListSource] = {}
    reasons: dict[ListSource, str] = {}
    steps: Mapping[ListSource, tuple[ListSource, ...]] = {
        "retrieved": ("retrieved",),
        "shown": ("shown", "retrieved"),
        "placed": ("placed", "shown", "retrieved"),
    }
    for source, others in steps.items():
        learned = next((other for other in others if other in ranker.scorers), None)
        if learned is None:
            reasons[source] = f"{ranker.version} has not learned lists that were {source}"
        elif not showings and GROUPS["showings"].keys() & set(ranker.scorers[learned].features):
            reasons[source] = f"{ranker.version} reads showings, and PERSEID_SHOWINGS is off"
        elif forced or ranker.scorers[learned].better:
            orders[source] = learned
        else:
            reasons[source] = f"{ranker.version} was no better than the first stage on lists that were {learned}"
    return ServedRanker(ranker, orders, reasons)


async def load_served_ranker(
    store: LiveStore, version: str, choice: str, before: ServedRanker | None = None, showings: bool = False
) -> ServedRanker:
    """What orders the lists of a model now, the same object while its stored document is. Raises StoreUnavailableError.

    `before` is what was found last.
    """
    if choice == OFF:
        return no_ranker("PERSEID_RANKER is off")
    key = store.keys.model(version)
    if before is not None and before.document is not None:
        ((document,),) = await store.read([(key, [DOCUMENT])])
        if document == before.document:
            return before
    ((tensors, document),) = await store.read([(key, RANKER_FIELDS)])
    return replace(chosen(version, choice, document, tensors, showings), document=document)
