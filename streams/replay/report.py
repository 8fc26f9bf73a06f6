"""`ReplayCounts` carries a replay's counts through parts and checkpoints; `ReplayReport` tells what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from context.counting import counted
from index.state.store import Logs
from streams.evaluation.tables import table
from streams.kafka.topic_merge import Covers
from streams.left_out import LeftOut
from streams.pipeline.digest import Digest

_TOLD = ("applied", "folded", "duplicate", "late", "forgotten", "malformed", "misrouted", "gaps")

_STORED_NAMES = {"evaluator": "asker", "resume_state": "standing"}  # fields that a checkpoint names otherwise


@dataclass(slots=True)
class ReplayCounts:
    """Counts of a replay; `evaluator` and `resume_state` say in plain JSON where evaluator and reader go on."""

    records: Counter[str] = field(default_factory=Counter)  # by topic
    counts: Counter[str] = field(default_factory=Counter)  # the engine's: applied, duplicate, late, malformed …
    dead_letters: Counter[str] = field(default_factory=Counter)  # by topic and reason
    seconds: float = 0.0
    asked: bool = False  # since the first question items and clicks are applied in their order
    evaluator: dict[str, Any] | None = None
    resume_state: dict[str, Any] | None = None

    @property
    def done(self) -> int:
        """How many records were fed."""
        return self.records.total()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, under the names of the checkpoint's format."""
        return {_STORED_NAMES.get(name, name): getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> ReplayCounts:
        """The counts that `to_dict` described."""
        values = {name: found[_STORED_NAMES.get(name, name)] for name in cls.__slots__}
        return cls(**{**values, **{name: Counter(values[name]) for name in ("records", "counts", "dead_letters")}})


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did. `complete`: all logs were read from 0 to their end, so the digest equals the live one."""

    source: str
    complete: bool
    covers: Mapping[str, Covers]
    records: Mapping[str, int]  # by topic
    counts: Mapping[str, int]  # the engine's: applied, duplicate, late, malformed, misrouted …
    dead_letters: Mapping[str, int]
    digest: Digest
    answers: Mapping[str, Any] | None  # PrequentialEvaluator.result
    model: str | None
    seconds: float  # spent replaying, in all runs together
    left_out_of_folder: LeftOut = field(default_factory=LeftOut)  # by the reader of a data folder
    logs: Logs = field(default_factory=dict)  # identities of the topics that were read

    @property
    def left_out(self) -> LeftOut:
        """What the reader of a data folder left out, and what the pipeline refused."""
        found = LeftOut.joined(self.left_out_of_folder)
        for reason, count in sorted(self.dead_letters.items()):
            found.add(reason, count=count)
        return found

    @property
    def error(self) -> str | None:
        """Why there are no metrics although questions were asked; None where there are."""
        return None if self.answers is None else self.answers.get("error")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": self.source,
            "complete": self.complete,
            "covers": {name: [c.first, c.start, c.end, c.log_end] for name, c in self.covers.items()},
            "lost_to_retention": {name: c.lost for name, c in self.covers.items() if c.lost},
            "records": dict(self.records),
            "counts": dict(sorted(self.counts.items())),
            "dead_letters": dict(self.dead_letters),
            "left_out": self.left_out.to_dict(),
            "digest": self.digest.hex,
            "digest_parts": self.digest.parts,
            "model": self.model,
            "metrics": self.answers["metrics"] if self.answers is not None else {},
            "answers": self.answers,
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> str:
        """The same for people."""
        records = ", ".join(f"{count} {topic}" for topic, count in sorted(self.records.items())) or "nothing"
        counts = ", ".join(f"{self.counts[name]} {name}" for name in _TOLD if self.counts.get(name))
        rate = f", {sum(self.records.values()) / self.seconds:,.0f} records/s" if self.seconds >= 1 else ""
        lines = [f"replayed {self.source}: {records} in {self.seconds:.0f} s{rate}", f"engine: {counts}"]
        lines += [*self.left_out.lines(), *self._reach()]
        lines.append(f"digest {self.digest.hex}{'' if self.complete else ' (of a part of the log)'}")
        return "\n".join(lines + self._questions())

    def _reach(self) -> list[str]:
        gone = [f"{name} from {c.first}" for name, c in sorted(self.covers.items()) if c.first > 0]
        lost = [f"{c.lost} of {name}" for name, c in sorted(self.covers.items()) if c.lost]
        lines = [f"the log no longer covers everything: {', '.join(gone)}"] if gone else []
        return lines + ([f"left Kafka by retention before they were read: {', '.join(lost)}"] if lost else [])

    def _questions(self) -> list[str]:
        if self.answers is None:
            return []
        skipped = ", ".join(f"{count} {reason}" for reason, count in self.answers["skipped"].items())
        away = ", ".join(f"{count} {why}" for why, count in self.answers["targets_out_of_reach"].items())
        lines = [
            f"model {self.model}, {counted(self.answers['questions'], 'question')}; not asked: {skipped or 'none'}",
            f"targets that no list could hold (they count as misses): {away or 'none'}",
        ]
        return lines + (["", table(self.answers)] if self.answers["questions"] and self.error is None else [])
