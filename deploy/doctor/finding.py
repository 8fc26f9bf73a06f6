"""Defines one line of the doctor's report, and the time that a look at a server may take.

What is put in must carry no secret: addresses come from `public_address` or `KafkaConfig.bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

CONNECT_S = 1.0  # a server that is there accepts within milliseconds
ANSWER_S = 3.0  # and answers within some more; a person waits for this command


@dataclass(frozen=True, slots=True)
class Finding:
    """`wrong` makes the command fail, `note` does not. `address` and `version` are empty where there is none.

    A check begins with the subject, `Finding("redis", address=…)`, and says of it what it has found.
    """

    name: str
    state: Literal["ok", "note", "wrong"] = "ok"
    what: str = ""
    remedy: str = ""
    address: str = ""
    version: str = ""

    def ok(self, what: str = "") -> Finding:
        return replace(self, what=what)

    def note(self, what: str, remedy: str = "") -> Finding:
        return replace(self, state="note", what=what, remedy=remedy)

    def wrong(self, what: str, remedy: str) -> Finding:
        return replace(self, state="wrong", what=what, remedy=remedy)

    def all_wrong(self, *seen: tuple[bool, str, str]) -> list[Finding]:
        """Of (whether it is so, what, remedy) those that are so."""
        return [self.wrong(what, remedy) for is_so, what, remedy in seen if is_so]

    def __str__(self) -> str:
        mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.state]
        where = ", ".join(filter(None, (self.address, self.version)))
        text = ": ".join(filter(None, (where, self.what)))
        return f"{mark}  {self.name:<13} {text}" + (f"\n       {'':<13} → {self.remedy}" if self.remedy else "")
