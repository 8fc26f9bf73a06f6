"""Describes how every Kafka client reaches the cluster, with servers, security, and the prefix of topic names.

One value is spelled out for librdkafka, kafka-python, aiokafka and Faust. Only clients see physical names of topics
(`<prefix><name>`), the rest the logical ones of `streams.events`. Printed or logged, the value hides the password.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.events import Record

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

SECURITY = ("plaintext", "ssl", "sasl_plaintext", "sasl_ssl")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
DEFAULT_MECHANISM = "SCRAM-SHA-512"
_RECENT_S = 30.0  # a reason older than this has probably passed
_ALL_DOWN = "_ALL_BROKERS_DOWN"  # follows the error that says why
_DETAIL = re.compile(r" \(after \d+ms in state \w+\)$")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,200}")  # with the longest of our names it stays below Kafka's 249


@dataclass(frozen=True, slots=True)
class KafkaConfig:
    """Where Kafka is, who we are there, and what our topics are called.

    Raises ValueError when the parts contradict each other; it names the part, never the password.
    """

    bootstrap: str  # servers, `host:port,…`
    security: str = "plaintext"  # one of `SECURITY`
    mechanism: str = ""  # one of `MECHANISMS` when `security` is SASL; empty means `DEFAULT_MECHANISM`
    user: str = ""  # needed with SASL, refused without, as the password is
    password: str = field(default="", repr=False)
    ca: str = ""  # PEM file of the authorities to trust; empty means those of the system; needs TLS, as the next two do
    cert: str = ""  # PEM file of the client's own certificate; needs the key
    key: str = ""  # PEM file of its unencrypted key; needs the certificate
    topic_prefix: str = ""  # comes before each topic's name

    def __post_init__(self) -> None:
        if self.security not in SECURITY:
            raise ValueError(f"security {self.security!r} is none of {', '.join(SECURITY)}")
        self._check_sasl()
        if not self.tls and (self.ca or self.cert or self.key):
            raise ValueError(f"certificate files need security ssl or sasl_ssl, not {self.security}")
        if bool(self.cert) != bool(self.key):
            raise ValueError("the client's certificate and its key are needed together; give both or none")
        if not _PREFIX.fullmatch(self.topic_prefix):
            raise ValueError(f"topic prefix {self.topic_prefix!r} is not up to 200 letters, digits, '.', '_' and '-'")

    def _check_sasl(self) -> None:
        if self.sasl:
            if not self.user or not self.password:
                raise ValueError(f"security {self.security} needs a user and a password; give both")
            if self.mechanism and self.mechanism not in MECHANISMS:
                raise ValueError(f"mechanism {self.mechanism!r} is none of {', '.join(MECHANISMS)}")
        elif self.user or self.password or self.mechanism:
            raise ValueError(
                f"user, password and mechanism need security sasl_plaintext or sasl_ssl, not {self.security}"
            )

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.security in ("ssl", "sasl_ssl")

    @property
    def sasl(self) -> bool:
        """Whether clients log in with user and password."""
        return self.security in ("sasl_plaintext", "sasl_ssl")

    @property
    def servers(self) -> list[str]:
        """`host:port` of each bootstrap server."""
        return [server.strip() for server in self.bootstrap.split(",")]

    def topic(self, name: str) -> str:
        """The physical topic of a logical name."""
        return self.topic_prefix + name

    def owns(self, physical: str) -> bool:
        """Whether a physical topic carries our prefix."""
        return physical.startswith(self.topic_prefix)

    def name(self, physical: str) -> str:
        """The logical name of a physical topic. Raises ValueError when it does not carry the prefix."""
        if not self.owns(physical):
            raise ValueError(f"topic {physical!r} does not begin with the prefix {self.topic_prefix!r}")
        return physical[len(self.topic_prefix) :]

    def librdkafka(self) -> dict[str, Any]:
        """Settings of confluent-kafka's Producer, Consumer and AdminClient. Holds the password: never log it."""
        config = {"bootstrap.servers": self.bootstrap, "security.protocol": self.security}
        if self.sasl:
            config |= {"sasl.mechanisms": self._mechanism, "sasl.username": self.user, "sasl.password": self.password}
        files = {"ssl.ca.location": self.ca, "ssl.certificate.location": self.cert, "ssl.key.location": self.key}
        return config | {name: path for name, path in files.items() if path}

    def kafka_python(self) -> dict[str, Any]:
        """Arguments of kafka-python's clients. Holds the password: never log it."""
        files = {"ssl_cafile": self.ca, "ssl_certfile": self.cert, "ssl_keyfile": self.key}
        return self._arguments("kafka") | {name: path for name, path in files.items() if path}

    def aiokafka(self) -> dict[str, Any]:
        """Arguments of aiokafka's clients. Holds the password: never log it. OSError: a certificate cannot be read."""
        return self._arguments("aiokafka") | ({"ssl_context": self.ssl_context()} if self.tls else {})

    def faust(self) -> dict[str, Any]:
        """Arguments of a Faust app: its broker and credentials. OSError: a certificate cannot be read."""
        import faust  # here, because processes without a Faust app use this module too

        self._silence("aiokafka")
        config: dict[str, Any] = {"broker": [f"aiokafka://{server}" for server in self.servers]}
        context = self.ssl_context() if self.tls else None
        if self.sasl:
            config["broker_credentials"] = faust.SASLCredentials(
                username=self.user, password=self.password, ssl_context=context, mechanism=self._mechanism
            )
        elif context is not None:
            config["broker_credentials"] = faust.SSLCredentials(context)
        return config

    @property
    def _mechanism(self) -> str:
        return self.mechanism or DEFAULT_MECHANISM

    def _arguments(self, client: str) -> dict[str, Any]:
        """What aiokafka and kafka-python share."""
        self._silence(client)
        config: dict[str, Any] = {"bootstrap_servers": self.servers, "security_protocol": self.security.upper()}
        login = {"sasl_plain_username": self.user, "sasl_plain_password": self.password}
        return config | ({"sasl_mechanism": self._mechanism, **login} if self.sasl else {})

    def _silence(self, client: str) -> None:
        """Ends a client's debug log, which shows every request, and so the password of PLAIN."""
        logger = logging.getLogger(client)
        if self.sasl:
            logger.setLevel(max(logging.INFO, logger.level))

    def ssl_context(self) -> ssl.SSLContext:
        """What TLS connections trust and show. OSError: a certificate cannot be read."""
        context = ssl.create_default_context(cafile=self.ca or None)
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


def message_to_record(message: Message, topic: str) -> Record:
    """A message of librdkafka as a record of a logical topic."""
    _, timestamp_ms = message.timestamp()
    key: Any = message.key()
    value: Any = message.value()
    headers: Any = message.headers() or ()
    pairs = tuple((name, content or b"") for name, content in headers)
    return Record(topic, message.partition() or 0, message.offset() or 0, timestamp_ms, key, value, pairs)


class Reasons:
    """Why librdkafka cannot reach its brokers, which its calls do not say: pass one as `error_cb` of a client."""

    def __init__(self) -> None:
        self._last = ""
        self._at_s = 0.0

    def __call__(self, error: KafkaError) -> None:
        if error.name() != _ALL_DOWN:
            self._last, self._at_s = _DETAIL.sub("", error.str()), time.monotonic()

    @property
    def recent(self) -> str:
        """The last reason of the last half minute, without secrets; empty when there was none."""
        return self._last if time.monotonic() - self._at_s < _RECENT_S else ""

    def explain(self, what: str) -> str:
        """`what`, and the recent reason if there is one."""
        return f"{what}: {self.recent}" if self.recent else what
