"""A number and its noun: one thing has no s."""

from __future__ import annotations

import doctest

import context.counting


def test_the_examples_hold() -> None:
    found = doctest.testmod(context.counting)
    assert found.attempted == 1 and found.failed == 0
