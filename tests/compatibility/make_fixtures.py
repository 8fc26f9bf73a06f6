"""Writes the fixtures of this folder; to be run at commit 9afcd80 and nowhere else, or they prove nothing.

    python -m tests.compatibility.make_fixtures

A function of fixed seeds: run twice it writes the same files, but for floats in the last digit on another processor.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from typing import Any
from unittest import mock

from tests.compatibility import collect
from tests.compatibility.log_maker import LogMaker
from tests.compatibility.model_maker import make_model
from tests.compatibility.world import FIXTURES, LOG


def write(name: str, value: Any) -> None:
    """A fixture file of JSON."""
    (FIXTURES / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    """Writes everything."""
    rng = random.Random(1)
    with mock.patch("uuid.uuid4", lambda: uuid.UUID(int=rng.getrandbits(128), version=4)):
        make_model()
        rows = LogMaker().make()
        LOG.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        write("openapi.json", json.loads(json.dumps(collect.openapi(), sort_keys=True)))
        write("settings.json", collect.settings())
        names = {
            "commands": collect.commands(),
            "topics": collect.topics(),
            "redis keys": collect.redis_keys(),
            "metrics": collect.metric_names(),
            "counters": collect.counter_names(),
        }
        write("names.json", names)
        write("pipeline.json", asyncio.run(collect.run_through()))


if __name__ == "__main__":
    main()
