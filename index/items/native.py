"""Chooses whether graphs are walked and lists made by what is compiled (`first_stage.cpp`), or in Python.

What is compiled is missing where there was no compiler at installation, or where the processor cannot run it.
"""

from __future__ import annotations

from types import ModuleType


def _compiled() -> ModuleType | None:
    try:
        from index.items import _native
    except ImportError:
        return None
    return _native


COMPILED = _compiled()
