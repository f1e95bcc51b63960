"""The app: routers, error shapes, and the gate around them."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from scumble import __version__
from scumble.llm import LLM
from scumble.serve import chat, completions, health, models, page
from scumble.serve.backend import Backend
from scumble.serve.call import call_of
from scumble.serve.gate import Gate, error_response
from scumble.serve.metrics import Metrics
from scumble.serve.service import Service
from scumble.serve.settings import ServeSettings
from scumble.serve.slots import Slots

ROUTERS = (page.router, chat.router, completions.router, models.router, health.router)


def make_service(llm: LLM, settings: ServeSettings) -> Service:
    """The parts of a server around a model, not yet ready."""
    names = settings.names or (default_name(llm.folder),)
    slots = Slots(settings.max_running, settings.max_waiting, settings.queue_seconds)
    return Service(settings, Backend(llm, names, slots), Metrics(names[0]))


def default_name(folder: Path | None) -> str:
    """The folder's own name; a path never reaches a client."""
    if folder is None:
        return "scumble"
    return "scumble-embedded" if folder.name == "embedded" else folder.resolve().name


def make_app(service: Service) -> ASGIApp:
    """The ASGI app of a service. Routes: see `routes`."""
    return Gate(make_inner_app(service), service)


def make_inner_app(service: Service) -> FastAPI:
    # No docs pages: FastAPI's load scripts from elsewhere. No redirects: a doubled slash is another path.
    app = FastAPI(
        title="Scumble", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.state.service = service

    async def no_route(request: Request, error: Exception) -> Response:
        return error_response(error, call_of(request), service, request.url.path)

    app.add_exception_handler(HTTPException, no_route)  # unknown paths and methods
    for router in ROUTERS:
        app.include_router(router)
    return app
