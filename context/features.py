"""`ContextFeatures` encodes a moment and a place as named features τ(t) of the calendar and g(t, location) of the rest.

Times are UTC. Weather, events and promotions come from records as on the `context` topic. Unknown values, expired
records, promotions outside their window and anything malformed contribute zero. Labels are compared folded. Promotions
of single items have no feature.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from context.labels import folded_or_same, folded_rows
from context.units import DAY_MS

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Kind = Literal["time", "number", "flag", "strength"]

# Group -> (period, harmonics). Three harmonics of a week tell all seven days apart.
CYCLES: dict[str, tuple[float, int]] = {"hour": (DAY_MS, 2), "weekday": (7 * DAY_MS, 3), "year": (365.2425 * DAY_MS, 2)}
# A cycle that the training times cover by less than this share cannot be told from a trend, so it is left out.
MIN_COVERED = 0.75
NUMBER_BOUND = 2.0  # standard deviations: beyond what was seen, a weather value counts as extreme and no more
MAX_FEATURES = 256
MAX_READ = 256  # fields, events or promotions read from one record: a huge record must not slow a query down
MAX_NAME = 256
MAX_NUMBER = 1e9  # weather and strengths beyond are malformed: their squares would leave float32
FOREVER_MS = math.inf
_OF_LABELS = ("event.", "promotion.category:", "promotion.tag:")  # names of features that go on with a label


@dataclass(frozen=True, slots=True)
class Feature:
    """One column: the sum of (value − centre) / scale, clipped to ±bound; an absent value is 0, not −centre / scale."""

    name: str
    kind: Kind
    centre: float = 0.0
    scale: float = 1.0
    bound: float = 1.0


class Entry(NamedTuple):
    """A contribution of one record to one column while starts_ms <= t < ends_ms."""

    column: int
    value: float
    starts_ms: float
    ends_ms: float


class ContextFeatures:
    """An ordered vocabulary of features; `encode` gives float32 [F] in that order.

    Raises ValueError for an unknown kind or calendar feature, a doubled name, or a scale that is not positive.
    """

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self.names = tuple(feature.name for feature in self.features)
        self._column = folded_rows(self.names, "context features", _folded)
        _check(self.features)
        self._bound = np.array([feature.bound for feature in self.features], np.float32)  # [F]
        cycles = [(column, *_cycle(f.name), f.centre) for column, f in enumerate(self.features) if f.kind == "time"]
        self._time_columns = np.array([row[0] for row in cycles], np.int64)  # [T]
        self._frequency = np.array([row[1] for row in cycles])  # [T] radians per ms
        self._phase = np.array([row[2] for row in cycles])  # [T]
        self._time_centre = np.array([row[3] for row in cycles])  # [T]

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def build(
        cls, records: Iterable[Mapping[str, Any]], ts_ms: npt.ArrayLike | None = None, max_features: int = MAX_FEATURES
    ) -> ContextFeatures:
        """The vocabulary of all values in `records`, most frequent first where `max_features` cuts.

        `ts_ms` [n] are the times of the training targets: calendar features are centred on them, so that the mean of τ
        moves nothing, and cycles that they do not cover are left out. Without them every cycle stays, uncentred.
        """
        calendar = _calendar(ts_ms)
        counts: Counter[str] = Counter()
        numbers: dict[str, list[float]] = {}
        strongest: dict[str, float] = {}
        for record in records:
            for kind, name, value, _, _ in _raw_entries(record):
                counts[name] += 1
                if kind == "number":
                    numbers.setdefault(name, []).append(value)
                elif kind == "strength":
                    strongest[name] = max(strongest.get(name, 0.0), abs(value))
        frequent = sorted(counts, key=lambda name: (-counts[name], name))
        learned = [_learned(name, numbers.get(name), strongest.get(name)) for name in frequent]
        kept = [feature for feature in learned if feature is not None][: max(0, max_features - len(calendar))]
        return cls(calendar + sorted(kept, key=lambda feature: feature.name))

    def grown(self, older: ContextFeatures, max_features: int = MAX_FEATURES) -> ContextFeatures:
        """These features, then those that only `older` has, as long as there is room."""
        only = [older.features[column] for name, column in older._column.items() if name not in self._column]
        return ContextFeatures([*self.features, *only[: max(0, max_features - len(self))]])

    def weights_of(self, older: ContextFeatures, weights: FloatArray) -> FloatArray:
        """A context offset's matrix for `older` [d, features there] as one for these, [d, F].

        Columns go by name, zero for what is new; a value that is scaled otherwise here keeps its effect.
        """
        found = np.zeros((len(weights), len(self)), np.float32)
        for name, column in self._column.items():
            there = older._column.get(name)
            if there is not None:
                found[:, column] = weights[:, there] * (self.features[column].scale / older.features[there].scale)
        return found

    def to_list(self) -> list[dict[str, Any]]:
        """A plain list for `model.json`; `from_list` reads it back."""
        return [asdict(feature) for feature in self.features]

    @classmethod
    def from_list(cls, rows: Sequence[Mapping[str, Any]]) -> ContextFeatures:
        """Raises ValueError if a row is not what `to_list` wrote."""
        try:
            return cls([Feature(**row) for row in rows])
        except TypeError as error:
            raise ValueError(f"context features {rows!r:.200} are not a list written by to_list: {error}") from error

    def encode(self, ts_ms: int, record: Mapping[str, Any] | None) -> FloatArray:
        """Features [F] at `ts_ms` under `record` (None: no record, only the calendar speaks)."""
        row = np.zeros(len(self), np.float32)
        for column, value, starts_ms, ends_ms in self.entries(record):
            if starts_ms <= ts_ms < ends_ms:
                row[column] += value
        np.clip(row, -self._bound, self._bound, out=row)
        row[self._time_columns] = self._tau(np.array([ts_ms], np.int64))[0]
        return row

    def encode_many(
        self, ts_ms: npt.ArrayLike, record_index: npt.ArrayLike, records: Sequence[Mapping[str, Any] | None]
    ) -> FloatArray:
        """`encode` for many targets at once, for training joins: float32 [n, F].

        `ts_ms` int [n], `record_index` int [n] into `records`, −1 where there is none.
        """
        times, index = np.asarray(ts_ms, np.int64), np.asarray(record_index, np.int64)
        if times.shape != index.shape or times.ndim != 1:
            raise ValueError(f"ts_ms {times.shape} and record_index {index.shape} must be equally long lists")
        rows = np.zeros((len(times), len(self)), np.float32)  # [n, F]
        order = np.argsort(index, kind="stable")
        used, first = np.unique(index[order], return_index=True)
        for number, members in zip(used.tolist(), np.split(order, first[1:]), strict=False):
            entries = self.entries(records[number]) if number >= 0 else ()
            for column, value, starts_ms, ends_ms in entries:
                open_now = (times[members] >= starts_ms) & (times[members] < ends_ms)
                rows[members[open_now], column] += value
        np.clip(rows, -self._bound, self._bound, out=rows)
        rows[:, self._time_columns] = self._tau(times)
        return rows

    def entries(self, record: Mapping[str, Any] | None) -> tuple[Entry, ...]:
        """What `record` contributes and when, for known features only. Never raises."""
        found = []
        for kind, name, value, starts_ms, ends_ms in _raw_entries(record):
            column = self._column.get(name)
            if column is not None and self.features[column].kind == kind:
                feature = self.features[column]
                scaled = (value - feature.centre) / feature.scale
                found.append(Entry(column, max(-feature.bound, min(feature.bound, scaled)), starts_ms, ends_ms))
        return tuple(found)

    def _tau(self, ts_ms: IntArray) -> FloatArray:
        """Calendar features [n, T] of ts_ms [n], less their centre."""
        angle = ts_ms[:, None] * self._frequency + self._phase  # [n, T]; a cosine is a sine a quarter turn ahead
        return np.asarray(np.sin(angle) - self._time_centre, np.float32)


def is_active(record: Mapping[str, Any] | None, ts_ms: int) -> bool:
    """Whether `record` has not expired at `ts_ms`."""
    return isinstance(record, Mapping) and ts_ms < valid_until_ms(record)


def valid_until_ms(record: Mapping[str, Any]) -> float:
    """When `record` expires: never without a `valid_until_ms`, and always has with a malformed one."""
    until_ms = _time(record.get("valid_until_ms"), FOREVER_MS)
    return -FOREVER_MS if until_ms is None else until_ms


def _check(features: Sequence[Feature]) -> None:
    if len({feature.name for feature in features}) != len(features):
        raise ValueError(f"feature names {[f.name for f in features]!r:.200} are not unique; build them again")
    for feature in features:
        if feature.kind not in ("time", "number", "flag", "strength"):
            raise ValueError(f"feature {feature.name!r} has the unknown kind {feature.kind!r}")
        if not (feature.scale > 0 and math.isfinite(feature.centre) and math.isfinite(feature.scale)):
            raise ValueError(f"feature {feature.name!r} needs a finite centre and scale > 0, not {feature!r}")


def _cycle(name: str) -> tuple[float, float]:
    """(radians per ms, phase) of a calendar feature such as "hour.cos2"."""
    group, _, wave = name.partition(".")
    period_ms, harmonics = CYCLES.get(group, (1.0, 0))
    if wave[:3] not in ("sin", "cos") or wave[3:] not in map(str, range(1, harmonics + 1)):
        raise ValueError(f"{name!r} is not a calendar feature; expected e.g. 'hour.sin1', groups {list(CYCLES)}")
    return 2 * math.pi * int(wave[3:]) / period_ms, 0.0 if wave[:3] == "sin" else math.pi / 2


def _calendar(ts_ms: npt.ArrayLike | None) -> list[Feature]:
    times = np.asarray([] if ts_ms is None else ts_ms, np.int64)  # [n]
    covered_ms = int(times.max() - times.min()) if times.size else math.inf
    names = [
        f"{group}.{wave}{harmonic}"
        for group, (period_ms, harmonics) in CYCLES.items()
        if covered_ms >= MIN_COVERED * period_ms
        for harmonic in range(1, harmonics + 1)
        for wave in ("sin", "cos")
    ]
    return [Feature(name, "time", centre=_mean_wave(name, times), bound=2.0) for name in names]


def _mean_wave(name: str, times: IntArray) -> float:
    frequency, phase = _cycle(name)
    return float(np.sin(times * frequency + phase).mean()) if times.size else 0.0


def _learned(name: str, numbers: list[float] | None, strongest: float | None) -> Feature | None:
    if numbers is not None:
        centre, scale = float(np.mean(numbers)), float(np.std(numbers))
        if not (math.isfinite(scale) and scale > 1e-9 * max(1.0, abs(centre))):
            return None  # a constant tells nothing, and would be divided by zero
        return Feature(name, "number", centre, scale, NUMBER_BOUND)
    if strongest is not None:
        return Feature(name, "strength", bound=strongest) if strongest > 0 else None
    return Feature(name, "flag")


def _folded(name: str) -> str:
    """A feature's name with its label folded."""
    for prefix in _OF_LABELS:
        if name.startswith(prefix):
            return prefix + folded_or_same(name.removeprefix(prefix))
    return name


RawEntry = tuple[Kind, str, float, float, float]


def _raw_entries(record: Mapping[str, Any] | None) -> Iterator[RawEntry]:
    """(kind, feature name, value, starts_ms, ends_ms) of everything well-formed in a record."""
    if not isinstance(record, Mapping):
        return
    until_ms = valid_until_ms(record)
    for kind, name, value in _weather(record.get("weather")):
        yield kind, name, value, -FOREVER_MS, until_ms
    for name in _event_names(record.get("events")):
        yield "flag", name, 1.0, -FOREVER_MS, until_ms
    for promotion in _first(record.get("promotions")):
        yield from _promotion(promotion, until_ms)


def _weather(weather: Any) -> Iterator[tuple[Kind, str, float]]:
    """Numbers as they are, `field=true` for flags that are set, `field=value` for words."""
    for field, value in _first(weather.items() if isinstance(weather, Mapping) else None):
        if not _is_name(field) or "=" in field:
            continue
        number = _number(value)
        if number is not None:
            if abs(number) <= MAX_NUMBER:
                yield "number", f"weather.{field}", number
        elif value is True:
            yield "flag", f"weather.{field}=true", 1.0
        elif _is_name(value):
            yield "flag", f"weather.{field}={value}", 1.0


def _event_names(events: Any) -> list[str]:
    """Each event once, whether it is given by its name or as a mapping with a `name`."""
    given = [event.get("name") if isinstance(event, Mapping) else event for event in _first(events)]
    return sorted({f"event.{folded_or_same(str(name))}" for name in given if _is_name(name)})


def _promotion(promotion: Any, until_ms: float) -> Iterator[RawEntry]:
    if not isinstance(promotion, Mapping):
        return
    strength = _number(promotion.get("strength", 1.0))
    starts_ms = _time(promotion.get("starts_ms"), -FOREVER_MS)
    ends_ms = _time(promotion.get("ends_ms"), FOREVER_MS)
    if strength is None or abs(strength) > MAX_NUMBER or starts_ms is None or ends_ms is None:
        return
    for field in ("category", "tag"):
        if _is_name(promotion.get(field)):
            name = f"promotion.{field}:{folded_or_same(promotion[field])}"
            yield "strength", name, strength, starts_ms, min(ends_ms, until_ms)


def _time(value: Any, missing: float) -> float | None:
    """`missing` for None, None for anything that is not a finite number."""
    return missing if value is None else _number(value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME


def _first(values: Any) -> list[Any]:
    """At most MAX_READ elements of a list (or mapping view); nothing of anything else."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        return []
    return [value for value, _ in zip(values, range(MAX_READ), strict=False)]
