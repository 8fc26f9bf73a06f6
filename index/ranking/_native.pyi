from collections.abc import Sequence
from typing import Any

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
def inputs(
    features: NDArray[np.float32],
    values: NDArray[np.float32],
    grid: NDArray[np.float64],
    ends: NDArray[np.int64],
) -> Any: ...
