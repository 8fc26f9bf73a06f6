"""A cache of keys and values takes memory as it is written."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import torch
from encoder.model.config import ModelConfig
from encoder.inference.kv_cache import KVCache
from tests.bench.process_usage import resident_bytes

before = resident_bytes()
cache = KVCache(ModelConfig(), 1 << 30, torch.device("cpu"), torch.float32)
unused = resident_bytes() - before
used = cache.count // 2
cache.storage[:, :used] = 1.0
print(unused, resident_bytes() - before, used * cache.page_bytes)
"""


def test_a_cache_takes_memory_as_it_is_used_and_no_more() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    unused, half, written = map(int, done.stdout.split())
    assert unused < 64 << 20
    assert 0.9 * written < half < 1.1 * written + (64 << 20)
