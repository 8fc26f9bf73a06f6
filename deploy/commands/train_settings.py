"""Reads what `perseid train` leaves out of a preset or changes in it.

A setting is a field of `ModelConfig` (a size) or of `TrainOptions` (the recipe). What comes from the data, and what has
an option of its own, is none. It knows the types of the fields; their bounds are checked where they are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from encoder.model.config import PARTS, ModelConfig
from encoder.training.options import TrainOptions

INPUTS = (*PARTS, "context", "profile")  # what a model reads and can do without
_ELSEWHERE = {"d_text", "seed", "epochs", "max_seconds", "threads", "device", "general_reach"}  # from data or options
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "str": (str,),
    "None": (type(None),),
    "Mapping[str, float]": (dict,),
}


def _types(of: type) -> dict[str, tuple[type, ...]]:
    """Fields that hold one plain value, and the types of it."""
    kinds = {field.name: str(field.type).split(" | ") for field in fields(of) if field.name not in _ELSEWHERE}
    return {
        name: tuple(t for kind in named for t in _TYPES[kind])
        for name, named in kinds.items()
        if set(named) <= {*_TYPES}
    }


SIZES, RECIPE = _types(ModelConfig), _types(TrainOptions)


def left_out(text: str) -> frozenset[str]:
    """Inputs from "text,context".

    Raises:
        ValueError: there is no such input, or an item's vector would be made of nothing.
    """
    named = frozenset(filter(None, text.split(",")))
    if named - set(INPUTS) or named >= set(PARTS):
        raise ValueError(f"{text!r}: name some of {', '.join(INPUTS)}, and leave one of {', '.join(PARTS)}")
    return named


def changed(pairs: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes and recipe from pairs NAME=VALUE; values are JSON, or words.

    >>> changed(["d_model=128", "prior=train", "low_precision=null"])
    ({'d_model': 128}, {'prior': 'train', 'low_precision': None})

    Raises:
        ValueError: there is no such setting, it is there twice, or the value is of another type.
    """
    sizes: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in {**SIZES, **RECIPE}:
            raise ValueError(f"{pair!r}: give NAME=VALUE with one of {', '.join(sorted({**SIZES, **RECIPE}))}")
        if name in {**sizes, **recipe}:
            raise ValueError(f"{name} is set twice")
        types = SIZES.get(name) or RECIPE[name]
        value = _value(text)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{pair!r}: {name} takes {' or '.join(t.__name__ for t in types)}")
        (sizes if name in SIZES else recipe)[name] = value
    return sizes, recipe


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
