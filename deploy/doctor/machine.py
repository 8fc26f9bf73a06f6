"""Checks Python, packages, the state folder, and the API's port on this machine.

Looking leaves nothing behind. The probe file in the state folder is removed at once, and the port is bound for a moment
only when it is free. Whether a taken port is ours, `/healthz` tells.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import socket
import sys
import tempfile

import httpx

from deploy.disk_space import free_bytes
from deploy.doctor.finding import CONNECT_S, Finding
from deploy.settings import Settings

OLDEST_PYTHON = (3, 11)
PACKAGES = (
    "faust-streaming", "aiokafka", "confluent-kafka", "kafka-python", "torch", "redis", "hnswlib", "elasticsearch",
    "fastapi", "uvicorn", "httpx", "orjson", "safetensors", "tokenizers",
)  # fmt: skip
NATIVE = {
    "encoder": ("encoder.inference._native_wide", "encoder.inference._native"),
    "first stage": ("index.items._native",),
    "second stage": ("index.ranking._native",),
}
_FREE_MB = 1_000.0  # snapshots of a million items, texts and logs
_FULL_MB = 1.0  # less is what nothing can be written into


def check_python(_: Settings) -> list[Finding]:
    """The interpreter."""
    at = Finding("python", address=sys.executable, version=".".join(map(str, sys.version_info[:3])))
    if sys.version_info[:2] < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return [at.wrong("too old", f"install Python {oldest} or newer and run make again")]
    return [at.ok()]


def check_packages(_: Settings) -> list[Finding]:
    """The packages that roles import."""
    at, found, missing = Finding("packages"), [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return [at.wrong(f"missing: {', '.join(missing)}", "run `make test` once: it installs them")]
    return [at.ok(", ".join(found))]


def check_native(_: Settings) -> list[Finding]:
    """What is native and was compiled for this version and processor."""
    at, missing = Finding("native"), [part for part, names in NATIVE.items() if not any(map(_loads, names))]
    if missing:
        slower = f"not compiled: {', '.join(missing)}; torch and numpy do the same, two to four times slower"
        return [at.note(slower, "install a C++ compiler and run make again")]
    return [at.ok(", ".join(name for names in NATIVE.values() for name in names if _loads(name)))]


def _loads(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def check_folder(settings: Settings) -> list[Finding]:
    """Whether the state folder, or the nearest one above it that exists, can be written to."""
    folder = settings.state.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    at = Finding("folder", address=str(folder))
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        remedy = "let this user write there, or set PERSEID_STATE (or --state) to another folder"
        return [at.wrong(f"cannot write: {error.strerror}", remedy)]
    free = free_bytes(nearest)
    if free is None:
        return [at.ok()]
    free_mb = free / 1e6
    if free_mb < _FULL_MB:
        return [at.wrong("no space left", "make room: logs, models, snapshots and an embedded Redis are kept there")]
    if free_mb < _FREE_MB:
        return [at.note(f"{free_mb:.0f} MB free", "make room: snapshots need it")]
    return [at.ok(f"{'' if nearest == folder else 'does not exist yet, can be made; '}{free_mb / 1e3:.0f} GB free")]


def check_api(settings: Settings) -> list[Finding]:
    """Whether the API can listen, or does so already."""
    host, port = settings.api_host, settings.api_port
    at = Finding("api", address=f"{host}:{port}")
    try:
        family, kind, *_, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except socket.gaierror as error:
        return [at.wrong(f"unknown host: {error.strerror}", "set PERSEID_API_HOST to an address of this machine")]
    except OSError as error:
        if _is_ours(f"http://{at.address}/healthz"):
            return [at.ok("an API process answers")]
        remedy = "end what listens there, or set PERSEID_API_PORT (or --port) to another port"
        return [at.wrong(f"cannot listen: {error.strerror}", remedy)]
    return [at.ok("the port is free" if port else "takes a free port")]


def _is_ours(url: str) -> bool:
    try:
        return httpx.get(url, timeout=CONNECT_S).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
