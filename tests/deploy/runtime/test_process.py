"""What long-lived processes do alike: garbage collections leave out what is loaded, and tasks end that must end."""

from __future__ import annotations

import gc
import weakref

from deploy.runtime.process import freeze_gc, settle_once


class _Ring:
    """Only a garbage collection frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_not_looked_through_again_and_freed_when_the_next_is_loaded() -> None:
    first = _Ring()
    gone = weakref.ref(first)
    try:
        freeze_gc()
        assert gc.get_freeze_count() > 0
        del first
        gc.collect()
        assert gone() is not None  # it was left out
        freeze_gc()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_a_later_load_is_left_out_of_collections_and_waits_for_none() -> None:
    settle, collections = settle_once(), list[str]()

    def note(phase: str, _: object) -> None:
        collections.append(phase)

    gc.disable()
    gc.callbacks.append(note)
    try:
        settle()
        assert collections == ["start", "stop"]
        later = [_Ring() for _ in range(1000)]
        before = gc.get_freeze_count()
        settle()
        assert collections == ["start", "stop"] and gc.get_freeze_count() >= before + len(later)
    finally:
        gc.callbacks.remove(note)
        gc.enable()
        gc.unfreeze()
