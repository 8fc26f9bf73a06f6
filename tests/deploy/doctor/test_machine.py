"""The doctor on this machine: packages, the state folder, the API's port."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from deploy.doctor import machine as doctor_machine
from deploy.doctor.finding import Finding
from deploy.doctor.machine import check_api, check_folder, check_native, check_packages, check_python
from deploy.settings import load
from tests.support.disks import small_disk
from tests.support.fake_servers import pages


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_this_python_and_its_packages_are_well() -> None:
    assert only(check_python(load({}))).state == "ok"
    assert "faust-streaming 0." in only(check_packages(load({}))).what


def test_an_old_python_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "OLDEST_PYTHON", (99, 1))
    monkeypatch.setattr(doctor_machine, "PACKAGES", ("orjson", "no-such-package-of-ours"))
    python, packages = only(check_python(load({}))), only(check_packages(load({})))
    assert (python.state, packages.state) == ("wrong", "wrong")
    assert "install Python 99.1" in python.remedy
    assert packages.what == "missing: no-such-package-of-ours"


def test_without_a_compiler_the_doctor_says_what_is_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "NATIVE", {"first": ("no_such_module", "json"), "second": ("string",)})
    found = only(check_native(load({})))
    assert (found.state, found.what) == ("ok", "json, string")
    monkeypatch.setattr(doctor_machine, "NATIVE", {"first": ("json",), "second": ("no_such_module",)})
    found = only(check_native(load({})))
    assert (found.state, "not compiled: second;" in found.what, "compiler" in found.remedy) == ("note", True, True)


def test_a_folder_that_can_be_written_or_made_is_well(tmp_path: Path) -> None:
    assert only(check_folder(load({}, state=tmp_path))).state == "ok"
    assert "can be made" in only(check_folder(load({}, state=tmp_path / "a" / "b"))).what
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


def test_a_folder_that_cannot_be_written_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.touch()
    folders = [file, *([] if os.geteuid() == 0 else [Path("/")]), *[path for path in [Path("/proc")] if path.is_dir()]]
    for folder in folders:
        finding = only(check_folder(load({}, state=folder / "state")))
        assert finding.state == "wrong" and "PERSEID_STATE" in finding.remedy


def test_a_small_disk_is_a_note_and_a_full_one_is_wrong(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        finding = only(check_folder(load({}, state=disk.folder)))
        assert (finding.state, finding.what) == ("note", "4 MB free")
        disk.fill()
        finding = only(check_folder(load({}, state=disk.folder)))
        assert (finding.state, finding.what) == ("wrong", "no space left")


def test_a_free_port_is_well_and_a_taken_one_is_not() -> None:
    assert only(check_api(load({}, api_port=0))).state == "ok"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = only(check_api(load({}, api_port=taken.getsockname()[1])))
    assert finding.state == "wrong" and "PERSEID_API_PORT" in finding.remedy


def test_a_port_on_which_an_api_answers_is_well() -> None:
    with pages({"/healthz": (200, {"status": "ok"})}, {}) as url:
        finding = only(check_api(load({}, api_port=int(url.rpartition(":")[2]))))
    assert (finding.state, finding.what) == ("ok", "an API process answers")


def test_a_host_of_another_machine_is_wrong() -> None:
    finding = only(check_api(load({}, api_host="192.0.2.1", api_port=0)))
    assert finding.state == "wrong"
