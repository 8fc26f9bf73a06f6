"""Signs visitors in with an API key of scope admin, which the API itself judges, and out again."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from deploy.console.api_client import ApiRefusalError
from deploy.console.pages import FormFields, console_of, form, has_token, keep_session, page, problem, refused

_PAUSE_S = 0.5  # after a wrong key: guessing is slow, also by many at a time
_TURN = asyncio.Lock()


async def _ask(request: Request) -> Response:
    return page(request, "sign_in.html", wrong="")


async def _sign_in(request: Request) -> Response:
    console, fields = console_of(request), await form(request) or FormFields()
    visitor, key = console.visitor(request), fields.get("key", "").strip()
    if visitor.is_new or not has_token(request, visitor.session, fields):
        return problem(request, 403, "Not sent from here", "This form is out of date: load the page again.")
    async with _TURN:
        try:
            is_admin = bool(key) and key.isascii() and key.isprintable() and await console.api.allows_admin(key)
        except ApiRefusalError as error:
            return refused(request, error)
        if not is_admin:
            await asyncio.sleep(_PAUSE_S)
            return page(
                request, "sign_in.html", status=403, wrong="The API does not know this key as one of scope admin."
            )
    console.sessions.sign_out(visitor.session)
    response = RedirectResponse("/", 303)
    keep_session(request, response, console.sessions.sign_in(key))
    return response


async def _sign_out(request: Request) -> Response:
    console, fields = console_of(request), await form(request) or FormFields()
    visitor = console.visitor(request)
    if not visitor.is_new and has_token(request, visitor.session, fields):
        console.sessions.sign_out(visitor.session)
    return RedirectResponse("/", 303)


ROUTES = [
    Route("/sign-in", _ask),
    Route("/sign-in", _sign_in, methods=["POST"]),
    Route("/sign-out", _sign_out, methods=["POST"]),
]
