"""Configs survive JSON, and a setting that does not fit is refused with its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from encoder.model.config import ModelConfig, preset, preset_names, preset_training
from encoder.training.options import TrainOptions


@pytest.mark.parametrize("name", preset_names())
def test_presets_survive_json(name: str) -> None:
    config = preset(name, tags=("red",), context_features=("heat",))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.capacity == 256
    assert TrainOptions(**preset_training(name)) == replace(TrainOptions(), **preset_training(name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "mixed"}, "unknown block"),
        ({"n_heads": 3}, "multiple of n_heads"),
        ({"d_model": 0}, "above 0"),
        ({"tags": ("a", "a")}, "repeated"),
        ({"kinds": ()}, "kinds is empty"),
        ({"dropout": 1.0}, "dropout"),
        ({"colour": 1}, "unknown model setting"),
    ],
)
def test_bad_settings_name_the_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset("nano", **settings)


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="choose one of amazon, base"):
        preset("huge")
