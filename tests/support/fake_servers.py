"""Servers that say a few fixed bytes: for what no real one on this machine would say, such as an old version.

`answering` is any TCP protocol where one question gets one answer; `pages` is HTTP with a body and a status per path.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """`host:port` of a server that answers what it receives; an empty answer hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while asked := self.request.recv(65536):
                reply = answer(asked)
                if not reply:
                    return
                self.request.sendall(reply)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients hang up when they like."""

    with Server(("127.0.0.1", 0), Handler) as server, _serving(server):
        yield f"127.0.0.1:{server.server_address[1]}"


@contextmanager
def pages(found: Mapping[str, tuple[int, Any]], headers: Mapping[str, str], key: str = "") -> Iterator[str]:
    """URL of an HTTP server with a status and a JSON body for each path; 401 for another `Authorization` than `key`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = found.get(self.path, (404, {"error": "no such page"}))
            if key and self.headers.get("Authorization") != key:
                status, body = 401, {"error": "who are you"}
            raw = orjson.dumps(body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, _serving(server):
        yield f"http://127.0.0.1:{server.server_address[1]}"


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
