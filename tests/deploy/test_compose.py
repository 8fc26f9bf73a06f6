"""compose.yaml and the Dockerfile, as far as they can be checked without a daemon: names, pins, users, paths."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cli import COMMANDS
from deploy.commands.retrain import retrain as retrain_command
from deploy.servers.artefacts import PINS
from deploy.servers.mock_kafka import topic_partitions
from deploy.settings import PREFIX, Settings, load
from tests.support.services import ELASTICSEARCH_IMAGE

pytestmark = pytest.mark.servers

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ("kafka", "redis", "elasticsearch")
PIN = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+[a-z0-9.-]*(@sha256:[0-9a-f]{64})?")
INTERPOLATION = re.compile(r"\$\{(\w+)(?::[-?]([^}]*))?\}")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions with their arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def ours(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in compose["services"].items() if name not in SERVERS}


def test_every_role_has_a_service_and_every_command_exists(compose: dict[str, Any]) -> None:
    commands = {name: service["command"] for name, service in ours(compose).items()}
    assert {"worker", "embed", "indexer", "attribution", "api", "console"} <= set(commands)
    for name, command in commands.items():
        assert command[0] in COMMANDS, (name, command)
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", *_words(command), "--help"], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, (name, done.stderr)


def _words(command: list[str]) -> list[str]:
    """A command with its subcommand, without options."""
    return [word for word in command[:2] if word.isidentifier()]


def test_variables_are_settings_that_load(compose: dict[str, Any]) -> None:
    for name, service in ours(compose).items():
        variables = {key: _filled(str(value)) for key, value in service["environment"].items()}
        assert all(key.startswith(PREFIX) for key in variables), name
        settings = load(variables)
        assert isinstance(settings, Settings)
        hosts = {settings.kafka.get_secret_value().partition(":")[0], "redis", "elasticsearch"}
        assert hosts <= set(compose["services"])
    text = (ROOT / "compose.yaml").read_text()
    assert not [name for name, _ in INTERPOLATION.findall(text) if name.startswith(PREFIX)], "unknown settings to us"


def _filled(value: str) -> str:
    """A value as Compose makes it with nothing set but the required ones."""
    return INTERPOLATION.sub(lambda match: "word" if ":?" in match[0] else match[2] or "", value)


def test_dependencies_are_services_that_can_fulfil_them(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in compose["services"], (name, other)
            target = compose["services"][other]
            assert condition["condition"] in ("service_healthy", "service_completed_successfully")
            assert condition["condition"] != "service_healthy" or "healthcheck" in target, (name, other)
            assert condition["condition"] == "service_healthy" or target["restart"] == "no", (name, other)
    volumes = [mount.partition(":")[0] for service in compose["services"].values() for mount in service["volumes"]]
    named = {source for source in volumes if not source.startswith(("$", ".", "/"))}
    assert named == set(compose["volumes"])


def test_images_are_pinned_and_those_of_the_stack(compose: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    images = {name: service["image"] for name, service in compose["services"].items()}
    images |= {rest: rest.split()[0] for word, rest in dockerfile if word == "FROM"}
    assert all(PIN.fullmatch(image) for image in images.values()), images
    assert images["kafka"].endswith(f":{PINS['kafka']}")
    assert images["elasticsearch"] == ELASTICSEARCH_IMAGE == f"elasticsearch:{PINS['elasticsearch']}"
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert {service["image"] for service in ours(compose).values()} == {f"perseid:{version[1]}"}


def test_only_loopback_is_published_and_nothing_runs_with_more_rights_than_it_needs(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert all(_filled(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
    for name, service in ours(compose).items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
    asked = [name for name, service in compose["services"].items() if "healthcheck" not in service]
    assert set(asked) <= {"topics", "worker", "embed", "indexer", "attribution", "retrain"}, (
        "servers and APIs have health checks"
    )


def test_redis_never_evicts_and_its_password_is_in_no_process_list(compose: dict[str, Any]) -> None:
    redis = compose["services"]["redis"]
    command = " ".join(redis["command"])
    assert "maxmemory-policy noeviction" in command and "appendonly yes" in command
    assert '"$$REDIS_PASSWORD" | exec redis-server -' in command
    assert redis["environment"]["REDIS_PASSWORD"].startswith("${REDIS_PASSWORD:?"), "no default password"


def test_kafka_creates_no_topic_by_itself_but_topics_does(compose: dict[str, Any]) -> None:
    assert compose["services"]["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert compose["services"]["topics"]["command"] == ["stack", "topics"]
    for name in ("worker", "embed", "api"):
        assert "topics" in compose["services"][name]["depends_on"], name
    assert len(topic_partitions()) == 8


def test_the_image_has_every_package_and_no_root(dockerfile: list[tuple[str, str]]) -> None:
    copied = [
        source for word, rest in dockerfile if word == "COPY" and "--from" not in rest for source in rest.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in copied), copied
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(copied)
    allowed = {line.lstrip("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == allowed, ".dockerignore lets in what is copied, and nothing else"
    users = [rest for word, rest in dockerfile if word == "USER"]
    assert users and not users[-1].startswith(("root", "0"))
    assert [rest for word, rest in dockerfile if word == "ENTRYPOINT"] == ['["perseid"]']
    froms = [number for number, (word, _) in enumerate(dockerfile) if word == "FROM"]
    assert len(froms) == 2 and dockerfile.index(("USER", users[-1])) > froms[-1], "the last stage is not root's"
    variables = " ".join(rest for word, rest in dockerfile if word == "ENV").split()
    load(dict(pair.split("=", 1) for pair in variables if pair.startswith(PREFIX)))


def test_a_retraining_runs_once_when_it_is_asked_for_with_what_workers_see(compose: dict[str, Any]) -> None:
    retrain, worker = compose["services"]["retrain"], compose["services"]["worker"]
    assert (retrain["profiles"], retrain["restart"]) == (["retrain"], "no")
    assert (retrain["volumes"], retrain["environment"]) == (worker["volumes"], worker["environment"])
    options = {name for parameter in retrain_command.params for name in parameter.opts}
    assert {word for word in retrain["command"] if word.startswith("--")} <= options
