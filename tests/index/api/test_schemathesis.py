"""Schemathesis against a running deployment: no server error, no status or shape that is not documented.

It reads the OpenAPI document, sends what fits it and what does not, with keys of two scopes, and follows the links from
records to the calls that show, change and remove them. `python -m tests.index.api.test_schemathesis 1000` runs long.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_api import running_api

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[3]
KEYS = {"a" * 16: frozenset({"read", "write", "admin"}), "r" * 16: frozenset({"read"})}
ALL, READER = KEYS
# Not asked: that everything which fits the document is accepted. Its schemas cannot say which characters an id may
# have, which kinds of events a deployment knows, and that times are milliseconds.
# Nor that what was removed is a 404: a forgotten user is an empty one, a withdrawn item is shown as withdrawn.
EXCLUDED = "positive_data_acceptance,use_after_free"
RUNS = {
    "all scopes": (ALL, "examples,coverage,fuzzing", "all", {}),
    "read scope": (READER, "examples,fuzzing", "all", {}),
    "links": (ALL, "stateful", "positive", {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks"}),
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_api(tmp_path_factory.mktemp("fuzzed"), KEYS) as found:
        yield found


@pytest.mark.parametrize("name", RUNS)
def test_what_is_answered_is_what_is_documented(address: str, name: str, tmp_path: Path) -> None:
    ended = run(name, address, examples=3, folder=tmp_path, stdout=subprocess.PIPE)
    assert ended.returncode == 0, ended.stdout


def run(
    name: str, address: str, examples: int, folder: Path, seed: int = 1, stdout: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Schemathesis, ended with 0 where it found nothing; what it keeps goes to `folder`."""
    key, phases, mode, variables = RUNS[name]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "-H", f"X-API-Key: {key}"]
    command += ["--phases", phases, "--mode", mode, "--exclude-checks", EXCLUDED, "--no-shrink", "--warnings", "off"]
    command += ["--max-examples", str(examples), "--seed", str(seed)]
    environ = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environ, stdout=stdout, stderr=subprocess.STDOUT, text=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, running_api(Path(place), KEYS) as started:
        found = [run(name, started, int(sys.argv[1]), Path(place)).returncode for name in RUNS]
    sys.exit(max(found))
