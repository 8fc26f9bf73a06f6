"""Options that do not fit are refused with their remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from encoder.training.loop import train
from encoder.training.options import TrainOptions
from tests.support.training_data import CONFIG, OPTIONS, checkerboard, shop


def test_bad_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose one of off, train"):
        TrainOptions(prior="both")
    with pytest.raises(ValueError, match="unknown reach 'items'"):
        TrainOptions(general_reach="items")
    with pytest.raises(ValueError, match="epochs is 0"):
        TrainOptions(epochs=0)
    with pytest.raises(ValueError, match="not among parts"):
        replace(CONFIG, parts=("ids",), tags=("red",))
    with pytest.raises(ValueError, match="choose some of text, ids, tags"):
        replace(CONFIG, parts=("price",))
    with pytest.raises(ValueError, match="unknown targets 'last'"):
        TrainOptions(targets="last")
    with pytest.raises(ValueError, match="the weight of kind 'cart' is -1"):
        TrainOptions(kind_weights={"cart": -1})
    with pytest.raises(ValueError, match="no event is a target"):
        train(shop(5, 8, checkerboard), CONFIG, replace(OPTIONS, kind_weights={"view": 0}), out=tmp_path)
