"""Reads what came of the last experiment from the topics, each once and up to the end that it has now.

Belongs to no consumer group. Exposures are read from the experiment's begin on, the clickstream from the first list to
the last plus the time in which lists may be acted on. Loads no torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from context.units import HOUR_MS
from deploy.jobs.replay import history_logs
from deploy.progress import Show
from deploy.settings import Settings
from index.state.trials import Experiment
from streams.events import CLICKSTREAM, EXPOSURES, FAST_CLOCK_MS
from streams.experiment import ExperimentLog, results_of
from streams.kafka.log_identity import is_embedded
from streams.kafka.topic_reader import TopicReader

_LATE_MS = HOUR_MS  # after which a click that is sent late is not waited for
_TOLD = 1_000  # records between two steps of the progress bar


def experiment_results(
    experiment: Experiment,
    settings: Settings,
    hours: float = 24.0,
    bar: Callable[[str], AbstractContextManager[Show | None]] = lambda unit: nullcontext(),
) -> dict[str, Any]:
    """What `results_of` finds, with the experiment's facts, of clicks up to `hours` after their list.

    Raises ValueError when a topic is missing or there are no lists of it, ConnectionError when Kafka does not answer.
    """
    logs = asyncio.run(history_logs(settings, (EXPOSURES,)))
    if EXPOSURES not in logs:
        raise ValueError(f"there is no topic {EXPOSURES}: nothing says who was shown what")
    window_ms, embedded = round(hours * HOUR_MS), is_embedded(logs)

    def read(log: ExperimentLog, topic: str, start_ms: int, stop_ms: int | None = None) -> None:
        kafka = settings.kafka_config()
        with (
            bar("records") as show,
            TopicReader(kafka, [topic], embedded=embedded, start_ms=start_ms, stop_ms=stop_ms) as reader,
        ):
            for done, record in enumerate(reader.records(), 1):
                log.take(record)
                if show is not None and done % _TOLD == 0:
                    show(done, reader.total)

    with ExperimentLog(experiment, settings.rules(), window_ms) as log:
        read(log, EXPOSURES, experiment.since_ms - FAST_CLOCK_MS)  # by the clocks of API processes
        span_ms = log.span_ms()
        if span_ms is None:
            raise ValueError(f"topic {EXPOSURES} has no list of experiment {experiment.id} yet")
        first_ms, last_ms = span_ms
        read(log, CLICKSTREAM, first_ms - FAST_CLOCK_MS, last_ms + window_ms + _LATE_MS)
        return {"experiment": asdict(experiment), "hours": hours, **results_of(log)}
