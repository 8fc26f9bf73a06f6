"""Reads the settings of all processes, flat and few, each `PERSEID_<NAME>` of an environment that is passed in.

An unknown name is an error that says what was meant. Addresses may carry passwords and keys are secrets; both are held
as `SecretStr`, and `public_address` is the only way in which an address is shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from context.units import MINUTE_MS
from deploy.setting_values import kinds_text, parse_api_keys, parse_embedders, parse_kinds, parse_negative
from index.query.served_ranker import parse_choice
from index.state.keys import Keys
from streams.events import DEFAULT_KINDS, Rules
from streams.kafka.config import KafkaConfig

PREFIX = "PERSEID_"


def _one_of(*known: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return value

    return parse


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "kinds": parse_kinds,
    "embedders": parse_embedders,
    "api_keys": parse_api_keys,
    "negative": parse_negative,
    "ranker": parse_choice,
    "device": _one_of("auto", "cpu", "cuda"),
    "log_level": _one_of("debug", "info", "warning", "error"),
    "elasticsearch_use": _one_of("filters", "knn"),
}


class Settings(BaseModel):
    """One value per setting; every one has a default that works on one machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kafka: SecretStr = Field(SecretStr("127.0.0.1:9092"), description="Kafka bootstrap servers, `host:port,…`")
    kafka_security: str = Field("plaintext", description="`plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`")
    kafka_mechanism: str = Field("", description="with SASL: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512` (default)")
    kafka_user: str = Field("", description="user name, with SASL")
    kafka_password: SecretStr = Field(SecretStr(""), description="password, with SASL")
    kafka_ca: str = Field("", description="PEM file of the authorities to trust, with TLS; empty = the system's")
    kafka_cert: str = Field("", description="PEM file of this client's certificate, where Kafka asks for one")
    kafka_key: str = Field("", description="PEM file of that certificate's unencrypted key")
    topic_prefix: str = Field("", description="comes before the name of each Kafka topic: `shop1.`")
    redis: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis address, may hold a password; `rediss://` for TLS"
    )
    redis_cluster: bool = Field(False, description="whether the address is a node of a Redis Cluster")
    redis_ca: str = Field("", description="PEM file of the authorities to trust, with `rediss://`")
    elasticsearch: SecretStr = Field(
        SecretStr(""), description="Elasticsearch address, `https://host:9200`; empty = none"
    )
    elasticsearch_api_key: SecretStr = Field(SecretStr(""), description="API key, base64 as Elasticsearch shows it")
    elasticsearch_ca: str = Field("", description="PEM file of the authorities to trust, with `https://`")
    elasticsearch_use: str = Field("filters", description="what Elasticsearch does: `filters` or `knn` (and filters)")
    elasticsearch_timeout_ms: float = Field(100.0, description="patience of the API for one call, milliseconds", gt=0)
    elasticsearch_refresh_ms: float = Field(
        200.0, description="least time between two moments when writes become visible to searches (indexer)", ge=0
    )
    elasticsearch_shards: int = Field(1, description="shards of an index of items (indexer)", ge=1)
    elasticsearch_replicas: str = Field(
        "auto", description="replicas: a number, or `auto` for one when there is a second node", pattern=r"^(auto|\d+)$"
    )
    elasticsearch_held_mb: int = Field(256, description="memory for vectors of an API process with `knn`", ge=1)
    prefix: str = Field("perseid", description="first part of every Redis key", pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    group: str = Field("perseid", description="consumer group of the workers; `embed` uses `<group>-embed-<model>`")
    partitions: int = Field(32, description="partitions of the topics keyed by user; cannot be changed later", ge=1)
    kinds: str = Field(
        kinds_text(DEFAULT_KINDS),
        description="kinds of events in code order, `name:weight[:remembered]`; only append to it",
    )
    negative: str = Field(
        "model",
        description="most that an item's score loses by dislikes: `model` for what its training chose, `off`, "
        "or a number up to 10 (API, `replay`, `evaluate`)",
    )
    ranker: str = Field(
        "auto",
        description="what orders lists (API): `auto` for the ranker of the served model where it beat the first stage, "
        "`off`, or the version of a ranker, which then orders all that it can",
    )
    feature_share: float = Field(
        0.01,
        description="share of the lists ordered by a ranker whose exposures carry the features, for `perseid skew` "
        "(API); 0 = none, as where showings are counted",
        ge=0,
        le=1,
    )
    showings: bool = Field(
        False,
        description="whether workers count how often items are shown, from `exposures`, as rankers may read it "
        "(worker, API, `replay`, `train-ranker`)",
    )
    attribution_min: int = Field(
        60,
        description="minutes after a list was shown in which a click or purchase of its items belongs to it "
        "(attribution); 0 = `perseid up` starts no such process",
        ge=0,
        le=7 * 24 * 60,
    )
    model: Path = Field(
        Path(".perseid/model"),
        description="folder of a model artefact: what a live state without a model begins with, before the champion "
        "of the registry (worker, embed)",
    )
    models: str = Field(
        "",
        description="registry of models (worker, embed, `models`): a folder, or `s3://…`, `gs://…`, `az://…` with the "
        "extra `remote`; empty = `registry` in the state folder",
    )
    fill_share: float = Field(
        0.25,
        description="share of a worker's time in which it gives users the vectors of a staged model",
        gt=0,
        le=1,
    )
    embedders: str = Field("minilm-l6-v2:384", description="known text embedders and their dimension, `name:dim,…`")
    device: str = Field(
        "auto", description="where the encoder runs, and `evaluate` trains baselines: `auto`, `cpu` or `cuda`"
    )
    threads: int = Field(1, description="CPU threads of the encoder (worker) or of the text model (embed)", ge=1)
    cache_mb: int = Field(
        1024, description="most memory for cached keys and values of active users, taken as it is used (worker)", ge=1
    )
    bucket_minutes: int = Field(360, description="width of a popularity bucket (worker)", ge=1)
    reload_minutes: int = Field(
        30,
        description="after ten views of an item in a row, one so soon after them changes no window; 0 = never",
        ge=0,
    )
    idle_days: int = Field(400, description="users are removed so long after their last event; 0 = never", ge=0)
    api_host: str = Field("127.0.0.1", description="address the API listens on")
    api_port: int = Field(8000, description="port the API listens on; 0 takes a free one", ge=0, le=65535)
    api_keys: SecretStr = Field(
        SecretStr(""), description="API keys with scopes read, write, admin: `key:read+write,…`; empty = open"
    )
    api_answers: int = Field(16, description="answers in work before 503, half of it in a standing queue (API)", ge=1)
    api_in_flight: int = Field(64, description="writes, or answers that wait for an event, before 503 (API)", ge=1)
    console_host: str = Field("127.0.0.1", description="address the console listens on")
    console_port: int = Field(8600, description="port the console listens on; 0 takes a free one", ge=0, le=65535)
    console_hosts: str = Field(
        "",
        description="names by which browsers reach the console, `name,…`, beside `localhost`, `127.0.0.1` and the "
        "address it listens on; it answers to no other",
    )
    console_api: str = Field(
        "", description="address of the API that the console asks; empty = the API of these settings on this machine"
    )
    console_api_key: SecretStr = Field(
        SecretStr(""),
        description="API key of scopes read and admin with which the console reads for everybody who reaches it; "
        "empty = where the API has keys, visitors sign in with theirs. Changing anything always needs their own",
    )
    state: Path = Field(Path(".perseid"), description="folder for caches, logs and snapshots")
    embed_url: SecretStr = Field(
        SecretStr(""), description="OpenAI-compatible API for text vectors, like `http://host/v1`; empty = MiniLM here"
    )
    embed_model: str = Field("", description="its model, whose dimension has to be among the known embedders")
    embed_key: SecretStr = Field(SecretStr(""), description="its key")
    chat_url: SecretStr = Field(
        SecretStr(""), description="OpenAI-compatible API that chooses more tags; empty = only those a record matches"
    )
    chat_model: str = Field("", description="its model")
    chat_key: SecretStr = Field(SecretStr(""), description="its key")
    llm_tokens_per_day: int = Field(
        10_000_000, description="spend limit of both endpoints, kept over restarts, UTC days; 0 = none", ge=0
    )
    llm_tokens_per_minute: int = Field(0, description="rate limit of both endpoints; 0 = none", ge=0)
    llm_requests_per_minute: int = Field(0, description="rate limit of both endpoints; 0 = none", ge=0)
    llm_concurrency: int = Field(4, description="requests to endpoints at a time", ge=1, le=64)
    llm_timeout_s: float = Field(30.0, description="patience for one request, seconds", gt=0)
    llm_characters: int = Field(8_000, description="of a text, at most so many are sent to endpoints", ge=1)
    log_level: str = Field("info", description="`debug`, `info`, `warning` or `error`")

    @field_validator("kafka")
    @classmethod
    def _has_hosts(cls, value: SecretStr) -> SecretStr:
        for server in value.get_secret_value().split(","):
            host, _, port = server.strip().rpartition(":")
            if not host or not port.isdigit():
                raise ValueError("expected host:port, several separated by commas")
        return value

    @field_validator("redis")
    @classmethod
    def _is_redis(cls, value: SecretStr) -> SecretStr:
        if urlsplit(value.get_secret_value()).scheme not in ("redis", "rediss", "unix"):
            raise ValueError("expected redis://[:password@]host:port/db, rediss://… or unix://…")
        return value

    @field_validator("elasticsearch")
    @classmethod
    def _is_http(cls, value: SecretStr) -> SecretStr:
        address = urlsplit(value.get_secret_value())
        if value.get_secret_value() and (
            address.scheme not in ("http", "https") or not address.hostname or not address.port
        ):
            raise ValueError("expected http://host:port or https://host:port")
        return value

    @field_validator("console_api")
    @classmethod
    def _is_api(cls, value: str) -> str:
        address = urlsplit(value)
        if value and (address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc):
            raise ValueError("expected http://host:port or https://host:port, without user and password")
        return value.rstrip("/")

    @field_validator("models")
    @classmethod
    def _is_registry(cls, value: str) -> str:
        address = urlsplit(value)
        if "://" in value and (address.scheme not in ("s3", "gs", "az") or not address.netloc):
            raise ValueError("expected a folder, s3://bucket/path, gs://bucket/path or az://container/path")
        return value

    @field_validator("kafka_ca", "kafka_cert", "kafka_key", "redis_ca", "elasticsearch_ca")
    @classmethod
    def _is_file(cls, value: str) -> str:
        if value and not Path(value).is_file():
            raise ValueError("there is no such file")
        return value

    @field_validator("kinds", "negative", "ranker", "embedders", "api_keys", "device", "log_level", "elasticsearch_use")
    @classmethod
    def _parses(cls, value: Any, info: ValidationInfo) -> Any:
        _PARSERS[str(info.field_name)](_plain(value))
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        self.kafka_config()
        redis, elastic = urlsplit(_plain(self.redis)), urlsplit(_plain(self.elasticsearch))
        if self.redis_ca and redis.scheme != "rediss":
            raise ValueError(f"{PREFIX}REDIS_CA needs a rediss:// address, not {redis.scheme}://")
        if self.redis_cluster and (redis.scheme == "unix" or redis.path.strip("/") not in ("", "0")):
            raise ValueError(
                f"{PREFIX}REDIS_CLUSTER needs redis:// or rediss:// and database 0, a cluster has no other"
            )
        if self.elasticsearch_ca and elastic.scheme != "https":
            raise ValueError(f"{PREFIX}ELASTICSEARCH_CA needs an https:// address in {PREFIX}ELASTICSEARCH")
        if _plain(self.elasticsearch_api_key) and not elastic.scheme:
            raise ValueError(f"{PREFIX}ELASTICSEARCH_API_KEY needs an address in {PREFIX}ELASTICSEARCH")
        return self

    def kafka_config(self) -> KafkaConfig:
        """How every Kafka client reaches the cluster. ValueError: the settings contradict each other."""
        try:
            return KafkaConfig(
                _plain(self.kafka),
                self.kafka_security,
                self.kafka_mechanism,
                self.kafka_user,
                _plain(self.kafka_password),
                self.kafka_ca,
                self.kafka_cert,
                self.kafka_key,
                self.topic_prefix,
            )
        except ValueError as error:
            raise ValueError(f"{PREFIX}KAFKA_* and {PREFIX}TOPIC_PREFIX: {error}") from None

    @property
    def registry(self) -> str:
        """Folder or address of the registry of models."""
        return self.models or str(self.state / "registry")

    def keys(self) -> Keys:
        """The key builder of this deployment."""
        return Keys(self.prefix)

    def rules(self) -> Rules:
        """What records this deployment accepts."""
        return Rules(
            parse_kinds(self.kinds), parse_embedders(self.embedders), self.reload_minutes * MINUTE_MS, self.showings
        )

    def negative_weight(self) -> float | None:
        """The weight of negative feedback; None for the model's own."""
        return parse_negative(self.negative)

    def scopes(self) -> dict[str, frozenset[str]]:
        """API key → its scopes; empty when the API is open."""
        return parse_api_keys(self.api_keys.get_secret_value())

    def environment(self) -> dict[str, str]:
        """The same settings as variables, secrets included, for a child process. Never log it."""
        return {f"{PREFIX}{name.upper()}": _plain(value) for name, value in self}


def load(environ: Mapping[str, str], **overrides: Any) -> Settings:
    """Settings from the `PERSEID_*` variables of `environ`; `overrides` win, None among them is ignored.

    Raises ValueError for an unknown name or a bad value: which variable, what is expected, never a secret's value.
    """
    given: dict[str, Any] = {}
    for variable, value in environ.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name not in Settings.model_fields or variable != f"{PREFIX}{name.upper()}":
                raise ValueError(_unknown(variable))
            given[name] = value
    given.update({name: value for name, value in overrides.items() if value is not None})
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        if not first["loc"]:  # several settings together; the message names them
            raise ValueError(message) from None
        name = str(first["loc"][0])
        field = Settings.model_fields.get(name)
        secret = field is None or isinstance(field.default, SecretStr)
        shown = "" if secret else f"={given.get(name)!r}"
        raise ValueError(f"{PREFIX}{name.upper()}{shown}: {message}") from None


def table() -> str:
    """The settings as a Markdown table: name, default, meaning."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = _plain(field.default)
        rows.append(f"| `{PREFIX}{name.upper()}` | {f'`{default}`' if default else ''} | {field.description} |")
    return "\n".join(rows)


def public_address(address: str) -> str:
    """An address without user name and password: `redis://127.0.0.1:6379/0`; plain `host:port` stays."""
    if "://" not in address:
        return address.rpartition("@")[2]
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _unknown(variable: str) -> str:
    names = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    near = difflib.get_close_matches(variable.upper(), names, 1)
    return f"unknown setting {variable}; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}")
