"""The one line that every bench ends with: its name, the commit, the hardware, and each figure beside its goal."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def result(name: str, value: float, unit: str, goal: float | None = None, *, at_most: bool = False) -> Row:
    """One figure; `goal` is a lower bound, or with `at_most` an upper one."""
    met = None if goal is None else (value <= goal if at_most else value >= goal)
    return {"name": name, "value": float(f"{value:.4g}"), "unit": unit, "goal": goal, "met": met}


def show(bench: str, results: Sequence[Row], setting: str = "") -> None:
    """Prints the line; `setting` says what else the hardware carried."""
    where = "; ".join(filter(None, (setting, hardware())))
    print(json.dumps({"bench": bench, "commit": commit(), "hardware": where, "results": list(results)}))


def hardware() -> str:
    """Processors and what else runs on them: wall time is worth little on a busy machine."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {models[0] if models else platform.processor()}, load average {os.getloadavg()[0]:.1f}"


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip() or "unknown"
