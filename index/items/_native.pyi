from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Names:
    def set(self, item_id: str, label: int, /) -> None: ...
    def drop(self, item_id: str, /) -> None: ...
    def events(
        self, stored: bytes, has: NDArray[np.bool_], /
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]: ...

class Graph:
    def __init__(self, built: Mapping[str, Any], halves: NDArray[np.uint16], capacity: int, /) -> None: ...
    def add(self, halves: NDArray[np.uint16], /) -> int: ...
    def nearest(
        self,
        queries: NDArray[np.float32],
        k: int,
        wide: int,
        steps: int,
        usable: NDArray[np.bool_],
        labels: NDArray[np.int64],
        node: NDArray[np.int32],
        /,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None: ...

class List:
    def __init__(
        self,
        allowed: NDArray[np.bool_],
        live: NDArray[np.bool_],
        halves: NDArray[np.uint16],
        end: int,
        ids: list[str],
        targets: NDArray[np.float32],
        /,
    ) -> None: ...
    def see(self, names: Names, stored: bytes, since_ms: int, /) -> int: ...
    def leave_out(self, labels: NDArray[np.int64], /) -> int: ...
    def placed(self, graph: Graph, labels: NDArray[np.int64], node: NDArray[np.int32], /) -> None: ...
    def walk(self, depth: int, count: int, wide: int, steps: int, beside: NDArray[np.int64], /) -> bool: ...
    def scan(self, depth: int, rows: NDArray[np.int32] | None, /) -> None: ...
    def promote(self, depth: int, rows: NDArray[np.int32], boost: float, /) -> None: ...
    def gather(
        self,
        popular: NDArray[np.int64],
        users: NDArray[np.float32],
        delta: NDArray[np.float32] | None,
        numbers: NDArray[np.int64],
        items: dict[str, int],
        weights: NDArray[np.float64],
        most: float,
        share: float,
        boosts: NDArray[np.float32] | None,
        /,
    ) -> None: ...
    def best(self, most: int, /) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
    def add(self, part: NDArray[np.float64], /) -> None: ...
    def retrieved(self) -> tuple[int, ...]: ...
    def choose(self, count: int, rest: float, deepest: bool, /) -> list[tuple[str, int, Sequence[float]]] | None: ...
