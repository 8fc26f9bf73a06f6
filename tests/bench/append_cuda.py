"""Appends on a GPU: users a second and the latency of a batch, beside what reading the cached keys and values takes.

Windows of L = 200 events in a cache of halves. `encode` is the whole call, Python and transfers included, as a worker
makes it (wall time, median); `unrecorded` the same without the recorded step (`AppendStep`). `step` is that step alone
(CUDA events), its pages read in place or gathered, or with products in TF32. The ceiling is the bytes of keys and
values that a step has to read over the bandwidth of a copy on the same card; the whole window is fused attention over a
batch of equal lengths.

    python -m tests.bench.append_cuda [--widths 256,768] [--batches 1,64,256,1024,4096] [--block paper|gated]
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

from encoder.inference.cuda_append import AppendStep
from encoder.inference.incremental import IncrementalEncoder
from encoder.model.config import ModelConfig
from encoder.model.encoder import StarsEncoder
from tests.bench.append import APPENDS, ITEMS, LENGTH, SHAPES, history, request
from tests.bench.report import result, show

STEPS = 24  # one-event steps that are timed, around LENGTH
WHOLE = 64  # users of the batch of whole windows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--widths", default="256,768")
    parser.add_argument("--batches", default="1,64,256,1024,4096")
    parser.add_argument("--block", choices=("paper", "gated"), default="paper")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; tests.bench.append measures a CPU")
    bandwidth = copy_bandwidth()
    results = [result("copy_bandwidth", bandwidth / 1e12, "TB/s", None)]
    for width in map(int, given.widths.split(",")):
        config = replace(SHAPES[width], block=given.block, d_text=8, kinds=("view", "cart"))
        batches = [int(batch) for batch in given.batches.split(",")]
        results += measure(config, batches, bandwidth)
    show("append_cuda", results, f"{torch.cuda.get_device_name()}, torch {torch.__version__}")


def measure(config: ModelConfig, batches: Sequence[int], bandwidth: float) -> list[dict[str, Any]]:
    """All rows of one width."""
    torch.manual_seed(0)
    model = StarsEncoder(config)
    most = max(batches)
    positions = 1 + LENGTH + APPENDS // 2
    read_bytes = config.n_layers * LENGTH * 2 * config.d_model * 2  # of one user, in halves
    held = most * config.n_layers * (-(-positions // 32) * 32) * 2 * config.d_model * 2
    encoder = IncrementalEncoder(model, cache_bytes=held + (1 << 28), device="cuda")
    rng = np.random.default_rng(0)
    ids = [f"item-{number}" for number in range(ITEMS)]
    encoder.items.put(ids, rng.normal(size=(ITEMS, config.d_text)).astype(np.float32), [[]] * ITEMS)
    users = [history(ids, user) for user in range(most)]
    start = LENGTH - STEPS // 2
    encoder.encode([request(user, events, start, 0) for user, events in enumerate(users)])
    results = [whole(encoder, users, config)]
    encoder.prepare(most)
    recorded = encoder._step
    assert recorded is not None
    for batch in batches:
        name = f"d{config.d_model}_batch{batch}"
        encoder._step = None
        unrecorded, _ = appends(encoder, users[:batch], start)
        encoder._step = recorded
        encode, answer = appends(encoder, users[:batch], start)
        reference = [request(user, users[user], start + STEPS, 0) for user in range(min(batch, WHOLE))]
        difference = np.abs(answer[: len(reference)] - encoder.encode_whole(reference).vectors).max()
        in_place, vectors = step_seconds(encoder, recorded._in_place, batch)
        gathered, _ = step_seconds(encoder, None, batch)
        torch.set_float32_matmul_precision("high")
        tf32, rounded = step_seconds(encoder, recorded._in_place, batch)
        torch.set_float32_matmul_precision("highest")
        rows = {
            "encode": (batch / encode, "users/s"),
            "encode_latency": (encode * 1e3, "ms"),
            "unrecorded_latency": (unrecorded * 1e3, "ms"),
            "step_in_place": (in_place * 1e3, "ms"),
            "step_gathered": (gathered * 1e3, "ms"),
            "step_tf32": (tf32 * 1e3, "ms"),
            "ceiling": (read_bytes * batch / bandwidth * 1e3, "ms"),
            "tf32_difference": (float(np.abs(rounded - vectors).max()), "absolute"),
        }
        print(name, *(f"{row} {value:.4g} {unit}" for row, (value, unit) in rows.items()), file=sys.stderr, flush=True)
        results += [result(f"{name}_{row}", value, unit) for row, (value, unit) in rows.items()]
        results.append(result(f"{name}_difference", float(difference), "absolute", 5e-3, at_most=True))
    memory = torch.cuda.max_memory_allocated() / 2**30
    return [*results, result(f"d{config.d_model}_peak_memory", memory, "GiB", None)]


def appends(encoder: IncrementalEncoder, users: Sequence[Any], start: int) -> tuple[float, Any]:
    """Median wall time of a step of one event for each of the users, and the last answer's vectors."""
    encoder.encode([request(user, events, start, start) for user, events in enumerate(users)])
    spent, vectors = [], None
    for length in range(start + 1, start + STEPS + 1):
        batch = [request(user, events, length, length - 1) for user, events in enumerate(users)]
        began = time.perf_counter()
        vectors = encoder.encode(batch).vectors
        spent.append(time.perf_counter() - began)
    return float(np.median(spent[3:])), vectors


def whole(encoder: IncrementalEncoder, users: Sequence[Any], config: ModelConfig) -> dict[str, Any]:
    """Users a second by fused attention over whole windows, the same device."""
    windows = [request(user, events, LENGTH, 0) for user, events in enumerate(users[:WHOLE])]
    spent = []
    for _ in range(8):
        began = time.perf_counter()
        encoder.encode_whole(windows)
        spent.append(time.perf_counter() - began)
    return result(f"d{config.d_model}_whole", len(windows) / float(np.median(spent[2:])), "users/s", None)


@torch.inference_mode()
def step_seconds(encoder: IncrementalEncoder, in_place: Any, batch: int) -> tuple[float, Any]:
    """Median time on the device of one recorded step over the users that are cached now, and its vectors."""
    torch.manual_seed(0)
    step = AppendStep(encoder.model, encoder._cache, in_place)
    held = [encoder._cache.get(user) for user in range(batch)]
    pages = np.asarray([window.pages for window in held if window is not None], dtype=np.int64)
    x = torch.randn(batch, encoder.model.config.d_model, device="cuda")
    ts_ms = torch.zeros(batch, dtype=torch.int64, device="cuda")
    vectors = step(x, ts_ms, pages, np.full(batch, LENGTH, dtype=np.int64))
    [recorded] = step._recorded.values()
    return median_seconds(recorded.graph.replay), vectors


def copy_bandwidth() -> float:
    """Bytes a second of a copy on the device, read and written ones."""
    left, right = (torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_() for _ in range(2))
    return 2 * left.numel() / median_seconds(lambda: left.copy_(right))


def median_seconds(call: Callable[[], Any], rounds: int = 20) -> float:
    """Median time on the device, by its own events."""
    spent = []
    for _ in range(rounds):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        call()
        ended.record()
        ended.synchronize()
        spent.append(began.elapsed_time(ended) / 1e3)
    return float(np.median(spent[3:]))


if __name__ == "__main__":
    main()
