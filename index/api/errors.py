"""Turns every error into a problem document (RFC 9457), and reads and writes JSON bodies.

Assumes that whoever raises `ProblemError` wrote its detail for the client. The detail of an unforeseen error, a 500,
says nothing of its cause, which goes to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from index.state.store import StoreUnavailableError

_log = logging.getLogger("perseid.api")
_JSON = "application/json"


class ProblemError(Exception):
    """A refusal with a status, a detail for the client, and further members of the problem document."""

    def __init__(
        self, status: int, detail: str, *, retry_after_s: int | None = None, members: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.retry_after_s, self.members = retry_after_s, dict(members or {})


class InvalidRecordError(ValueError):
    """A posted record that no consumer would accept; `deploy` raises it from the injected `validate`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def json_response(content: Any, status: int = 200) -> Response:
    """`content` as JSON, numpy scalars included."""
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type=_JSON)


async def read_json(request: Request) -> Any:
    """The body as JSON; ProblemError 400, or 415 for other content types, which web pages could send across origins."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != _JSON:
        raise ProblemError(415, f"content type {declared or 'missing'!r}; send application/json")
    try:
        return orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise ProblemError(400, f"the body is not JSON: {error}") from error


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
    return Response(orjson.dumps(body), problem.status, headers, "application/problem+json")


def invalid_request(errors: Sequence[Any], where: str = "") -> ProblemError:
    """A 400 that names each wrong parameter or field of pydantic's `errors`, never the values' internals."""
    found = [
        {"field": ".".join(str(part) for part in (where, *error["loc"]) if part != ""), "reason": error["msg"]}
        for error in errors
    ]
    first = f"{found[0]['field']}: {found[0]['reason']}" if found else "the request is not valid"
    return ProblemError(400, first, members={"errors": found})


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
    async def refused(_: Request, error: HTTPException) -> Response:
        response = problem_response(ProblemError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(StoreUnavailableError)
    async def unavailable(_: Request, error: StoreUnavailableError) -> Response:
        _log.warning("live state: %s", error)
        away = ProblemError(503, "the live state does not answer; try again in a moment", retry_after_s=1)
        return problem_response(away)


def unforeseen(error: Exception) -> Response:
    """The answer to an error nobody expected: logged here with its trace, shown to the client without it."""
    _log.error("unforeseen error", exc_info=error)
    return problem_response(ProblemError(500, "something went wrong here; the server's log says what"))
