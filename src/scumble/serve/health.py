"""For machines that look after the server: /health (alive?), /ready (send requests?), /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from scumble.serve.gate import PUBLIC, ScopedRoute, scope
from scumble.serve.service import service_of

router = APIRouter(route_class=ScopedRoute)


@router.get("/health", summary="200 while the process can do its work at all")
@scope(PUBLIC)
async def health(request: Request) -> Response:
    service = service_of(request)
    if service.fault is not None:
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


@router.get("/ready", summary="200 while new requests are welcome")
@scope(PUBLIC)
async def ready(request: Request) -> Response:
    service = service_of(request)
    if service.draining:
        return JSONResponse({"status": "draining"}, 503)
    if not service.ready or service.fault is not None:
        return JSONResponse({"status": "starting" if service.fault is None else "failed"}, 503)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
@scope("metrics")
async def metrics(request: Request) -> Response:
    service = service_of(request)
    slots, own = service.backend.slots, service.metrics
    own.engine(service.backend.llm.stats())
    own.running.set(slots.running)
    own.waiting.set(slots.waiting)
    own.slots.set(slots.running)
    own.slots_total.set(slots.max_running)
    return Response(own.text(), media_type=CONTENT_TYPE_LATEST)
