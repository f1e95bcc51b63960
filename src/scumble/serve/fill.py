"""What only a canvas does well: POST /v1/fim/completions fills a hole, /v1/edit/completions puts a region right.

The first has the form of Mistral's API. The second is ours: text and region in, text and the region's new text out.
"""

from __future__ import annotations

import difflib
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from scumble.events import Finished, Generation
from scumble.serve.backend import Job
from scumble.serve.call import Call, call_of
from scumble.serve.chat import ChatWriter, stream_chat
from scumble.serve.errors import ApiError
from scumble.serve.extension import generation_extension, usage_of
from scumble.serve.fields import OpenAISampling
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.service import Service, service_of
from scumble.serve.stream import STREAMED, while_connected

router = APIRouter(route_class=ScopedRoute)


class FimRequest(OpenAISampling):
    refused: ClassVar[dict[str, Any]] = {**OpenAISampling.refused, "n": 1, "min_tokens": 0, "random_seed": None}

    prompt: str
    suffix: str = ""
    min_tokens: int | None = None
    random_seed: int | None = None


@router.post("/v1/fim/completions", summary="Fill in what stands between prompt and suffix", responses=STREAMED)
@scope("generate")
async def create_fim(body: FimRequest, request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    model = service.check_model(body.model)
    notes = tuple(f"{name} not applied" for name in body.not_applied())
    call.prompts += [body.prompt, body.suffix]
    config, backend = body.config(body.max_tokens, None), service.backend
    job = await backend.prepare(lambda: backend.fill(body.prompt, body.suffix, config))
    job = replace(job, notes=(*notes, *job.notes))
    (job,), headers = await service.admit(call, [job])
    writer = ChatWriter(service, call, model, [job])
    if body.stream:
        return stream_chat(writer, body, headers)
    return JSONResponse(await while_connected(request, writer.whole()), headers=headers)


class EditRequest(OpenAISampling):
    """region: characters from … to (not included) of `text`, which the canvas starts from."""

    refused: ClassVar[dict[str, Any]] = {**OpenAISampling.refused, "n": 1}

    text: str
    region: list[int] = Field(min_length=2, max_length=2)


@router.post("/v1/edit/completions", summary="Put a region of a text right, in place", responses=STREAMED)
@scope("generate")
async def create_edit(body: EditRequest, request: Request) -> Response:
    """Whole: the text, its region and a diff. Streamed: the region's new text, in a chat's chunks as of FIM."""
    service, call = service_of(request), call_of(request)
    model = service.check_model(body.model)
    notes = tuple(f"{name} not applied" for name in body.not_applied())
    start, end = body.region
    if not 0 <= start < end <= len(body.text):
        raise ApiError(400, f"region must be 0 ≤ from < to ≤ {len(body.text)}, found {start}, {end}", param="region")
    call.prompts.append(body.text)
    before, damaged, after = body.text[:start], body.text[start:end], body.text[end:]
    config, backend = body.config(body.max_tokens, None), service.backend
    job = await backend.prepare(lambda: backend.fill(before, after, config, damaged))
    job = replace(job, notes=(*notes, *job.notes))
    (job,), headers = await service.admit(call, [job])
    if body.stream:
        return stream_chat(ChatWriter(service, call, model, [job]), body, headers)
    generation = await while_connected(request, _answer(service, call, job))
    text = before + generation.text + after
    diff = difflib.unified_diff(body.text.splitlines(), text.splitlines(), "before", "after", lineterm="")
    answer = {
        "id": f"edit-{call.id[4:]}", "object": "edit.completion", "created": int(time.time()), "model": model,
        "text": text, "region": [start, start + len(generation.text)], "replacement": generation.text,
        "diff": "\n".join(diff), "finish_reason": generation.finish_reason,
        "usage": usage_of(backend, [job], [generation]), "scumble": generation_extension(job, generation),
    }  # fmt: skip
    return JSONResponse(answer, headers=headers)


async def _answer(service: Service, call: Call, job: Job) -> Generation:
    generation: Generation | None = None
    async with aclosing(service.run(call, [job])) as events:
        async for _, event in events:
            if isinstance(event, Finished):
                generation = event.generation
    assert generation is not None
    return generation
