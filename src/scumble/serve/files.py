"""/v1/files: upload, list, download, delete; OpenAI's form. Files are what batches read and write."""

from __future__ import annotations

import asyncio
from pathlib import PurePath
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from scumble.serve.call import call_of
from scumble.serve.errors import ApiError
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.kept_files import FileStore
from scumble.serve.service import Service, service_of

router = APIRouter(route_class=ScopedRoute)
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON, one request a line."},
                        "purpose": {"const": "batch"},
                    },
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


def files_of(service: Service) -> FileStore:
    if service.batches is None:
        raise ApiError(400, "this server keeps no files: it was started without a state folder", code="no_state")
    return service.batches.files


@router.post("/v1/files", summary="Upload a file of requests", openapi_extra=UPLOAD)
@scope("generate")
async def upload(request: Request) -> dict[str, Any]:
    files, owner = files_of(service_of(request)), call_of(request).key_name
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "send the file as multipart/form-data, with the fields purpose and file", param="file")
    try:
        form = await request.form(max_files=1, max_fields=4)
    except MultiPartException as error:
        raise ApiError(400, f"the form cannot be read: {error.message}", code="invalid_form") from None
    try:
        other = sorted(set(form) - {"file", "purpose"})
        if other:
            raise ApiError(400, "a file has the fields file and purpose, and no others", code="unknown_parameter",
                           param=other[0][:64])  # fmt: skip
        source = form.get("file")
        if not isinstance(source, UploadFile):
            raise ApiError(400, "the form has no file", param="file")
        if form.get("purpose") != "batch":
            raise ApiError(400, 'purpose must be "batch"; nothing else is done with files here', param="purpose")
        name = PurePath(source.filename or "requests.jsonl").name[:255]
        kept = await asyncio.to_thread(files.upload, source.file, owner, name, "batch")
    finally:
        await form.close()
    return kept.public()


@router.get("/v1/files", summary="List files, the latest first")
@scope("generate")
async def list_files(
    request: Request,
    limit: int = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    found = await asyncio.to_thread(files_of(service_of(request)).all, call_of(request).key_name)
    shown = [one.public() for one in found if purpose in (None, one.purpose)]
    return page(shown if order == "desc" else shown[::-1], limit, after)


@router.get("/v1/files/{file_id}", summary="One file")
@scope("generate")
async def get_file(file_id: str, request: Request) -> dict[str, Any]:
    return files_of(service_of(request)).get(file_id, call_of(request).key_name).public()


@router.get("/v1/files/{file_id}/content", summary="What is in a file", response_class=FileResponse)
@scope("generate")
async def get_content(file_id: str, request: Request) -> Response:
    files = files_of(service_of(request))
    kept = files.get(file_id, call_of(request).key_name)
    return FileResponse(files.path(kept.id), media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", summary="Delete a file")
@scope("generate")
async def delete_file(file_id: str, request: Request) -> dict[str, Any]:
    service, owner = service_of(request), call_of(request).key_name
    files = files_of(service)
    kept = files.get(file_id, owner)
    assert service.batches is not None
    service.batches.check_ours()
    if service.batches.needs(kept.id):
        raise ApiError(409, "a batch that is not over needs this file; cancel it first", code="file_in_use")
    await asyncio.to_thread(files.delete, kept.id)
    return {"id": kept.id, "object": "file", "deleted": True}


def page(found: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """A part of a list, as OpenAI's clients turn its pages."""
    ids = [one["id"] for one in found]
    start = ids.index(after) + 1 if after in ids else 0
    some = found[start : start + max(1, min(limit, 10_000))]
    return {
        "object": "list", "data": some, "has_more": start + len(some) < len(found),
        "first_id": some[0]["id"] if some else None, "last_id": some[-1]["id"] if some else None,
    }  # fmt: skip
