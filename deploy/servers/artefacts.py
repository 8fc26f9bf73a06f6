"""Fetches what the stack runs without Docker by Maven, and checks the hashes of all files.

`pins.json` has versions and SHA-256 of Kafka's run-time jars, with the SLF4J binding without which the broker is silent
about why it died, and of the Elasticsearch of its integration tests, the real engine with few modules. Several
processes may ask at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from hashlib import file_digest
from importlib import resources
from pathlib import Path

Say = Callable[[str], None]
PINS = json.loads(resources.files("deploy.servers").joinpath("pins.json").read_text("utf-8"))
_FETCH_S = 900.0  # 160 MB over a slow line
_ROOT_CACHE = Path("/var/cache/perseid")  # Elasticsearch runs as nobody's id then, which cannot look into /root
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>broker</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{kafka}</version>
    </dependency>
    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>
  </dependencies>
</project>
"""


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where artefacts are kept: `$XDG_CACHE_HOME/perseid`, `~/.cache/perseid`, or root's own."""
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]) / "perseid"
    return _ROOT_CACHE if os.geteuid() == 0 else Path.home() / ".cache" / "perseid"


def elasticsearch_version(java_major: int) -> str:
    """The pinned version that runs on that Java."""
    name = "elasticsearch" if java_major >= PINS["elasticsearch_java"] else "old_elasticsearch"
    return str(PINS[name])


def kafka_jars(environ: Mapping[str, str], say: Say) -> Path:
    """The folder of Kafka's jars, fetched when the cache lacks it.

    Raises:
        ValueError: no `mvn`, or a file is not the pinned one.
        OSError: the download failed; carries Maven's words.
    """

    def fill(part: Path) -> None:
        group, artifact, version = PINS["log_binding"]  # Kafka 4's slf4j-api is a 1.7: not `slf4j2`
        pom = part / "pom.xml"
        pom.write_text(_POM.format(kafka=PINS["kafka"], group=group, artifact=artifact, version=version))
        goal = ("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={part}")
        _maven(environ, "-f", str(pom), *goal)
        _check(part, PINS["kafka_jars"])

    return _cached(environ, f"kafka-{PINS['kafka']}", fill, say)


def elasticsearch_home(environ: Mapping[str, str], version: str, say: Say) -> Path:
    """The unpacked Elasticsearch of a pinned version, fetched when the cache lacks it. Raises as `kafka_jars`."""
    name = f"elasticsearch-{version}"

    def fill(part: Path) -> None:
        artefact = f"org.elasticsearch.distribution.integ-test-zip:elasticsearch:{version}:zip"
        _maven(environ, "dependency:copy", f"-Dartifact={artefact}", f"-DoutputDirectory={part}")
        archive = part / f"{name}.zip"
        _check(part, {archive.name: PINS["archives"][archive.name]})
        _unpack(archive, part)
        archive.unlink()

    return _cached(environ, name, fill, say) / name


def _cached(environ: Mapping[str, str], name: str, fill: Callable[[Path], None], say: Say) -> Path:
    """The folder `name` of the cache; `fill` makes it under another name first."""
    cache = cache_folder(environ)
    found = cache / name
    if found.is_dir():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.is_dir():
            say(f"Fetching {name} into {cache} …")
            part = Path(tempfile.mkdtemp(prefix=f"{name}.part-", dir=cache))
            try:
                fill(part)
                part.chmod(0o755)
                part.rename(found)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return found


def find_maven(environ: Mapping[str, str]) -> str:
    """The `mvn` of the PATH. Raises ValueError with the remedy when there is none."""
    program = shutil.which("mvn", path=environ.get("PATH", ""))
    if program is None:
        raise ValueError("servers without Docker need Maven (`mvn`): on Debian `apt-get install maven`")
    return program


def _maven(environ: Mapping[str, str], *arguments: str) -> None:
    program = find_maven(environ)
    # -U: Maven remembers a miss, also one of a network that was down.
    command = [program, "--quiet", "--batch-mode", "--no-transfer-progress", "-U", *arguments]
    done = subprocess.run(
        command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FETCH_S
    )
    if done.returncode:
        words = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line] or [done.stderr]
        raise OSError(f"mvn {arguments[0]} failed: {words[0].strip()}")


def _check(folder: Path, pins: Mapping[str, str]) -> None:
    """Every pinned file is there with its hash, and no jar besides. Raises ValueError that names the file."""
    if unknown := {path.name for path in folder.glob("*.jar")} - set(pins):
        raise ValueError(f"Maven brought files that are not pinned: {', '.join(sorted(unknown))}")
    for name, expected in pins.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"Maven did not bring {name}; its repository may be a partial mirror")
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise ValueError(f"{name} has SHA-256 {found}, pinned is {expected}: it is not used; ask who serves it")


def _unpack(archive: Path, into: Path) -> None:
    """Unpacks with the archive's own permissions, readable by everybody: the server may run under another id."""
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():
            path = Path(content.extract(entry, into))
            mode = entry.external_attr >> 16 & 0o777
            path.chmod(0o755 if path.is_dir() else (mode or 0o644) | 0o444)
