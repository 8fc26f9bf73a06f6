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

class Scaling:
    def __init__(self, values: NDArray[np.float32], places: NDArray[np.float64], ends: NDArray[np.int64]) -> None: ...
    def inputs(self, features: NDArray[np.float32]) -> NDArray[np.float32]: ...
