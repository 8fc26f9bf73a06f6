"""Guards the pages with sessions by cookie, tokens against forged requests, names of hosts, and headers of answers.

A session is a random id in a cookie; a key that somebody signed in with stays in this process. A page's token follows
from the id by a secret that is made anew at each start.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "perseid_console"
TOKEN_HEADER, TOKEN_FIELD = "x-csrf-token", "csrf"
HEALTH = "/healthz"  # probes call a process by its address
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_SIGNED_IN_S = 12 * 3600.0  # a day's work
_MOST_SESSIONS = 1_000  # with a key
_ID = re.compile(r"[0-9a-f]{32}")
# Nothing from elsewhere, nothing inline, nothing evaluated; pages stand in no frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class VisitorSessions:
    """Who has signed in, and the tokens of pages. `clock_s` is monotonic."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._secret, self._clock_s = secrets.token_bytes(32), clock_s
        self._keys: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def known(self, cookie: str | None) -> str:
        """The session of a cookie, "" for what is none."""
        return cookie if cookie is not None and _ID.fullmatch(cookie) else ""

    def new(self) -> str:
        """A fresh session."""
        return secrets.token_hex(16)

    def token(self, session: str) -> str:
        """What a form of this session has to bring."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()

    def is_token(self, session: str, token: str) -> bool:
        """Whether a request of this session brings its token."""
        return bool(session) and hmac.compare_digest(self.token(session).encode(), token.encode())

    def sign_in(self, key: str) -> str:
        """A new session with an API key, which replaces the one before: who knew that one gains nothing."""
        session = self.new()
        self._keys[session] = key, self._clock_s() + _SIGNED_IN_S
        while len(self._keys) > _MOST_SESSIONS:
            self._keys.popitem(last=False)
        return session

    def sign_out(self, session: str) -> None:
        """Forgets the key of a session."""
        self._keys.pop(session, None)

    def key(self, session: str) -> str:
        """The key that a session has signed in with, "" without one."""
        key, until_s = self._keys.get(session, ("", 0.0))
        if key and self._clock_s() > until_s:
            self.sign_out(session)
            return ""
        return key


class GuardMiddleware:
    """ASGI layer that refuses unknown names of hosts and foreign origins, and sets the headers of every answer.

    Without the check of names a page from elsewhere could have its own name resolve to this machine and read all.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {*LOOPBACK, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    found[name] = value
                found.setdefault("cache-control", "no-store")
            await send(message)

        host = headers.get("host", "")
        if host_name(host) not in self._hosts and scope["path"] != HEALTH:
            said = "this console does not know that it is called so; name the host in PERSEID_CONSOLE_HOSTS\n"
            await PlainTextResponse(said, 421)(scope, receive, sending)
            return
        if scope["method"] not in ("GET", "HEAD") and not is_own_origin(headers.get("origin"), host):
            await PlainTextResponse("this request comes from another page\n", 403)(scope, receive, sending)
            return
        await self._app(scope, receive, sending)


def host_name(host: str) -> str:
    """A `Host` without its port, in small letters.

    >>> host_name("LOCALHOST:8600"), host_name("[::1]:80"), host_name("a.example")
    ('localhost', '[::1]', 'a.example')
    """
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).lower()


def is_own_origin(origin: str | None, host: str) -> bool:
    """Whether a browser that names an origin was on a page of ours; others, which name none, bring no cookie either."""
    return origin is None or (origin != "null" and urlsplit(origin).netloc.lower() == host.lower())
