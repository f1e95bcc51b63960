"""/v1/batches: make, look at, list, cancel; OpenAI's form. What makes the answers is batch_runs.py."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from scumble.serve.batch import URLS
from scumble.serve.batch_runs import Batches
from scumble.serve.call import call_of
from scumble.serve.errors import ApiError
from scumble.serve.fields import Body
from scumble.serve.files import files_of, page
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.service import Service, service_of

router = APIRouter(route_class=ScopedRoute)


class NewBatch(Body):
    input_file_id: str
    endpoint: Literal[URLS]  # type: ignore[valid-type]
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, max_length=16)


def batches_of(service: Service) -> Batches:
    files_of(service)
    assert service.batches is not None
    service.batches.check_ours()
    return service.batches


@router.post("/v1/batches", summary="Answer a file of requests, when there is room")
@scope("generate")
async def create_batch(body: NewBatch, request: Request) -> dict[str, Any]:
    service, owner = service_of(request), call_of(request).key_name
    if service.draining:
        raise ApiError(503, "the server is going down", code="draining", headers={"connection": "close"})
    batches = batches_of(service)
    batches.files.get(body.input_file_id, owner)
    batch = await batches.create(owner, body.input_file_id, body.endpoint, body.metadata)
    return batch.public()


@router.get("/v1/batches", summary="List batches, the latest first")
@scope("generate")
async def list_batches(request: Request, limit: int = 20, after: str | None = None) -> dict[str, Any]:
    found = batches_of(service_of(request)).all(call_of(request).key_name)
    return page([one.public() for one in found], min(limit, 100), after)


@router.get("/v1/batches/{batch_id}", summary="One batch")
@scope("generate")
async def get_batch(batch_id: str, request: Request) -> dict[str, Any]:
    return batches_of(service_of(request)).get(batch_id, call_of(request).key_name).public()


@router.post("/v1/batches/{batch_id}/cancel", summary="End a batch; what it has answered is kept")
@scope("generate")
async def cancel_batch(batch_id: str, request: Request) -> dict[str, Any]:
    batches = batches_of(service_of(request))
    batch = batches.get(batch_id, call_of(request).key_name)
    if batch.is_over:
        raise ApiError(409, f"the batch is {batch.status}", code="batch_is_over")
    batches.cancel(batch)
    return batch.public()
