"""Defines one line of the doctor's report, and the time that a look at a server may take.

What is put in must carry no secret: addresses come from `public_address` or `KafkaConfig.bootstrap`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CONNECT_S = 1.0  # a server that is there accepts within milliseconds
ANSWER_S = 3.0  # and answers within some more; a person waits for this command


@dataclass(frozen=True, slots=True)
class Finding:
    """`wrong` makes the command fail, `note` does not. `address` and `version` are empty where there is none."""

    name: str
    state: Literal["ok", "note", "wrong"]
    what: str
    remedy: str = ""
    address: str = ""
    version: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.state]
        where = ", ".join(filter(None, (self.address, self.version)))
        text = ": ".join(filter(None, (where, self.what)))
        return f"{mark}  {self.name:<13} {text}" + (f"\n       {'':<13} → {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class Subject:
    """What findings are about: a part of the installation, where it is, and its version."""

    name: str
    address: str = ""
    version: str = ""

    def ok(self, what: str = "") -> Finding:
        return Finding(self.name, "ok", what, "", self.address, self.version)

    def note(self, what: str, remedy: str = "") -> Finding:
        return Finding(self.name, "note", what, remedy, self.address, self.version)

    def wrong(self, what: str, remedy: str) -> Finding:
        return Finding(self.name, "wrong", what, remedy, self.address, self.version)
