"""Settings: from an environment that is an argument; unknown names, bad values and secrets."""

from __future__ import annotations

import pytest

from deploy.setting_values import parse_kinds
from deploy.settings import Settings, load, public_address, table
from streams.events import DEFAULT_KINDS
from streams.kafka.config import KafkaConfig


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


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"KAFKA_SECURITY": "tls"}, "PERSEID_KAFKA_.* security 'tls' is none of"),
        ({"KAFKA_USER": "me", "KAFKA_PASSWORD": "a-phrase"}, "need security sasl_plaintext or sasl_ssl"),
        ({"KAFKA_SECURITY": "sasl_ssl", "KAFKA_USER": "me"}, "needs a user and a password"),
        ({"KAFKA_SECURITY": "ssl", "KAFKA_CERT": __file__}, "give both or none"),
        ({"KAFKA_CA": __file__}, "certificate files need security ssl or sasl_ssl"),
        ({"KAFKA_SECURITY": "ssl", "KAFKA_CA": "/no/such/file"}, "PERSEID_KAFKA_CA='/no/such/file': there is no such"),
        ({"TOPIC_PREFIX": "a b"}, "PERSEID_TOPIC_PREFIX: topic prefix 'a b'"),
        ({"REDIS_CA": __file__}, "PERSEID_REDIS_CA needs a rediss:// address, not redis://"),
        ({"REDIS_CLUSTER": "true", "REDIS": "redis://:a-phrase@h:1/3"}, "PERSEID_REDIS_CLUSTER needs .* database 0"),
        ({"REDIS_CLUSTER": "true", "REDIS": "unix:///tmp/redis.sock"}, "PERSEID_REDIS_CLUSTER needs redis://"),
        ({"ELASTICSEARCH": "elastic:9200"}, "expected http://host:port"),
        ({"ELASTICSEARCH_USE": "all"}, "expected one of filters, knn"),
        ({"ELASTICSEARCH_API_KEY": "a-phrase"}, "PERSEID_ELASTICSEARCH_API_KEY needs an address"),
        ({"ELASTICSEARCH": "http://h:9200", "ELASTICSEARCH_CA": __file__}, "ELASTICSEARCH_CA needs an https://"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load({f"PERSEID_{name}": value for name, value in environ.items()})
    assert "a-phrase" not in str(caught.value)


def test_kafka_access_says_what_the_settings_say() -> None:
    settings = load(
        {
            "PERSEID_KAFKA": "a:9093,b:9093",
            "PERSEID_KAFKA_SECURITY": "sasl_ssl",
            "PERSEID_KAFKA_MECHANISM": "SCRAM-SHA-256",
            "PERSEID_KAFKA_USER": "me",
            "PERSEID_KAFKA_PASSWORD": "a-phrase",
            "PERSEID_KAFKA_CA": __file__,
            "PERSEID_TOPIC_PREFIX": "shop1.",
        }
    )
    access = KafkaConfig(
        "a:9093,b:9093", "sasl_ssl", "SCRAM-SHA-256", "me", "a-phrase", ca=__file__, topic_prefix="shop1."
    )
    assert settings.kafka_config() == access
    assert load(settings.environment()) == settings
    assert "a-phrase" not in repr(settings) + repr(access)


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


@pytest.mark.parametrize(("text", "weight"), [("model", None), ("off", 0.0), ("0", 0.0), ("1.5", 1.5), ("10", 10.0)])
def test_dislikes_weigh_what_the_model_says_or_the_setting(text: str, weight: float | None) -> None:
    assert load({"PERSEID_NEGATIVE": text}).negative_weight() == weight
    assert load({}).negative_weight() is None


@pytest.mark.parametrize("text", ["on", "", "-1", "11", "nan", "inf", "0,5"])
def test_a_weight_of_dislikes_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"PERSEID_NEGATIVE='{text}': expected model, off or a number from 0 to 10"):
        load({"PERSEID_NEGATIVE": text})


def test_the_table_names_every_setting_once() -> None:
    text = table()
    for name in Settings.model_fields:
        assert text.count(f"`PERSEID_{name.upper()}`") == 1
