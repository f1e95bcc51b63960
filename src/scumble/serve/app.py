"""The app: routers, error shapes, and the gate around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from scumble import __version__
from scumble.errors import InvalidRequest
from scumble.llm import LLM
from scumble.serve import admin, batches, chat, completions, files, fill, health, messages, models, page, responses
from scumble.serve.access import Access
from scumble.serve.audit import AuditLog
from scumble.serve.backend import Backend
from scumble.serve.batch_runs import Batches
from scumble.serve.call import call_of
from scumble.serve.gate import Gate, error_response
from scumble.serve.kept_files import FileStore
from scumble.serve.keys import Keys, read_key_file
from scumble.serve.limits import Limiter
from scumble.serve.metrics import Metrics
from scumble.serve.response_run import KeptResponses
from scumble.serve.service import Service
from scumble.serve.settings import ServeSettings
from scumble.serve.slots import Slots
from scumble.serve.store import open_store

ROUTERS = (
    page.router, chat.router, completions.router, messages.router, responses.router, fill.router, models.router,
    health.router, admin.router, files.router, batches.router,
)  # fmt: skip


def make_service(llm: LLM, settings: ServeSettings) -> Service:
    """The parts of a server around a model, not yet ready. Raises InvalidRequest, StoreError, AuditError."""
    names = tuple(dict.fromkeys(settings.names)) or (default_name(llm.folder),)
    slots = Slots(settings.max_running, settings.max_waiting, settings.queue_seconds)
    backend = Backend(llm, names, slots)
    access = make_access(settings, lambda: backend.digest)
    batches = None
    if settings.state is not None:
        files = FileStore(settings.state / "files", settings.max_file_bytes, settings.max_files_bytes)
        batches = Batches(settings.state, files, slots)
    return Service(settings, backend, Metrics(names[0]), access, batches)


def make_access(settings: ServeSettings, digest: Callable[[], str]) -> Access:
    """Keys, limits and audit log. A server without keys answers this machine alone, unless told otherwise."""
    engine = open_store(settings.store or (settings.state and settings.state / "keys.db"))
    keys = Keys(engine, read_key_file(settings.key_file) if settings.key_file is not None else ())
    may_be_open = settings.is_local or settings.is_open
    if not keys.all() and not may_be_open:
        raise InvalidRequest(
            f"there are no keys, and {settings.host} can be reached by others: make a key with scumble keys create, "
            "give --api-key-file, or say --open"
        )
    audit = None
    if settings.state is not None and settings.audit:
        audit = AuditLog(settings.state / "audit", settings.keep_texts, settings.redact)
    return Access(keys, Limiter(engine), audit, may_be_open, digest)


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
    app.state.kept_responses = KeptResponses()

    async def no_route(request: Request, error: Exception) -> Response:
        return error_response(error, call_of(request), service, request.url.path)

    app.add_exception_handler(HTTPException, no_route)  # unknown paths and methods
    for router in ROUTERS:
        if router is not page.router or service.settings.page:
            app.router.routes.extend(router.routes)  # flat, so that a test can walk over all of them
    return app
