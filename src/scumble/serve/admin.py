"""For operators, with the scope admin: keys, and what the server is doing."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from scumble import __version__
from scumble.errors import InvalidRequest
from scumble.serve.call import call_of
from scumble.serve.errors import ApiError
from scumble.serve.fields import Body
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.keys import LastAdminError
from scumble.serve.service import service_of

router = APIRouter(route_class=ScopedRoute)


class NewKey(Body):
    name: str = Field(min_length=1, max_length=128)
    scopes: list[Literal["generate", "metrics", "admin"]] = Field(min_length=1, max_length=3)
    expires_days: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@router.get("/admin/keys", summary="All keys, without their secrets")
@scope("admin")
async def list_keys(request: Request) -> dict[str, Any]:
    keys = await asyncio.to_thread(service_of(request).access.keys.all)
    return {"data": [key.public() for key in keys]}


@router.post("/admin/keys", summary="A new key; its secret is shown this once", status_code=201)
@scope("admin")
async def create_key(body: NewKey, request: Request) -> dict[str, Any]:
    access = service_of(request).access
    holder = call_of(request).key
    if access.is_open and not access.keys.known() and "admin" not in body.scopes:
        # With the first key the server closes; without an admin nobody could make a second one from here.
        raise ApiError(409, "the first key must have the scope admin", code="first_key")
    assert holder is not None
    secret = await asyncio.to_thread(
        access.keys.create, body.name, body.scopes, body.expires_days, body.requests_per_minute, body.tokens_per_minute
    )
    return {"name": body.name, "scopes": body.scopes, "key": secret}


@router.delete("/admin/keys/{name}", summary="Revoke a key, for ever")
@scope("admin")
async def revoke_key(name: str, request: Request) -> dict[str, Any]:
    try:
        await asyncio.to_thread(service_of(request).access.keys.revoke, name, True)
    except LastAdminError as error:
        raise ApiError(409, str(error), code="last_admin") from None
    except InvalidRequest as error:
        raise ApiError(404, str(error), code="key_not_found") from None
    return {"name": name, "state": "revoked"}


@router.get("/admin/status", summary="Load, queue, audit log")
@scope("admin")
async def status(request: Request) -> dict[str, Any]:
    service = service_of(request)
    slots, audit = service.backend.slots, service.access.audit
    return {
        "version": __version__,
        "model": service.backend.names[0],
        "digest": service.backend.digest,
        "ready": service.ready,
        "draining": service.draining,
        "running": slots.running,
        "slots": slots.max_running,
        "waiting": slots.waiting,
        "queue": slots.max_waiting,
        "open": service.access.is_open and not service.access.keys.known(),
        "audit": None if audit is None else {"lines": audit.seq, "head": audit.head, "keeps_texts": audit.keep_texts},
        "engine": service.backend.engine_stats(),
    }
