"""The architecture as a test: who may import whom, and who owns which third-party system (DESIGN, layout).

Reads imports as text (AST), so nothing is executed except subprocesses that import API and traffic and list modules.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "deploy": {"deploy", "streams", "encoder", "index", "context"},
    "streams": {"streams", "encoder", "index", "context"},
    "index": {"index", "context"},
    "encoder": {"encoder"},
    "context": {"context"},
}
# deploy is the composition root: it starts local servers and wires the producer, so it may also touch those libraries.
OWNERS = {
    "faust": {"streams"},
    "mode": {"streams"},
    "aiokafka": {"streams"},
    "kafka": {"streams", "deploy"},
    "confluent_kafka": {"streams", "deploy"},
    "torch": {"encoder"},
    "triton": {"encoder"},
    "sentence_transformers": {"encoder"},
    "lightgbm": {"streams"},
    "redis": {"index", "deploy"},
    "hiredis": {"index"},
    "hnswlib": {"index"},
    "elasticsearch": {"index"},
    "fastapi": {"index"},
    "starlette": {"index", "deploy"},  # the console has pages and no schemas
    "jinja2": {"deploy"},
    "uvicorn": {"deploy"},
    "click": {"deploy"},
    "obstore": {"deploy"},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the package"
            yield node.lineno, (node.module or "").split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    assert modules(package), f"package {package} has no modules"
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules(package)
        for line, name in imports(path)
        if (name in PACKAGES and name not in PACKAGES[package]) or name == "tests"
    ]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_each_third_party_system_has_its_owner(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}; owner: {sorted(OWNERS[name])}"
        for path in modules(package)
        for line, name in imports(path)
        if name in OWNERS and package not in OWNERS[name]
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(set(PACKAGES) - {"deploy"}))
def test_only_deploy_reads_the_environment_or_starts_processes(package: str) -> None:
    wrong = []
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} reads the environment")
        wrong += [
            f"{path.relative_to(ROOT)}:{line} imports {name}"
            for line, name in imports(path)
            if name in {"subprocess", "multiprocessing"}
        ]
    assert wrong == []


@pytest.mark.parametrize(
    ("modules", "never"),
    [
        ("index.api.app", {"torch", "faust", "confluent_kafka", "encoder"}),
        ("deploy.roles.api", {"torch", "faust", "polars"}),
        ("deploy.console.server", {"torch", "faust", "polars"}),
        ("deploy.roles.traffic, deploy.texts.models, deploy.traffic.traffic", {"torch", "faust"}),
        ("deploy.roles.attribution, streams.attribution.engine, streams.kafka.worker", {"torch", "polars"}),
    ],
)
def test_processes_that_encode_nothing_do_not_load_what_takes_memory(modules: str, never: set[str]) -> None:
    code = f"import sys, {modules}; print(sorted({never!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
