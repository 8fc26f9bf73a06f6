"""Finds in the topics what users of both arms of an experiment clicked and bought of the lists they were shown.

A click or purchase belongs to the list that its `recommendation_id` names, else to its user's last one that showed the
item. Exposures are taken before the clickstream. Lists are kept in a temporary file.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.results.estimates import sample_ratio_p
from index.state.trials import ARMS, Arm, Experiment
from streams.evaluation.statistics import Estimate, ratio_of_sums
from streams.events import EXPOSURES, Click, Exposure, Forget, MalformedError, Record, Rules
from streams.parsing import parse, parse_exposure

SURPRISING = 0.001  # p-value of the sample ratio: below, something other than chance decides who is in which arm
LEAST_USERS = 30  # in an arm: of fewer an interval says nothing
_LEAST_EXPECTED = 10  # users in the smaller arm: the chi-square test needs some
_BATCH_KB = 65_536  # of SQLite's pages in memory
_SCHEMA = """
CREATE TABLE lists (id TEXT PRIMARY KEY, user TEXT, arm TEXT, stands_in INTEGER, ts_ms INTEGER, shown TEXT,
                    clicked INTEGER DEFAULT 0, bought INTEGER DEFAULT 0) WITHOUT ROWID;
CREATE INDEX of_users ON lists (user, ts_ms);
CREATE TABLE bought (user TEXT, event TEXT, PRIMARY KEY (user, event)) WITHOUT ROWID;
"""
_NAMED = "SELECT id FROM lists WHERE id = ? AND user = ? AND ts_ms >= ?"
_SHOWN = """
SELECT id FROM lists WHERE user = ? AND ts_ms BETWEEN ? AND ? AND instr(shown, char(10) || ? || char(10))
ORDER BY ts_ms DESC, id LIMIT 1
"""
_SUMS = """
SELECT COUNT(*), SUM(clicked), SUM(bought), SUM(stands_in) FROM lists GROUP BY user HAVING MIN(arm) = ? AND MAX(arm) = ?
"""
_CROSSED = "SELECT COUNT(*) FROM (SELECT 1 FROM lists GROUP BY user HAVING MIN(arm) <> MAX(arm))"
_SUMMED = np.dtype([("lists", "i8"), ("clicked", "i8"), ("bought", "i8"), ("stands_in", "i8")])


class ExperimentLog:
    """Takes records of `exposures`, then of the clickstream; close it at the end.

    What is clicked or bought counts up to `window_ms` after its list was shown. Kinds of a weight above 0 are clicks,
    those that stay remembered are purchases.
    """

    def __init__(self, experiment: Experiment, rules: Rules, window_ms: int) -> None:
        self.experiment, self._rules, self._window_ms = experiment, rules, window_ms
        self.records: Counter[str] = Counter()  # by topic
        self.malformed = 0
        self._file = sqlite3.connect("", isolation_level=None)  # "": SQLite's own temporary file
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_BATCH_KB}"):
            self._file.execute(f"PRAGMA {pragma}")
        self._file.executescript(_SCHEMA)

    def __enter__(self) -> ExperimentLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the temporary file."""
        self._file.close()

    def take(self, record: Record) -> None:
        """One more record; malformed ones are counted."""
        self.records[record.topic] += 1
        try:
            event = parse_exposure(record) if record.topic == EXPOSURES else parse(record, self._rules)
        except MalformedError:
            self.malformed += 1
            return
        match event:
            case Exposure():
                self._show(event)
            case Click():
                self._act(event)
            case Forget(user_id=user_id, ts_ms=ts_ms):
                self._file.execute("DELETE FROM lists WHERE user = ? AND ts_ms <= ?", (user_id, ts_ms))

    def span_ms(self) -> tuple[int, int] | None:
        """When the first and the last list were shown; None without any."""
        first, last = self._file.execute("SELECT MIN(ts_ms), MAX(ts_ms) FROM lists").fetchone()
        return None if first is None else (first, last)

    def sums(self, arm: Arm) -> NDArray[Any]:
        """Of each user of an arm: `lists`, how many were `clicked`, purchases, and lists by the other model."""
        return np.fromiter(self._file.execute(_SUMS, (arm, arm)), _SUMMED)

    def crossed(self) -> int:
        """Users who were in both arms, and are in no sum."""
        return int(self._file.execute(_CROSSED).fetchone()[0])

    def _show(self, shown: Exposure) -> None:
        if shown.experiment != self.experiment.id or shown.arm not in ARMS:
            return
        items = "".join(f"\n{item}" for item in shown.shown) + "\n"  # ids hold no line breaks
        own = self.experiment.model if shown.arm == "challenger" else self.experiment.champion
        row = (shown.recommendation_id, shown.user_id, shown.arm, shown.model != own, shown.ts_ms, items)
        self._file.execute(
            "INSERT OR IGNORE INTO lists (id, user, arm, stands_in, ts_ms, shown) VALUES (?,?,?,?,?,?)", row
        )

    def _act(self, click: Click) -> None:
        kind = self._rules.kinds[click.kind]
        if kind.weight <= 0 or (found := self._list_of(click)) is None:
            return
        new = (
            kind.remembered
            and self._file.execute(
                "INSERT OR IGNORE INTO bought VALUES (?, ?)", (click.user_id, click.event_id)
            ).rowcount
        )
        self._file.execute("UPDATE lists SET clicked = 1, bought = bought + ? WHERE id = ?", (int(new), found))

    def _list_of(self, click: Click) -> str | None:
        since_ms = click.ts_ms - self._window_ms
        if click.recommendation_id:
            # A client's clock may be behind ours, so a list that it names may be newer than what was clicked in it.
            cursor = self._file.execute(_NAMED, (click.recommendation_id, click.user_id, since_ms))
        else:
            cursor = self._file.execute(_SHOWN, (click.user_id, since_ms, click.ts_ms, click.item_id))
        found = cursor.fetchone()
        return None if found is None else str(found[0])


def metrics_of(sums: NDArray[Any]) -> dict[str, Estimate]:
    """Metrics of an arm, of its sums by user, with errors over users; none where these are too few.

    click_through = lists with a click / lists, purchases = purchases / lists, buyers = users who bought / users.
    """
    if len(sums) < LEAST_USERS:
        return {}
    return {
        "click_through": ratio_of_sums(sums["clicked"], sums["lists"]),
        "purchases": ratio_of_sums(sums["bought"], sums["lists"]),
        "buyers": ratio_of_sums(sums["bought"] > 0, np.ones(len(sums))),
    }


def results_of(log: ExperimentLog) -> dict[str, Any]:
    """What the arms did, how they differ (challenger minus champion), and whether their sizes are those wanted."""
    sums = {arm: log.sums(arm) for arm in ARMS}
    metrics = {arm: metrics_of(found) for arm, found in sums.items()}
    return {
        "arms": {
            arm: {
                "users": len(found),
                **{name: int(found[name].sum()) for name in ("lists", "clicked", "bought", "stands_in")},
                "buyers": int((found["bought"] > 0).sum()),
                "metrics": {name: _shown(estimate) for name, estimate in metrics[arm].items()},
            }
            for arm, found in sums.items()
        },
        "differences": differences(metrics["champion"], metrics["challenger"]),
        "sample_ratio": sample_ratio(len(sums["challenger"]), len(sums["champion"]), log.experiment.share),
        "crossed": log.crossed(),
        "records": dict(log.records),
        "malformed": log.malformed,
    }


def differences(champion: Mapping[str, Estimate], challenger: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Challenger minus champion, with interval and p-value; nothing where an arm has too few users.

    Nor for a metric that is the same for all users of an arm, as when none of them has clicked: that is too few events.
    """
    both = [name for name in champion if name in challenger and champion[name].error and challenger[name].error]
    found = {name: challenger[name].minus(champion[name]) for name in both}
    return {name: {**_shown(estimate), "p": estimate.p} for name, estimate in found.items()}


def sample_ratio(challenger: int, champion: int, share: float) -> dict[str, Any]:
    """Which share of the users was in the challenger's arm, and whether that may be chance.

    `p` is None as long as there are too few to say.
    """
    total = challenger + champion
    enough = min(share, 1 - share) * total >= _LEAST_EXPECTED
    p = sample_ratio_p(challenger, champion, share) if enough else None
    found = challenger / total if total else None
    return {"wanted": share, "found": found, "p": p, "passed": p is None or p >= SURPRISING}


def _shown(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "interval": list(estimate.interval)}
