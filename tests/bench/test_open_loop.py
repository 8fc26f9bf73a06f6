"""The load generator counts from when a request was due: a server that stalls cannot hide behind requests not sent."""

from __future__ import annotations

import math
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from tests.bench.open_loop import Load, generator, get_request, run

RATE, SECONDS, STALL_S = 100.0, 1.5, 0.5
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


@contextmanager
def server(stall_at: int | None = None, busy_every: int = 0, idle_s: float | None = None) -> Iterator[int]:
    """Answers at once, but for one stall during which nobody is answered; every n-th request is refused.

    A connection that is idle for `idle_s` is closed.
    """
    count, one_at_a_time = 0, threading.Lock()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(idle_s)
            with suppress(TimeoutError):
                self._serve()

        def _serve(self) -> None:
            nonlocal count
            while self.request.recv(4096):
                with one_at_a_time:
                    count += 1
                    if count == stall_at:
                        time.sleep(STALL_S)
                    self.request.sendall(BUSY if busy_every and count % busy_every == 0 else OK)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        try:
            yield serving.server_address[1]
        finally:
            serving.shutdown()
            thread.join()


def load(port: int) -> Load:
    return Load("127.0.0.1", [port], [get_request("/")], RATE, SECONDS, warm_up_s=0.0)


def test_requests_that_were_due_during_a_stall_are_late_by_what_was_left_of_it() -> None:
    with server(stall_at=50) as port:
        report = run(load(port))
    assert report.statuses == {200: 150, 0: 0} and report.sent == 150
    # Of the stall's 50 requests, due 10 ms after one another, those of the first half waited for more than half of it.
    waited = int((report.latency_ms > 1000 * STALL_S / 2).sum())
    assert 20 <= waited <= 60, sorted(report.latency_ms)
    assert report.percentile(99) > 1000 * STALL_S * 0.8


def test_a_connection_that_the_server_closed_while_it_was_idle_is_no_failed_request() -> None:
    with server(idle_s=0.05) as port:
        report = run(replace(load(port), rate=5.0))
    assert report.statuses == {200: 7, 0: 0}


def test_refusals_are_counted_and_have_no_latency() -> None:
    with server(busy_every=3) as port:
        report = run(load(port))
    assert report.statuses[503] == 50 and report.statuses[200] == len(report.latency_ms) == 100
    assert report.accepted_per_s == 100 / SECONDS


def test_a_server_that_is_not_there_is_no_latency_either() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    report = run(load(port))
    assert report.statuses == {0: 150} and not len(report.latency_ms)


def test_a_load_without_an_end_goes_on_until_its_report_is_asked_for_and_keeps_the_answers() -> None:
    endless = Load("127.0.0.1", [0], [get_request("/")], RATE, math.inf, warm_up_s=0.0, keep=True)
    with server(busy_every=3) as port, generator() as begin:
        for _ in range(2):
            began = time.perf_counter()
            report = begin(replace(endless, ports=[port]))
            time.sleep(0.6)
            found = report()
            assert time.perf_counter() - began < 10.0
            most = (time.perf_counter() - began) * RATE + 1
            assert 20 <= found.sent == len(found.answers) <= most and found.statuses[200] > found.statuses[503] > 0
            # A timer may be early by a millisecond, and the server takes less.
            assert all(began < a.due_s < a.done_s + 0.01 and a.sent_s < a.done_s for a in found.answers)
            assert {(answer.status, answer.body) for answer in found.answers} == {(200, b"{}"), (503, b"")}
            assert {answer.port for answer in found.answers} == {port}
