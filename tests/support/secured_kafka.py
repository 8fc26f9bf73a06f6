"""A real Kafka that wants to know who is there: SASL over TLS, SASL alone, a client's certificate; and a way astray.

Its certificates are made for the run, by an authority that nobody else trusts. One user, with PLAIN and both SCRAM
mechanisms. Skips as `tests.support.services` does where no Kafka can be started.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from deploy.servers.kafka import KafkaServer
from deploy.servers.ports import free_port
from streams.kafka.config import KafkaConfig
from tests.support.services import KEEP, need_java, open_folder

USER, PASSWORD = "perseid", "a-secret-word"
# Security, which of the listeners, mechanism.
WAYS = {
    "scram-512": ("sasl_ssl", 0, "SCRAM-SHA-512"),
    "scram-256": ("sasl_ssl", 0, "SCRAM-SHA-256"),
    "plain": ("sasl_ssl", 0, "PLAIN"),
    "without-tls": ("sasl_plaintext", 1, "PLAIN"),
    "certificate": ("ssl", 2, ""),
}
_LOGIN = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class SecuredKafka:
    """A running broker: ports of its listeners (SASL with TLS, SASL, TLS with certificates, astray), and PEM files."""

    ports: list[int]
    ca: Path
    cert: Path
    key: Path

    def way(self, name: str, topic_prefix: str = "") -> KafkaConfig:
        """One of `WAYS` in."""
        security, listener, mechanism = WAYS[name]
        more = {"topic_prefix": topic_prefix} | ({"user": USER, "password": PASSWORD} if mechanism else {})
        if security.endswith("ssl"):
            more["ca"] = str(self.ca)
        if not mechanism:
            more |= {"cert": str(self.cert), "key": str(self.key)}
        return KafkaConfig(f"127.0.0.1:{self.ports[listener]}", security, mechanism, **more)

    @property
    def astray(self) -> KafkaConfig:
        """A listener that sends its clients on to an address where nobody listens."""
        return KafkaConfig(f"127.0.0.1:{self.ports[3]}")


@contextmanager
def secured_kafka() -> Iterator[SecuredKafka]:
    """Starts the broker for the time of the block."""
    need_java()
    ports = [free_port() for _ in range(4)]
    users = [f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]" for bits in (256, 512)]
    arguments = [argument for user in users for argument in ("--add-scram", user)]
    with open_folder("perseid-test-secured-kafka-") as folder:
        properties = KEEP | _properties(ports, _certificates(folder), folder / "ca.pem")
        files = [folder / name for name in ("ca.pem", "client.pem", "client.key")]
        with KafkaServer(folder / "kafka", port=ports[0], properties=properties, format_arguments=arguments):
            yield SecuredKafka(ports, *files)


def _certificates(folder: Path) -> Path:
    """Makes `ca.pem`, `client.pem` and `client.key`; returns the file with the server's key and certificate."""
    authority, server_file = trustme.CA(), folder / "server.pem"
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@shop.example")
    server_file.write_bytes(_pkcs8(server) + b"".join(pem.bytes() for pem in server.cert_chain_pems))
    (folder / "client.key").write_bytes(_pkcs8(client))
    (folder / "client.pem").write_bytes(client.cert_chain_pems[0].bytes())
    return server_file


def _pkcs8(certificate: trustme.LeafCert) -> bytes:
    """The private key in the only form that Kafka reads from PEM files."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _properties(ports: list[int], server: Path, ca: Path) -> dict[str, str]:
    controller = free_port()
    names = dict(zip(("CLIENT", "SASL", "MUTUAL", "ASTRAY", "INNER"), (*ports, free_port()), strict=True))
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in names.items())
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners.replace(f"ASTRAY://127.0.0.1:{ports[3]}", "ASTRAY://127.0.0.1:1"),
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": (
            "CLIENT:SASL_SSL,SASL:SASL_PLAINTEXT,MUTUAL:SSL,ASTRAY:PLAINTEXT,INNER:PLAINTEXT,CONTROLLER:PLAINTEXT"
        ),
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca),
        "listener.name.mutual.ssl.client.auth": "required",
    }
    for name in ("client", "sasl"):
        plain = f'{_LOGIN}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        properties[f"listener.name.{name}.plain.sasl.jaas.config"] = plain
        for bits in (256, 512):
            scram = f"{_LOGIN}.scram.ScramLoginModule required;"
            properties[f"listener.name.{name}.scram-sha-{bits}.sasl.jaas.config"] = scram
    return properties
