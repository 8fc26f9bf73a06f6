"""A server that speaks OpenAI's embeddings and chat protocol on 127.0.0.1, with MiniLM behind it, and fails on request.

`python -m tests.support.llm_server --port 19500` runs it by itself. It counts what it was asked for: that is what its
users would have paid. A fault is given to the next request, one fault each; tags are those that the prompt offers and
whose name occurs in the item.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoder.text.item_text import MiniLM

MODEL, CHAT_MODEL, DIMENSION = "test-embedder", "test-chat", MiniLM.dimension
DRIP_BYTES = 1_000  # of an answer with the header `drip-s`, after each of which so many seconds pass
Embed = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request instead of an answer, or to its answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None  # instead of the answer
    delay_s: float = 0.0
    change: Callable[[dict[str, Any]], None] | None = None  # changes the answer's JSON


def letters(texts: Sequence[str]) -> NDArray[np.float32]:
    """Vectors [n, 384] by the bytes of texts: quick, different for different texts, not of unit length."""
    rows = np.zeros((len(texts), DIMENSION), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for place, byte in enumerate(text.encode()):
            row[(place * 31 + byte) % DIMENSION] += 1 + byte
    return rows


class LlmServer:
    """Answers from `start` to `stop`.

    Args:
        embed: MiniLM unless given.
        key: the key that it accepts.
    """

    def __init__(self, embed: Embed | None = None, key: str = "", port: int = 0, usage: bool = True) -> None:
        self._embed, self._lock = embed or MiniLM(1).embed, threading.Lock()
        self.key, self.usage = key, usage
        self.texts: Counter[str] = Counter()  # answered ones, by how often
        self.by_model: Counter[tuple[str, str]] = Counter()  # the same by model and text
        self.dimensions: dict[str, int] = {}  # of models whose vectors are shorter, by a divisor
        self.tagged: Counter[str] = Counter()  # items that were answered with tags
        self.requests: list[dict[str, Any]] = []  # bodies of all requests
        self.faults: deque[Fault] = deque()
        self.broken: Callable[[list[str]], Fault | None] = lambda texts: None  # a lasting fault, by the texts
        self.chosen: Callable[[str, list[str]], Any] = chosen_tags  # (user message, offered tags) -> content
        self.released = threading.Event()  # answers wait for this
        self.released.set()
        self.at_once = self.most_at_once = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def start(self) -> LlmServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one request."""
        with self._lock:
            self.requests.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault = self.faults.popleft() if self.faults else None
        try:
            return self._answer(path, key, body, fault)
        finally:
            with self._lock:
                self.at_once -= 1

    def _answer(
        self, path: str, key: str, body: dict[str, Any], fault: Fault | None
    ) -> tuple[int, dict[str, str], bytes]:
        self.released.wait(30)
        if self.key and key != f"Bearer {self.key}":
            return 401, {}, json.dumps({"error": f"{key} is not accepted"}).encode()
        inputs = list(body.get("input", []))
        fault = fault or self.broken(inputs) or Fault()
        time.sleep(fault.delay_s)
        if fault.body is not None or fault.status != 200:
            return fault.status, fault.headers, fault.body or b'{"error": "as asked"}'
        with self._lock:
            asked = str(body.get("model"))
            answer = self._vectors(inputs, asked) if path.endswith("/embeddings") else self._tags(body["messages"])
        if fault.change is not None:
            fault.change(answer)
        return 200, fault.headers, json.dumps(answer).encode()

    def _vectors(self, inputs: list[str], model: str) -> dict[str, Any]:
        found = self._embed(inputs)
        shorter = found.reshape(len(inputs), self.dimensions.get(model, int(found.shape[1])), -1).sum(axis=-1)
        rows = [
            {"object": "embedding", "index": place, "embedding": vector.astype(float).tolist()}
            for place, vector in enumerate(shorter)
        ]
        self.texts.update(inputs)
        self.by_model.update((model, text) for text in inputs)
        return {"object": "list", "data": rows, "model": model, **self._usage(sum(map(len, inputs)) // 4 + 1)}

    def _tags(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        offered = messages[0]["content"].partition("one tag a line:\n")[2].splitlines()
        content = self.chosen(messages[1]["content"], offered)
        self.tagged[json.loads(messages[1]["content"])["item"]] += 1
        text = content if isinstance(content, str) else json.dumps({"tags": content})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {"object": "chat.completion", "choices": [choice], "model": CHAT_MODEL, **self._usage(100)}

    def _usage(self, tokens: int) -> dict[str, Any]:
        return {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}} if self.usage else {}


def _handler(server: LlmServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, answer = server.answer(self.path, self.headers.get("authorization", ""), body)
            try:
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                for start in range(0, len(answer), DRIP_BYTES if "drip-s" in headers else len(answer)):
                    time.sleep(float(headers.get("drip-s", 0)))
                    self.wfile.write(answer[start : start + DRIP_BYTES] if "drip-s" in headers else answer)
            except ConnectionError:
                pass  # whoever asked has gone

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def chosen_tags(message: str, offered: list[str]) -> list[str]:
    """The offered tags whose name occurs in the item."""
    return [tag for tag in offered if tag.partition(":")[2] in message.lower()]


def main() -> None:
    """Runs a server until it is killed, and prints its address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default="")
    parser.add_argument("--letters", action="store_true", help="instead of MiniLM: quick, and without any meaning")
    options = parser.parse_args()
    server = LlmServer(letters if options.letters else None, key=options.key, port=options.port).start()
    print(server.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
