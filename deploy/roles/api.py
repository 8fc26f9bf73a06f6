"""Runs the API process, the application of `index.api.app` under uvicorn with producers for events and exposures.

One process, one event loop; more load means more processes. It answers from the first second on, with 503 until the
items are loaded. Neither torch nor Faust is loaded here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from deploy.roles.indexer import elastic_settings
from deploy.runtime.process import log_to_stderr, now_ms, open_store, running, settle_once
from deploy.runtime.producer import Acknowledged, EventProducer, ExposureProducer, Extras, at_time
from deploy.settings import Settings, public_address
from index.api.app import create_app
from index.api.errors import InvalidRecordError
from index.api.metrics import ApiMetrics
from index.api.settings import ApiSettings, KafkaSide
from streams.events import CONSUMED, MalformedError, Rules
from streams.kafka.log_identity import LogLookup
from streams.parsing import encode_record

_TIMEOUT_S = 0.1  # of one Redis call: a list from memory in time is worth more than a personal one too late
_SHUTDOWN_S = 5  # requests under way may end within this
_KEEP_ALIVE_S = 75  # longer than clients keep an idle connection: one that is closed under a request fails it


def run_api(settings: Settings) -> None:
    """Answers until SIGTERM or SIGINT. Raises OSError when the port is taken."""
    log_to_stderr(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    store = open_store(settings, timeout_s=_TIMEOUT_S, retries=1)
    producer, metrics = EventProducer(settings.kafka_config()), ApiMetrics(CollectorRegistry())
    exposures = ExposureProducer(settings.kafka_config())
    kafka = kafka_side(settings, producer, exposures, lambda: app.state.services.liveness.clock_ms)
    app = create_app(store, api_settings(settings), kafka, metrics, on_loaded=settle_once())
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,  # ours, set up above
            access_log=False,  # at hundreds of requests a second it costs more than the answers say
            timeout_graceful_shutdown=_SHUTDOWN_S,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:

        def report() -> dict[str, Any]:
            counters = {**metrics.counters(), "dropped": exposures.dropped}
            services = app.state.services
            return {"counters": counters, "models": services.keeper.report(), "shadow": services.shadow.report()}

        async with running(store, "api", report):
            await server.serve()
    finally:
        producer.close()
        exposures.close()
        await store.close()


def api_settings(settings: Settings) -> ApiSettings:
    """What the application is told; addresses without credentials."""
    return ApiSettings(
        kafka=public_address(settings.kafka.get_secret_value()),
        redis=public_address(settings.redis.get_secret_value()),
        keys=settings.scopes(),
        kind_weights=[kind.weight for kind in settings.rules().kinds],
        kind_remembered=[kind.remembered for kind in settings.rules().kinds],
        ranker=settings.ranker,
        feature_share=settings.feature_share,
        showings=settings.showings,
        negative=settings.negative_weight(),
        elastic=elastic_settings(settings),
        snapshots=settings.state / "snapshots",
        in_flight=settings.api_in_flight,
        answers=settings.api_answers,
    )


def kafka_side(
    settings: Settings, producer: EventProducer, exposures: ExposureProducer, clock_ms: Callable[[], int | None]
) -> KafkaSide:
    """The application's way to Kafka: the worker's rules, a producer for what is posted and one for what is shown.

    What is posted while a timeline is replayed (`clock_ms`, None where none is) has its time as Kafka timestamp, so
    that an event of today counts as one of the timeline's now, by the rule for times that are ahead.
    """
    validate = partial(checked_record, settings.rules(), now_ms)

    async def publish(topic: str, key: bytes, value: bytes | None, partition: int | None) -> Acknowledged:
        now = clock_ms()
        # A removal is by the wall clock, and so newer than whatever the timeline says.
        extras: Extras = {} if now is None or value is None else at_time(now)
        return await producer.send(topic, key, value, partition, **extras)

    lookup = LogLookup(settings.kafka_config())
    ends = partial(lookup.log_ends, CONSUMED)
    return KafkaSide(validate, publish, exposures.expose, lambda: exposures.dropped, ends)


def checked_record(
    rules: Rules, clock_ms: Callable[[], int], topic: str, body: Mapping[str, Any]
) -> tuple[bytes, bytes]:
    """Key and value of a posted record. Raises InvalidRecordError with all its faults when a worker would refuse it."""
    try:
        return encode_record(topic, body, clock_ms(), rules)
    except MalformedError as error:
        others = ((other.field, other.reason) for other in error.others)
        raise InvalidRecordError(error.field, error.reason, *others) from error
