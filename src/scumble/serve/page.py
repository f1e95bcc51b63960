"""GET /: the web page, and the few files that it is made of. It asks this server for everything and no other host."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter
from fastapi.responses import Response

from scumble.serve.errors import ApiError
from scumble.serve.gate import PUBLIC, ScopedRoute, scope

router = APIRouter(route_class=ScopedRoute)

WEB = resources.files("scumble.serve") / "web"
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
}
FILES = {
    one.name: one.read_bytes() for one in WEB.iterdir() if one.name.rpartition(".")[2] in KINDS
}  # read once: a name that a client sends never becomes a path


@router.get("/", include_in_schema=False)
@scope(PUBLIC)
async def page() -> Response:
    return _file("index.html")


@router.get("/web/{name}", include_in_schema=False)
@scope(PUBLIC)
async def part(name: str) -> Response:
    return _file(name)


def _file(name: str) -> Response:
    if name not in FILES:
        raise ApiError(404, "the page has no such file", code="not_found")
    return Response(FILES[name], media_type=KINDS[name.rpartition(".")[2]], headers=HEADERS)
