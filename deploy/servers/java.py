"""Finds the newest Java by JAVA_HOME, the PATH, and the folders where packages put JDKs.

Assumes that a Java home has a `release` file, as all since Java 9 do; nothing is started to learn a version. A missing
Java is one clear line with the names of Debian's packages.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = ("/usr/lib/jvm", "/opt/java", "/Library/Java/JavaVirtualMachines")
OLDEST = 17  # of Kafka 4
REMEDY = "install one, on Debian by `apt-get install default-jre-headless maven`, or set JAVA_HOME"


@dataclass(frozen=True, slots=True, order=True)
class Java:
    """A Java home and its major version."""

    major: int
    home: Path


def find_java(environ: Mapping[str, str]) -> Java:
    """The newest Java, at least `OLDEST`. Raises ValueError with the remedy when there is none."""
    found = sorted(set(filter(None, map(_java, _homes(environ)))))
    if not found or found[-1].major < OLDEST:
        seen = f"the newest found is Java {found[-1].major} in {found[-1].home}" if found else "none was found"
        raise ValueError(f"Kafka and Elasticsearch need Java {OLDEST} or newer, {seen}; {REMEDY}")
    return found[-1]


def _homes(environ: Mapping[str, str]) -> Iterator[Path]:
    if environ.get("JAVA_HOME"):
        yield Path(environ["JAVA_HOME"])
    if (program := shutil.which("java", path=environ.get("PATH", ""))) is not None:
        yield Path(program).resolve().parent.parent
    for folder in map(Path, _FOLDERS):
        for entry in sorted(folder.glob("*")):
            yield from (entry, entry / "Contents" / "Home")


def _java(home: Path) -> Java | None:
    """What its `release` file says, None where there is no Java."""
    home = home.resolve()
    try:
        lines = (home / "release").read_text().splitlines()
    except OSError:
        return None
    versions = [line.partition("=")[2].strip('"') for line in lines if line.startswith("JAVA_VERSION=")]
    major = versions[0].partition(".")[0].partition("-")[0] if versions else ""
    if not major.isdigit() or not (home / "bin" / "java").is_file():
        return None
    return Java(int(major), home)
