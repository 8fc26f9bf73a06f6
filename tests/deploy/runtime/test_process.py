"""What long-lived processes do alike: the heap of what is loaded is left out of garbage collections."""

from __future__ import annotations

import gc
import weakref

from deploy.runtime.process import freeze_gc


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
