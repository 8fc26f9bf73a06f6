"""Holds the parts of a console, says what a visitor may do, reads forms and renders templates.

Values are escaped wherever they are shown, since titles, ids and reasons come from producers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import Any
from urllib.parse import parse_qsl

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from context.counting import counted
from deploy.console.api_client import ApiClient, ApiRefusalError, segment
from deploy.console.api_latency import LatencyScraper
from deploy.console.catalogue import ItemMirror
from deploy.console.feed import RecordFeed
from deploy.console.history import StatusHistory
from deploy.console.security import COOKIE, TOKEN_FIELD, TOKEN_HEADER, VisitorSessions
from deploy.console.words import ago, clock_time, number, shown_json, time_of_day
from index.state.store import LiveStore, StoreUnavailableError
from streams.kafka.config import KafkaConfig

SCREENS = (
    ("/", "Start"),
    ("/now", "Now"),
    ("/events", "Live events"),
    ("/ask", "Ask as a user"),
    ("/why", "Why not"),
    ("/user", "User"),
    ("/item", "Item"),
    ("/catalogue", "Catalogue"),
    ("/context", "Context"),
    ("/rules", "Rules"),
    ("/dead-letters", "Dead letters"),
    ("/models", "Models"),
    ("/results", "Results"),
)
_MOST_FORM_BYTES = 2 << 20  # a dead letter of half a MiB, each byte of it as %XX
_MOST_FIELDS = 50


class FormFields(dict[str, str]):
    """FormFields of a form. Raises ValueError for one that is missing."""

    def __missing__(self, name: str) -> str:
        raise ValueError(f"this form needs {name}")


Shown = Callable[[Request], Awaitable[Response]]
Changed = Callable[[Request, FormFields], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks for a page: `key` is the API key of the visitor's own, "" without one."""

    session: str
    key: str
    is_new: bool
    may_read: bool
    may_write: bool


@dataclass(frozen=True)
class Console:
    """All that the screens work with."""

    api: ApiClient
    feed: RecordFeed
    history: StatusHistory
    items: ItemMirror
    store: LiveStore
    kafka: KafkaConfig
    rollouts: Callable[[], Any]  # a `Rollout` of this deployment, or ValueError where it has no registry to use
    kinds: tuple[str, ...]  # of events
    latency: LatencyScraper = field(default_factory=LatencyScraper)
    sessions: VisitorSessions = field(default_factory=VisitorSessions)
    replaced: dict[str, dict[str, Any]] = field(default_factory=dict)  # location → its record before ours
    former_rules: dict[str, dict[str, Any] | None] = field(default_factory=dict)  # scenario → its rule before ours
    # scenario → offset of our last record of it, and the record
    published_rules: dict[str, tuple[int, dict[str, Any] | None]] = field(default_factory=dict)
    sent_again: dict[tuple[int, int], str] = field(default_factory=dict)  # place of a dead letter → where it went

    def visitor(self, request: Request) -> Visitor:
        """Whoever sent a request."""
        session = self.sessions.known(request.cookies.get(COOKIE))
        key, is_open = self.sessions.key(session), self.history.is_open
        may_read = is_open or bool(key) or self.api.has_key
        return Visitor(session or self.sessions.new(), key, not session, may_read, is_open or bool(key))

    def now_ms(self) -> int:
        """The time by which the deployment judges: that of its timeline, or of the wall clock."""
        status = self.history.status
        if status is not None and status["now"]["clock"] == "timeline":
            return int(status["now"]["ts_ms"])
        return time.time_ns() // 1_000_000


def console_of(request: Request) -> Console:
    found: Console = request.app.state.console
    return found


def asked(request: Request, name: str) -> str:
    """A parameter of a page. Raises ValueError where it is missing."""
    if name not in request.query_params:
        raise ValueError(f"this address needs {name}")
    return request.query_params[name].strip()


def whole_number(name: str, text: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """A number of a form or an address. Raises ValueError that names it."""
    if not re.fullmatch(r"-?[0-9]{1,19}", text, re.ASCII) or not least <= int(text) <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most:,}, got {text!r:.40}")
    return int(text)


def place_in(given: Mapping[str, str]) -> tuple[int, int]:
    """Partition and offset of a record. Raises ValueError."""
    partition, offset = (whole_number(name, given.get(name, "")) for name in ("partition", "offset"))
    return partition, offset


def is_partial(request: Request) -> bool:
    """Whether a script asks for a part of a page."""
    return request.headers.get("hx-request") == "true"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deploy.console"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "ago": ago,
        "clock": clock_time,
        "day_time": time_of_day,
        "number": number,
        "counted": counted,
        "shown_json": shown_json,
        "segment": segment,
    }
    return environment


TEMPLATES = _environment()


def fragment(template: str, **values: Any) -> str:
    """A template without a page around it."""
    return TEMPLATES.get_template(template).render(values)


def page(
    request: Request, template: str, *, status: int = 200, visitor: Visitor | None = None, **values: Any
) -> Response:
    """A page, or its content alone for a script; what a script asked for is always shown, so its status is 200."""
    console, partial = console_of(request), is_partial(request)
    visitor = visitor or console.visitor(request)
    content = fragment(
        template,
        layout="bare.html" if partial else "base.html",
        screens=SCREENS,
        path=request.url.path,
        visitor=visitor,
        token=console.sessions.token(visitor.session),
        items=console.items,
        now_ms=console.now_ms(),
        trouble=console.history.trouble,
        status=console.history.status,
        has_keys=not console.history.is_open,
        **values,
    )
    response = HTMLResponse(content, 200 if partial else status)
    if visitor.is_new:
        keep_session(request, response, visitor.session)
    return response


def keep_session(request: Request, response: Response, session: str) -> None:
    """Gives the browser its session; other sites' forms do not bring it along."""
    response.set_cookie(COOKIE, session, httponly=True, samesite="lax", secure=request.url.scheme == "https")


def problem(request: Request, status: int, title: str, detail: str, **more: Any) -> Response:
    """A page that says what went wrong; for a script it stands inside what was to be replaced, so that stays there."""
    answer = page(request, "problem.html", status=status, title=title, detail=detail, errors=more.get("errors") or [])
    if is_partial(request):
        answer.headers.update({"HX-Reselect": ".alert", "HX-Reswap": "innerHTML", "HX-Push-Url": "false"})
    return answer


def refused(request: Request, error: ApiRefusalError) -> Response:
    """What the API said, as a page."""
    titles = {400: "Refused", 401: "A key is needed", 403: "This key may not do that", 404: "Not found", 503: "Not now"}
    return problem(request, error.status, titles.get(error.status, "Refused"), error.detail, errors=error.unsaid)


def reads(handler: Shown) -> Shown:
    """A page for those who may read; others are asked for a key first."""

    @wraps(handler)
    async def shown(request: Request) -> Response:
        if not console_of(request).visitor(request).may_read:
            if is_partial(request):
                return problem(request, 401, "A key is needed", "Sign in to see this.")
            return RedirectResponse("/sign-in", 303)
        try:
            return await handler(request)
        except ApiRefusalError as error:
            return refused(request, error)
        except StoreUnavailableError as error:
            return problem(request, 503, "Not now", f"the live state does not answer: {error}")
        except ConnectionError as error:
            return problem(request, 503, "Not now", str(error))
        except ValueError as error:
            return problem(request, 400, "Refused", str(error))

    return shown


def writes(handler: Changed) -> Shown:
    """A change, by those who may write, from a form of this session."""

    @wraps(handler)
    async def changed(request: Request) -> Response:
        fields = await form(request)
        if fields is None:
            return problem(request, 413, "Too large", "This form is larger than anything the API takes.")
        visitor = console_of(request).visitor(request)
        if visitor.is_new or not has_token(request, visitor.session, fields):
            return problem(request, 403, "Not sent from here", "This form is out of date: load the page again.")
        if not visitor.may_write:
            return problem(request, 403, "Read-only", "Sign in with an API key of scope admin to change something.")
        try:
            return await handler(request, fields)
        except ApiRefusalError as error:
            return refused(request, error)
        except StoreUnavailableError as error:
            return problem(request, 503, "Not now", f"the live state does not answer: {error}")
        except (ConnectionError, ValueError, OSError) as error:
            return problem(request, 400, "Refused", str(error))

    return changed


def has_token(request: Request, session: str, fields: FormFields) -> bool:
    """Whether a request comes from a page that this process gave to the session."""
    given = request.headers.get(TOKEN_HEADER) or fields.get(TOKEN_FIELD, "")
    return console_of(request).sessions.is_token(session, given)


async def form(request: Request) -> FormFields | None:
    """What a form brings; None for one that is too large. Of a name's values the last one counts."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_FORM_BYTES:
            return None
    try:
        return FormFields(
            parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        )
    except ValueError:  # more fields than any form of ours has
        return None
