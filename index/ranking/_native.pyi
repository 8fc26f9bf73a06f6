from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NAMES: tuple[str, ...]

def features(
    labels: NDArray[np.int64],
    products: Sequence[tuple[str, NDArray[np.float32]]],
    item_facts: tuple[object, ...],
    amounts: Sequence[NDArray[np.float32] | None],
    positions: NDArray[np.float32] | None,
    history_labels: NDArray[np.int64],
    classes: NDArray[np.uint8],
    ts_ms: NDArray[np.int64],
    event_facts: tuple[object, ...],
    near: Sequence[tuple[str, NDArray[np.float32]]],
    now_ms: int,
    session_gap_ms: int,
    recent: int,
    priors: tuple[float, float, float],
) -> NDArray[np.float32]: ...
def live_features(
    labels: NDArray[np.int64],
    halves: NDArray[np.uint16],
    users: NDArray[np.float32] | None,
    delta: NDArray[np.float32] | None,
    negative: NDArray[np.float32] | None,
    columns: tuple[object, ...],
    numbers: NDArray[np.int64],
    popular: tuple[NDArray[np.float64], float],
    here: tuple[NDArray[np.float64], float],
    by_class: Sequence[Sequence[NDArray[np.float64]]],
    shown: NDArray[np.float32] | None,
    history_labels: NDArray[np.int64],
    classes: NDArray[np.uint8],
    ts_ms: NDArray[np.int64],
    now_ms: int,
    session_gap_ms: int,
    recent: int,
    priors: tuple[float, float, float],
) -> NDArray[np.float32] | None: ...
def part(scores: NDArray[np.float32], first: NDArray[np.float64], least: float) -> NDArray[np.float64] | None: ...

class Scaling:
    def __init__(self, values: NDArray[np.float32], places: NDArray[np.float64], ends: NDArray[np.int64]) -> None: ...
    def inputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]: ...

class Network:
    def __init__(
        self, scaling: Scaling, layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], /
    ) -> None: ...
    def scores(self, features: NDArray[np.float32], columns: Sequence[int], /) -> NDArray[np.float32]: ...
