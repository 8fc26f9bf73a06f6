"""Turns every error into a problem document (RFC 9457), reads and writes JSON bodies, and checks parameters' names.

Assumes that whoever raises `ProblemError` wrote its detail for the client. The detail of an unforeseen error, a 500,
says nothing of its cause, which goes to the log.
"""

from __future__ import annotations

import codecs
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args, get_origin
from urllib.parse import unquote_to_bytes

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from context.json_words import found_value, json_word
from index.state.store import StoreUnavailableError

_log = logging.getLogger("perseid.api")
_JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
MERGE_PATCH = "application/merge-patch+json"
_SHOWN_CHARACTERS = 60  # of a name that a client made up
_SHOWN_ERRORS = 20
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_TYPE_ERRORS = ("type", "parsing", "parsing_size", "from_float")
_WANTED = {  # by the first word of pydantic's names of errors
    "string": json_word(""),
    "int": "a whole number",
    "float": json_word(0.5),
    "bool": json_word(True),
    "list": json_word([]),
    "dict": json_word({}),
    "model": json_word({}),
}


class ProblemError(Exception):
    """A refusal with a status, a detail for the client, and further members of the problem document."""

    def __init__(
        self, status: int, detail: str, *, retry_after_s: int | None = None, members: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.retry_after_s, self.members = retry_after_s, dict(members or {})


class InvalidRecordError(ValueError):
    """A posted record that no consumer would accept; `deploy` raises it from the injected `validate`.

    `errors` has (field, reason) of each field that is wrong; the first is in the text.
    """

    def __init__(self, field: str, reason: str, *others: tuple[str, str]) -> None:
        super().__init__(f"{field}: {reason}")
        self.errors = ((field, reason), *others)


def json_response(content: Any, status: int = 200) -> Response:
    """`content` as JSON, numpy scalars included."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type=_JSON)


async def read_json(request: Request, *, patch: bool = False) -> Any:
    """The body as JSON, or as JSON Merge Patch (RFC 7396) where a call takes one.

    Raises ProblemError 400, or 415 for compressed bodies and for other content types, which web pages could send across
    origins.
    """
    taken = (_JSON, MERGE_PATCH) if patch else (_JSON,)
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in taken:
        raise ProblemError(415, f"content type {declared or 'missing'!r}; send {' or '.join(taken)}")
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise ProblemError(415, f"Content-Encoding {packed[:_SHOWN_CHARACTERS]!r}; send the body without compression")
    body = await request.body()
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, f"the body is not JSON: {_misread(body) or error}") from error


def _misread(body: bytes) -> str | None:
    """What a body is instead of JSON in UTF-8, where its bytes tell; JSON begins with two ASCII characters."""
    if body.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; send it without compression"
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or body[:2].count(0) == 1:
        return "it is UTF-16; send UTF-8"
    if body.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; leave that out"
    return _not_utf8(body)


def _not_utf8(text: bytes) -> str | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is {text[error.start]:#x}, which is no UTF-8, but may be Latin-1; send UTF-8"
    return None


async def known_parameters(request: Request) -> None:
    """Dependency of every call. Raises ProblemError 400 that names the parameter and those that there are.

    Also for what is not UTF-8, in place of which the framework would read U+FFFD: another user than was meant.
    """
    fields = {field.alias: field for field in request.scope["route"].dependant.query_params}
    known = sorted(fields)
    has = f"this call has {', '.join(known)}" if known else "this call has none"
    errors = [
        {"field": part, "reason": f"{reason} and percent-encode its bytes"}
        for part, raw in (("path", request.scope.get("raw_path")), ("query", request.scope["query_string"]))
        if (reason := _not_utf8(unquote_to_bytes(raw or b"")))
    ]
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        field = f"query.{name[:_SHOWN_CHARACTERS]}"
        if name not in known:
            errors.append({"field": field, "reason": f"unknown parameter; {has}"})
        elif count > 1 and not _is_list(fields[name].field_info.annotation):
            errors.append({"field": field, "reason": f"given {count} times; give it once"})
    if errors:
        detail = f"{errors[0]['field']}: {errors[0]['reason']}"
        raise ProblemError(400, detail, members={"errors": errors[:_SHOWN_ERRORS]})


def _is_list(annotation: Any) -> bool:
    """Whether a parameter takes several values: `list[…]`, or that and None."""
    return any(get_origin(part) is list for part in (annotation, *get_args(annotation)))


def problem_response(problem: ProblemError) -> Response:
    """The problem document; `Retry-After` in seconds where trying again helps."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        **problem.members,
    }
    headers = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(orjson.dumps(body), problem.status, headers, PROBLEM_JSON)


def invalid_request(errors: Sequence[Any], known: Iterable[str] = ()) -> ProblemError:
    """A 400 that names each wrong parameter or field of pydantic's `errors`; `known` are the fields of the body."""
    found = []
    for error in errors[:_SHOWN_ERRORS]:
        place = [str(part) for part in error["loc"] if part != "[key]"]  # as pydantic says that a name itself is wrong
        found.append({"field": ".".join(place), "reason": _reason(error, known if len(place) == 1 else ())})
    first = f"{found[0]['field']}: {found[0]['reason']}" if found else "the request is not valid"
    return ProblemError(400, first, members={"errors": found})


def _reason(error: Mapping[str, Any], known: Iterable[str]) -> str:
    """One of pydantic's errors in the words that records are refused with."""
    kind, value, limits = error["type"], error["input"], error.get("ctx", {})
    found = found_value(value)
    match kind:
        case "missing":
            return "missing"
        case "extra_forbidden":
            return f"unknown field; known: {', '.join(sorted(known))}" if known else "unknown field"
        case "value_error":
            return str(limits["error"])
        case "literal_error":
            return f"expected {limits['expected']}, got {found}"
        case "greater_than_equal":
            return f"expected at least {limits['ge']}, got {value!s:.60}"
        case "greater_than":
            return f"expected more than {limits['gt']:g}, got {value!s:.60}"
        case "less_than_equal":
            return f"expected at most {limits['le']}, got {value!s:.60}"
        case "string_too_short":
            return f"has {len(value)} characters, expected at least {limits['min_length']}"
        case "string_too_long":
            return f"has {len(value)} characters, expected at most {limits['max_length']}"
        case "too_short":
            return f"has {len(value)} entries, expected at least {limits['min_length']}"
        case "too_long":
            return f"has {len(value)} entries, expected at most {limits['max_length']}"
    what, _, how = kind.partition("_")
    return f"expected {_WANTED[what]}, got {found}" if what in _WANTED and how in _TYPE_ERRORS else error["msg"]


def install_handlers(app: FastAPI) -> None:
    """Makes every error of `app` a problem document."""

    @app.exception_handler(ProblemError)
    async def problem(_: Request, error: ProblemError) -> Response:
        return problem_response(error)

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError | ValidationError) -> Response:
        return problem_response(invalid_request(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code != 405:
            response = problem_response(ProblemError(error.status_code, str(error.detail)))
            response.headers.update(error.headers or {})
            return response
        allowed = ", ".join(allowed_methods(request))
        response = problem_response(ProblemError(405, f"{request.method} is not for this path; it takes {allowed}"))
        response.headers["Allow"] = allowed  # of all routes of the path; the router names those of the first one
        return response

    @app.exception_handler(StoreUnavailableError)
    async def unavailable(_: Request, error: StoreUnavailableError) -> Response:
        return store_away(error)


def store_away(error: StoreUnavailableError) -> Response:
    """The answer while the live state does not answer."""
    _log.warning("live state: %s", error)
    return problem_response(ProblemError(503, "the live state does not answer; try again in a moment", retry_after_s=1))


def allowed_methods(request: Request) -> list[str]:
    """The methods that the request's path takes; of a path without parameters as it is documented."""
    scope, known = request.scope, request.app.router.routes
    every = [one for route in known for one in getattr(getattr(route, "original_router", None), "routes", [route])]
    # A path such as `/v1/recommendations/why` is that of a user's list, too, for whom `why` may be.
    routes = [route for route in every if getattr(route, "path", "") == scope["path"]] or every
    return [
        method
        for method in _METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]


def unforeseen(error: Exception) -> Response:
    """The answer to an error nobody expected: logged here with its trace, shown to the client without it."""
    _log.error("unforeseen error", exc_info=error)
    return problem_response(ProblemError(500, "something went wrong here; the server's log says what"))
