"""Two models over the same traffic: what would have been different, list by list and slice by slice.

Assumes that both were asked the same questions (`streams.evaluation.staleness.sweep` with the fresh arm alone), which
is checked. It does not know what the models are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from index.query.model import Slot
from streams.evaluation.comparison import KS, Comparison
from streams.evaluation.outcomes import Outcomes
from streams.evaluation.staleness.delays import FRESH
from streams.evaluation.staleness.sweep import POPULAR, list_name


def side_by_side(found: Mapping[str, Outcomes], slots: Sequence[Slot], ks: Sequence[int] = KS) -> Comparison:
    """A comparison of models by name; every later one is measured against the first, both against popularity.

    Raises:
        ValueError: they were not asked the same questions.
    """
    first, *later = found
    joined = Outcomes.joined(found)

    def place(model: str, way: str) -> str:
        return f"{model}: {list_name(FRESH, way)}"

    names = {place(model, way): f"{model} {way}" for model in found for way in slots}
    names[place(first, POPULAR)] = POPULAR
    pairs = [(f"{model} {slot}", f"{first} {slot}") for model in later for slot in slots]
    pairs += [(f"{model} {slot}", POPULAR) for model in found for slot in slots]
    comparison = Comparison(list(names.values()), (), ks, pairs)
    comparison.outcomes = joined.renamed(names)
    return comparison
