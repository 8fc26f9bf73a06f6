"""How many records a worker applies in one write."""

from __future__ import annotations

from streams.kafka.lanes import BATCH_S, USUAL_BATCH, BatchSize


def test_a_batch_grows_to_what_can_be_applied_in_its_time_and_shrinks_again() -> None:
    size = BatchSize()
    size.took(USUAL_BATCH, USUAL_BATCH, seconds=BATCH_S / 3)
    assert size.records == 3 * USUAL_BATCH
    size.took(3 * USUAL_BATCH, 3 * USUAL_BATCH, seconds=2 * BATCH_S)
    assert size.records == 3 * USUAL_BATCH // 2


def test_a_slow_batch_does_not_make_the_next_one_smaller_than_usual() -> None:
    size = BatchSize()
    size.took(USUAL_BATCH, USUAL_BATCH, seconds=60.0)
    assert size.records == USUAL_BATCH


def test_a_batch_that_was_not_full_says_nothing() -> None:
    size = BatchSize()
    size.took(USUAL_BATCH - 1, USUAL_BATCH, seconds=0.0)
    assert size.records == USUAL_BATCH


def test_a_batch_that_a_smaller_limit_filled_counts_as_full() -> None:
    size = BatchSize(records=100_000)
    size.took(2048, 2048, seconds=4 * BATCH_S)
    assert size.records == USUAL_BATCH
