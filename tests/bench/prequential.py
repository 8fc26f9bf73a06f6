"""The live pipeline and the offline evaluator, asked the same questions of the same folder: are the ranks the same?

`replay` asks through engine, live state, catalogue, search and query; `evaluate` through pure functions and one matrix
product. Both rank by products alone (`QuestionSettings.plain`), in fp32, with exact search. Lists may differ only where
two scores lie closer together than GAP, which is more than both roundings; how often they do is a figure, too.

    python -m tests.bench.prequential <data folder> <model> [--split 0.8] [--every 10] [--texts <file>]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from deploy.jobs.evaluate import evaluate_folder
from deploy.jobs.replay import replay_folder
from deploy.jobs.replay_checkpoint import ReplayPlan
from deploy.settings import Settings, load
from encoder.device import use_threads
from encoder.text.cache import TextMemory
from index.query.question import Query
from index.query.recommend import Recommendations, recommend
from streams.evaluation.comparison import Comparison
from streams.evaluation.held_out import QuestionSettings
from streams.evaluation.slices import Facts
from tests.bench.report import result, show

GAP = 2e-4
MOST_CLOSE = 0.01  # of the questions
DEEPER = 50  # places that the live answer is read beyond the compared ones, to find what moved out of them
Lists = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's lists. `scored` are the live path's entries by list, item → score, deeper than the lists."""

    target: str
    lists: Lists
    facts: Facts
    scored: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def rank(self, name: str) -> int:
        """Place of the target, 0 where it is not in the list."""
        return list(self.lists[name]).index(self.target) + 1 if self.target in self.lists[name] else 0


@dataclass(slots=True)
class Agreement:
    """What came of the comparison. `gaps` are the largest between two items that stand in each other's place."""

    questions: int = 0
    personal: int = 0
    lists: int = 0
    other_lists: int = 0  # lists that differ anywhere
    other_ranks: int = 0  # lists in which the target has another rank
    unexplained: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the lists, those in which the target's rank differs."""
        return self.other_ranks / max(1, self.lists)


def compare(live: Sequence[Answer], offline: Sequence[Answer], slots: Sequence[str]) -> Agreement:
    """Question by question; what no small gap explains is named.

    Raises:
        ValueError: they were not asked the same questions.
    """
    asked = [[(a.facts.user_id, a.target, a.facts.history) for a in answers] for answers in (live, offline)]
    if asked[0] != asked[1]:
        first = next((pair for pair in zip(*asked, strict=False) if pair[0] != pair[1]), "the end of one of them")
        raise ValueError(f"not the same questions: {len(live)} live, {len(offline)} offline, which part at {first}")
    found = Agreement(len(live))
    for number, (one, other) in enumerate(zip(live, offline, strict=True)):
        found.personal += bool(one.scored)
        for slot in slots:
            found.lists += 1
            if list(one.lists[slot]) == list(other.lists[slot]):
                continue
            found.other_lists += 1
            found.other_ranks += one.rank(slot) != other.rank(slot)
            gap = _gap(one, other, slot)
            if gap is None or gap >= GAP:
                found.unexplained.append(f"question {number} of {one.facts.user_id}, {slot}: gap {gap}")
            else:
                found.gaps.append(gap)
    return found


def _gap(live: Answer, offline: Answer, slot: str) -> float | None:
    """The largest difference of the live scores of two items in one place; None where there is no such score."""
    scores = live.scored.get(slot, {})
    one, other = live.lists[slot], offline.lists[slot]
    moved = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    if len(one) != len(other) or any(a not in scores or b not in scores for a, b in moved):
        return None
    return max(abs(scores[a] - scores[b]) for a, b in moved)


@contextmanager
def listening(slots: Sequence[str]) -> Iterator[list[Answer]]:
    """Collects every question that is scored in this block, with the live path's scores where that path answers."""
    answers, heard = list[Answer](), dict[str, dict[str, float]]()
    add = Comparison.add

    def answer(query: Query, *rest: Any) -> Recommendations:
        deep = recommend(replace(query, count=query.count + DEEPER), *rest)
        # In a mixed list an item's score is that of the slot that brought it: places are compared in each slot alone.
        heard[query.slot] = {entry.item_id: entry.score for entry in deep.items}
        return recommend(query, *rest)

    def take(self: Comparison, lists: Lists, targets: Set[str], facts: Facts) -> None:
        answers.append(Answer(next(iter(targets)), {slot: list(lists[slot]) for slot in slots}, facts, dict(heard)))
        heard.clear()
        add(self, lists, targets, facts)

    with patch("streams.evaluation.prequential.recommend", answer), patch.object(Comparison, "add", take):
        yield answers


def both(
    folder: Path, model: Path, settings: Settings, memory: Any, ask: QuestionSettings, split: float
) -> tuple[list[Answer], list[Answer], dict[str, Any]]:
    """The answers of replay and of evaluation, and what each did not ask about."""
    with listening(ask.slots) as live:
        report = replay_folder(folder, ReplayPlan(model, ask), settings, memory, split)
    with listening(ask.slots) as offline:
        found = evaluate_folder(folder, model, settings, memory, split or None, ask)
    answered = report.answers or {}
    return live, offline, {"live": answered.get("skipped"), "offline": found["skipped"]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", type=float, default=0.0, help="ask after this share; by default after the training")
    parser.add_argument("--every", type=int, default=1, help="ask at each n-th event")
    parser.add_argument("--texts", type=Path)
    chosen = parser.parse_args(arguments)
    # The evaluator has no partitions, so no clock of theirs by which users would be idle: nobody is here.
    settings, memory = load({"PERSEID_IDLE_DAYS": "0"}), TextMemory(chosen.texts)
    use_threads(settings.threads)
    ask = QuestionSettings(slots=("next", "general"), ks=(10, 50), every=chosen.every, plain=True)
    try:
        live, offline, skipped = both(chosen.folder, chosen.model, settings, memory, ask, chosen.split)
    finally:
        memory.close()
    agreement = compare(live, offline, ask.slots)
    for line in agreement.unexplained[:20]:
        print(line)
    print(f"not asked about: {skipped}")
    print(f"ranks that differ, by (live, offline): {_differences(live, offline, ask.slots).most_common(10)}")
    show("prequential", figures(agreement), chosen.folder.name)


def figures(agreement: Agreement) -> list[dict[str, Any]]:
    """What is reported, beside the goals."""
    lists = max(1, agreement.lists)
    return [
        result("questions", agreement.questions, "questions"),
        result("answered from the user's own vectors", agreement.personal, "questions"),
        result("lists of 50 that differ anywhere", agreement.other_lists / lists, "share of lists"),
        result("ranks that differ", agreement.share, "share of lists", MOST_CLOSE, at_most=True),
        result("differences that no gap below 2e-4 explains", len(agreement.unexplained), "lists", 0, at_most=True),
        result("largest gap where lists differ", max(agreement.gaps, default=0.0), "score", GAP, at_most=True),
    ]


def _differences(live: Sequence[Answer], offline: Sequence[Answer], slots: Sequence[str]) -> Counter[tuple[int, int]]:
    ranks = ((a.rank(slot), b.rank(slot)) for a, b in zip(live, offline, strict=True) for slot in slots)
    return Counter(pair for pair in ranks if pair[0] != pair[1])


if __name__ == "__main__":
    main()
