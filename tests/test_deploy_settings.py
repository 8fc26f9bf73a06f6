"""Settings: from an environment that is an argument; unknown names, bad values and secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.settings import Settings, load, parse_kinds, public_address, table
from streams.events import DEFAULT_KINDS


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = load({"PATH": "/bin"})
    assert settings.partitions == 32
    assert settings.rules().kinds == DEFAULT_KINDS
    assert settings.rules().embedders == {"minilm-l6-v2": 384}
    assert settings.api_host == "127.0.0.1"


def test_variables_are_read_and_arguments_win() -> None:
    settings = load({"PERSEID_PARTITIONS": "8", "PERSEID_API_PORT": "9000"}, api_port=9001, prefix=None)
    assert (settings.partitions, settings.api_port, settings.prefix) == (8, 9001, "perseid")


@pytest.mark.parametrize("variable", ["PERSEID_PARTITION", "PERSEID_partitions", "PERSEID_"])
def test_an_unknown_name_is_an_error_that_names_it(variable: str) -> None:
    with pytest.raises(ValueError, match=f"unknown setting {variable};"):
        load({variable: "8"})


def test_a_near_miss_names_what_was_meant() -> None:
    with pytest.raises(ValueError, match="did you mean PERSEID_PARTITIONS"):
        load({"PERSEID_PARTITION": "8"})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PERSEID_PARTITIONS", "0", "greater than or equal to 1"),
        ("PERSEID_PARTITIONS", "many", "PERSEID_PARTITIONS='many'"),
        ("PERSEID_KAFKA", "kafka", "expected host:port"),
        ("PERSEID_REDIS", "http://127.0.0.1", "expected redis://"),
        ("PERSEID_KINDS", "view", "name:weight"),
        ("PERSEID_KINDS", "view:1,view:2", "different kinds"),
        ("PERSEID_KINDS", "forget:1", "built in"),
        ("PERSEID_EMBEDDERS", "minilm", "name:dimension"),
        ("PERSEID_DEVICE", "tpu", "expected one of auto, cpu, cuda"),
        ("PERSEID_API_KEYS", "short:read", "entry 1"),
        ("PERSEID_API_KEYS", "0123456789abcdef:root", "entry 1"),
    ],
)
def test_a_bad_value_is_refused_with_its_variable(variable: str, value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load({variable: value})
    assert variable in str(caught.value)


def test_secrets_are_shown_nowhere() -> None:
    secret = "s3cret-word-of-16+"
    environ = {"PERSEID_REDIS": f"redis://:{secret}@127.0.0.1:1/0", "PERSEID_API_KEYS": f"{secret}:read"}
    settings = load(environ)
    assert secret not in repr(settings) + str(settings) + str(settings.model_dump())
    assert settings.scopes() == {secret: frozenset({"read"})}
    with pytest.raises(ValueError) as caught:
        load({"PERSEID_REDIS": f"http://:{secret}@127.0.0.1"})
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:word@127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:w@rd@cache.example:6379/0?password=x", "rediss://cache.example:6379/0"),
        ("127.0.0.1:9092,127.0.0.1:9093", "127.0.0.1:9092,127.0.0.1:9093"),
    ],
)
def test_public_addresses_carry_no_password(address: str, shown: str) -> None:
    assert public_address(address) == shown


def test_a_child_process_reads_back_the_same_settings() -> None:
    settings = load({"PERSEID_REDIS": "redis://:word@127.0.0.1:1/0", "PERSEID_KINDS": "view:1,buy:5:remembered"})
    assert load(settings.environment()) == settings


def test_kinds_keep_their_order_weight_and_memory() -> None:
    kinds = parse_kinds("view:1, dislike:-2,buy:5:remembered")
    assert [(kind.name, kind.weight, kind.remembered) for kind in kinds] == [
        ("view", 1, False),
        ("dislike", -2, False),
        ("buy", 5, True),
    ]


def test_the_table_names_every_setting_once() -> None:
    text = table()
    for name in Settings.model_fields:
        assert text.count(f"`PERSEID_{name.upper()}`") == 1


def test_the_readme_holds_this_table() -> None:
    readme = Path(__file__).resolve().parent.parent / "README.md"
    assert table() in readme.read_text(), "run: python -c 'from deploy.settings import table; print(table())'"
