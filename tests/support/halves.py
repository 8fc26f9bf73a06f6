"""Vectors as an index keeps them; no test itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from index.state.records import Vector


def in_halves(vectors: Any) -> Vector:
    """Rounded to halves, so that what is expected of them can be computed exactly."""
    return np.asarray(vectors, np.float16).astype(np.float32)


def unit_in_halves(vectors: Any) -> Vector:
    """Of length 1 along the last axis, likewise."""
    found = np.asarray(vectors, np.float32)
    return in_halves(found / np.linalg.norm(found, axis=-1, keepdims=True))
