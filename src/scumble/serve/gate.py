"""Who may come in, and how large. In the order in which a request meets it:

1. `Gate`, around the whole app: request id, Host, Origin, size and pace of the body, one log line, metrics, audit.
2. `ScopedRoute`, around every handler: the key and its scope, its limits, and only then the body, parsed strictly.

A route without a scope cannot be made (`ScopedRoute` refuses), so a new route is closed until somebody opens it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from h11 import LocalProtocolError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scumble.errors import shown
from scumble.serve.call import Call, call_of
from scumble.serve.errors import ApiError, speaks_anthropic
from scumble.serve.keys import SCOPES
from scumble.serve.log import log_call, log_failure
from scumble.serve.service import Service, service_of
from scumble.serve.stream import CANCELLED, ClientGone

# For the OpenAPI schema: an error has one of two forms, OpenAI's or Anthropic's (errors.py).
REFUSED: dict[str, Any] = {
    "description": "Refused; the body says what, and what to do instead",
    "content": {
        "application/json": {
            "schema": {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
        }
    },
}
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
FORM_BYTES = 4096  # of an upload's form around the file itself
PUBLIC = "public"  # needs no key: liveness, readiness and the web page's own files


def scope(name: str) -> Callable[[Endpoint], Endpoint]:
    """Marks a handler with the scope that a key needs for it."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.scope = name  # type: ignore[attr-defined]
        return endpoint

    return mark


class ScopedRoute(APIRoute):
    """A route that asks for a key before it reads a body, and reads bodies strictly."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.scope_needed: str = getattr(endpoint, "scope", "")
        if self.scope_needed not in (*SCOPES, PUBLIC):
            raise TypeError(f"the route {path} has no scope; mark its handler with @scope(…)")
        options["responses"] = {"4XX": REFUSED, **(options.get("responses") or {})}
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            call, service = call_of(request), service_of(request)
            call.route, call.scope = self.path, self.scope_needed
            try:
                if self.scope_needed != PUBLIC:
                    await service.access.let_in(call, request.headers)
                return await handle(StrictRequest(request.scope, request.receive))
            except RequestValidationError as error:
                return error_response(_first_fault(error), call, service, request.url.path)
            except Exception as error:
                return error_response(error, call, service, request.url.path)

        return guarded


class StrictRequest(Request):
    """JSON without NaN, without doubled names, not deeper than allowed; one clear error for everything else."""

    async def json(self) -> Any:
        raw = await self.body()
        try:
            value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_doubles)
        except UnicodeDecodeError:
            raise ApiError(400, "the body must be UTF-8", code="invalid_json") from None
        except RecursionError:
            raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
        except json.JSONDecodeError as error:
            raise ApiError(
                400, f"the body must be JSON: {error.msg} at character {error.pos}", code="invalid_json"
            ) from None
        except ValueError as error:  # NaN, a doubled name, a number with thousands of digits
            raise ApiError(400, f"the body must be plain JSON: {error}", code="invalid_json") from None
        most = service_of(self).settings.max_depth
        if _deeper_than(value, most):
            raise ApiError(400, f"the body is nested deeper than {most} levels", code="invalid_json")
        return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("an object has the same name twice")
    return out


def _deeper_than(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _first_fault(error: RequestValidationError) -> ApiError:
    """What is wrong with a body, by the name of the field. Values are not repeated: they may be secret."""
    fault = error.errors()[0]
    where = [str(part) for part in fault["loc"] if part not in ("body", "query", "path")]
    name = ".".join(part for part in where if not part.startswith(("function-", "tagged-"))) or "body"
    if fault["type"] == "extra_forbidden":
        message = f"unknown field {shown(where[-1])}; this server refuses what it does not know"
    elif name == "body" and fault["type"] in ("model_attributes_type", "missing", "dict_type"):
        message = "send a JSON object with the header Content-Type: application/json"
    else:
        message = f"{name}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    return ApiError(400, message, code="invalid_type" if fault["type"] != "extra_forbidden" else "unknown_parameter",
                    param=name)  # fmt: skip


def error_response(error: Exception, call: Call, service: Service, path: str) -> Response:
    """The API's error body for an exception. Nobody reads it where the client has gone."""
    if isinstance(error, ClientGone | ClientDisconnect) or isinstance(error.__cause__, ClientDisconnect):
        call.outcome = CANCELLED
        return Response(status_code=499)
    answer = service.note_failure(call, error)
    body = answer.anthropic(call.id) if speaks_anthropic(path) else answer.openai()
    response = JSONResponse(body, answer.status, answer.headers)
    if answer.status in (408, 413):
        response.headers["connection"] = "close"  # the rest of the body is not worth reading
    return response


class Gate:
    """The outermost layer. Nothing that a client sends passes it without a request id, a size and a deadline."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no route speaks WebSocket
            return await send({"type": "websocket.close", "code": 1000})
        call = Call(method=scope["method"], owner=scope.get("scumble.owner"))
        scope["scumble.call"] = call
        sender = _Sender(send, call)
        try:
            origin = self._check_head(scope)
            if origin:
                sender.extra += _cors(origin)
                if scope["method"] == "OPTIONS":
                    return await Response(status_code=204)(scope, receive, sender)
            body = _Body(receive, *self._body_limits(scope))
            await self.app(scope, body, sender)
        except ApiError as error:  # of the head; later ones are answered where they arise
            response = error_response(error, call, self.service, scope["path"])
            response.headers["connection"] = "close"  # what follows such a head is not trusted to be a request
            await self._last_word(response, call, scope, receive, sender)
        except (OSError, LocalProtocolError):  # the connection ended, or uvicorn refused its bytes, in the meantime
            call.outcome = CANCELLED
        finally:
            # A client that leaves cancels this task: the record of the call is written all the same.
            await asyncio.shield(self.service.begin(self._record(call)))

    async def _last_word(self, response: Response, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await response(scope, receive, send)
        except (OSError, LocalProtocolError):
            call.outcome = CANCELLED

    def _check_head(self, scope: Scope) -> str | None:
        """Refuse requests to foreign hosts, from foreign pages, or framed in two ways; returns the page's origin."""
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        names = [name for name, _ in headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise ApiError(400, "a request has Content-Length or Transfer-Encoding, not both", code="bad_framing")
        if names.count(b"host") != 1:
            raise ApiError(400, "a request needs exactly one Host header", code="bad_host")
        values = dict(headers)
        host = values[b"host"].decode("latin-1")
        if not self.service.is_known_host(host):
            raise ApiError(421, "this server does not answer for that host; see --allowed-host", code="unknown_host")
        declared = values.get(b"content-length", b"0")
        most, _ = self._body_limits(scope)
        if int(declared) > most:
            raise _too_large(most)
        origin = values.get(b"origin", b"").decode("latin-1")
        if not origin or origin == f"{scope['scheme']}://{host}":
            return None
        if origin not in self.service.settings.origins:
            raise ApiError(403, "web pages of that origin may not call this server", code="origin_not_allowed")
        return origin

    def _body_limits(self, scope: Scope) -> tuple[int, float]:
        """Bytes of a body, and seconds in which it must arrive; uploads are larger, and get time in proportion."""
        settings = self.service.settings
        if scope["path"] != "/v1/files":
            return settings.max_body_bytes, settings.read_seconds
        most = settings.max_file_bytes + FORM_BYTES
        return most, settings.read_seconds * max(1.0, most / settings.max_body_bytes)

    async def _record(self, call: Call) -> None:
        metrics = self.service.metrics
        if call.outcome == CANCELLED:
            metrics.cancelled.inc()
        metrics.responses.labels(call.route or "none", str(call.status or 499)).inc()
        if call.scope == "generate" and call.status == 200:
            metrics.e2e.observe(call.seconds)
            if call.first_text is not None:
                metrics.first_token.observe(call.first_text)
        call.outcome = call.outcome or ("ok" if 200 <= call.status < 400 else str(call.status or "cancelled"))
        log_call(call)
        try:
            await self.service.access.ended(call)
        except Exception as error:
            log_failure(call, error)


class _Sender:
    """`send` that adds the request id and security headers, and remembers whether the response has begun."""

    def __init__(self, send: Send, call: Call) -> None:
        self._send = send
        self._call = call
        self.extra: list[tuple[bytes, bytes]] = [
            (b"x-request-id", call.id.encode()),
            (b"request-id", call.id.encode()),  # where Anthropic's clients look
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._call.status = message["status"]
            message = {**message, "headers": [*message["headers"], *self.extra]}
        await self._send(message)


class _Body:
    """`receive` that ends bodies which are too large or too slow."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive = receive
        self._most = most
        self._seconds = seconds
        self._size = 0
        self._complete = False
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        clock = asyncio.get_running_loop().time
        if self._deadline is None:
            self._deadline = clock() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body took longer than {self._seconds:g} s", code="body_timeout") from None
        if message["type"] == "http.disconnect":
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            raise _too_large(self._most)
        self._complete = not message.get("more_body", False)
        return message


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", b"authorization, content-type, x-api-key, anthropic-version"),
        (b"access-control-expose-headers", b"x-request-id, x-scumble-not-applied, retry-after"),
        (b"vary", b"origin"),
    ]
