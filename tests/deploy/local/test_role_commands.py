"""The processes of `perseid up`: how many, with which ports, and what each is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from deploy.local.role_commands import api_ports, console_port, roles
from deploy.settings import load
from tests.integration.live import free_ports


def test_one_of_each_by_default_and_an_indexer_only_with_elasticsearch(tmp_path: Path) -> None:
    settings = load({}, state=tmp_path)
    names = [role.name for role in roles(settings, {}, tmp_path / "plan", 1, [8000])]
    assert names == ["worker", "embed", "api", "attribution", "console", "traffic"]
    settings = load({"PERSEID_ELASTICSEARCH": "http://127.0.0.1:9200"}, state=tmp_path)
    assert "indexer" in [role.name for role in roles(settings, {}, tmp_path / "plan", 1, [8000])]
    settings = load({"PERSEID_ATTRIBUTION_MIN": "0"}, state=tmp_path)
    assert "attribution" not in [role.name for role in roles(settings, {}, tmp_path / "plan", 1, [8000])]


def test_workers_and_apis_are_numbered_and_differ_in_log_and_port(tmp_path: Path) -> None:
    settings = load({}, state=tmp_path, api_port=8000)
    found = list(roles(settings, {"OMP_NUM_THREADS": "3"}, tmp_path / "plan", 2, [8000, 8001]))
    names = ["worker", "worker-2", "embed", "api", "api-2", "attribution", "console", "traffic"]
    assert [role.name for role in found] == names
    assert len({role.log for role in found}) == len(found)
    ports = {role.name: role.env["PERSEID_API_PORT"] for role in found if role.env is not None}
    assert (ports["api"], ports["api-2"]) == ("8000", "8001")
    assert all(role.env is not None and role.env["OMP_NUM_THREADS"] == "3" for role in found)
    assert found[-1].argv[-1] == str(tmp_path / "plan")


def test_every_api_port_must_be_free(tmp_path: Path) -> None:
    first = free_ports(2)
    settings = load({}, state=tmp_path, api_port=first)
    assert list(api_ports(settings, 2)) == [first, first + 1]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        taken.listen()
        assert list(api_ports(settings, 1)) == [first]
        with pytest.raises(ValueError, match=f"port {first + 1} of 127.0.0.1 is taken; choose another by --api-port"):
            api_ports(settings, 2)
    with pytest.raises(ValueError, match="port 65536"):
        api_ports(load({}, state=tmp_path, api_port=65535), 2)


def test_the_console_takes_another_port_unless_one_was_asked_for(tmp_path: Path) -> None:
    port = free_ports(1)
    settings = load({}, state=tmp_path, console_port=port)
    assert console_port(settings, None) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert console_port(settings, None) not in (port, 0)
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is taken; choose another by --console-port"):
            console_port(settings, port)
