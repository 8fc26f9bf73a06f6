"""CPU time of re-encoding a user after one event: cached append against the whole window by fused attention.

Both sides run on one thread, warm, for windows of L = 200, item row and [GEN] row included; the whole-window side is
one batch of equal lengths, so it wastes nothing on padding. CPU time of the process, not wall time, is reported as
the median of several rounds. It measures the encoder alone: no Kafka, no Redis, no Python objects of the stream.

    python -m tests.bench.append [--block paper|gated] [--against [REF]] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from encoder.inference.batching import EncodeRequest
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import ModelConfig, preset
from encoder.model.encoder import StarsEncoder
from tests.bench import against
from tests.bench.report import result, show

LENGTH = 200
ITEMS = 2000
APPENDS = 40  # one-event steps per user, from LENGTH - 20 to LENGTH + 20: on average LENGTH
SHAPES = {256: preset("base", d_ff=1024, block="paper"), 768: preset("paper")}
AGAINST = {"d256_batch64_append": 1 / 2.5, "d256_batch1_append": 1 / 4, "d768_batch64_append": None}
GOALS = {(256, 64): (60.0, 0.3), (256, 1): (15.0, None), (768, 64): (40.0, None)}  # ratio, ms per user


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--block", choices=("paper", "gated"), default="paper")
    against.option(parser)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, with --against")
    given = parser.parse_args(arguments)
    block = given.block
    if given.against:
        against.compare_runs("append", given.against, given.rounds, AGAINST, lambda _: ("--block", block))
        return
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for (width, batch), (ratio_goal, time_goal) in GOALS.items():
        config = replace(SHAPES[width], block=block, d_text=8, kinds=("view", "cart"))
        results += measure(config, batch, ratio_goal, time_goal)
    show("append", results, f"1 thread, torch {torch.__version__}")


def measure(config: ModelConfig, batch: int, ratio_goal: float, time_goal: float | None) -> list[dict[str, Any]]:
    """Append and whole-window CPU time of one shape, their ratio and the largest difference of the vectors."""
    torch.manual_seed(0)
    encoder = IncrementalEncoder(StarsEncoder(config), cache_bytes=3 << 29 if config.d_model > 256 else 1 << 28)
    rng = np.random.default_rng(0)
    ids = [f"item-{number}" for number in range(ITEMS)]
    encoder.items.put(ids, rng.normal(size=(ITEMS, config.d_text)).astype(np.float32), [[]] * ITEMS)
    users = [history(ids, user) for user in range(batch)]
    start = LENGTH - APPENDS // 2
    encoder.encode([request(user, events, start, 0) for user, events in enumerate(users)])
    steps = [
        [request(user, events, length, length - 1) for user, events in enumerate(users)]
        for length in range(start + 1, start + APPENDS + 1)
    ]
    append_ms, appended = timed([lambda step=step: encoder.encode(step) for step in steps], warm=5)  # type: ignore[misc]
    difference = float(np.abs(appended.vectors - encoder.encode_whole(steps[-1]).vectors).max())
    whole = [request(user, events, LENGTH, 0) for user, events in enumerate(users)]
    rounds = 4 if batch > 1 else 12
    whole_ms, _ = timed([lambda: encoder.encode_whole(whole)] * rounds, warm=1)
    name = f"d{config.d_model}_batch{batch}"
    print(
        f"{name} ({config.block}): append {append_ms / batch:.3f} ms, whole window {whole_ms / batch:.3f} ms "
        f"per user, {whole_ms / append_ms:.1f} times, difference {difference:.1e}",
        file=sys.stderr,
    )
    return [
        result(f"{name}_append", append_ms / batch, "ms CPU/user", time_goal, at_most=True),
        result(f"{name}_whole", whole_ms / batch, "ms CPU/user", None),
        result(f"{name}_ratio", whole_ms / append_ms, "times", ratio_goal),
        result(f"{name}_difference", difference, "absolute", 1e-4, at_most=True),
    ]


def history(ids: Sequence[str], seed: int) -> tuple[list[str], list[int], list[int]]:
    rng = np.random.default_rng(seed)
    count = LENGTH + APPENDS
    times = 1_700_000_000_000 + np.cumsum(rng.integers(0, 10**7, count))
    return [ids[at] for at in rng.integers(0, len(ids), count)], rng.integers(0, 2, count).tolist(), times.tolist()


def request(user: int, events: tuple[list[str], list[int], list[int]], length: int, keep: int) -> EncodeRequest:
    items, kinds, times = (column[:length] for column in events)
    return EncodeRequest(user, items, kinds, times, None, keep)  # type: ignore[arg-type]


def timed(calls: Sequence[Callable[[], Any]], warm: int) -> tuple[float, Any]:
    """Median CPU time in ms of the calls after the warm-up, and the last answer."""
    spent, answer = [], None
    for call in calls:
        began = time.process_time()
        answer = call()
        spent.append((time.process_time() - began) * 1e3)
    return float(np.median(spent[warm:])), answer


if __name__ == "__main__":
    main()
