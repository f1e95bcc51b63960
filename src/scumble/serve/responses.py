"""/v1/responses: OpenAI's newer API: create, stream, retrieve, cancel, delete, input_items, background, continuations.

Responses are kept in this process's memory: for an hour, the last thousand, for the key that asked and for no other.
Nothing of them reaches a disk.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from scumble.serve.call import Call, call_of
from scumble.serve.errors import ApiError
from scumble.serve.fields import Body, Sampler, TextPart, unsupported
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.response_run import Kept, KeptResponses, ResponseRun
from scumble.serve.service import Service, service_of
from scumble.serve.stream import STREAMED, EventStream, named_event, while_connected
from scumble.serve.tools import TOOL_NAME, FunctionSpec, JsonSchema, ResponseFormat, constraint, tool_options

router = APIRouter(route_class=ScopedRoute)


class MessageItem(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str = Field(pattern=TOOL_NAME)
    arguments: str
    id: str | None = None
    status: str | None = None


class CallOutputItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: str
    id: str | None = None
    status: str | None = None


class ReasoningItem(Body):
    """Thinking of an earlier turn; models do not read it again."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: str | None = None
    status: str | None = None


Item = MessageItem | CallItem | CallOutputItem | ReasoningItem


class FunctionTool(Body):
    type: Literal["function"]
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def function(self) -> FunctionSpec:
        return FunctionSpec(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )


class NamedFunctionTool(Body):
    type: Literal["function"]
    name: str = Field(pattern=TOOL_NAME)


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class TextOptions(Body):
    format: TextFormat | None = None
    verbosity: str | None = None


class Reasoning(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(Sampler):
    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    background: bool = False
    store: bool = True
    metadata: dict[str, str] | None = None
    include: list[str] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    def not_applied(self) -> list[str]:
        """Names to report. Raises ApiError for fields that cannot apply and would change the answer."""
        if self.truncation == "auto":
            raise unsupported("truncation", "the input is never cut; leave it out")
        names = ("user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "include")
        return [f"{name} not applied" for name in names if getattr(self, name)]

    def input_items(self) -> list[dict[str, Any]]:
        """The input as items with ids, as input_items lists them."""
        if isinstance(self.input, str):
            part = {"type": "input_text", "text": self.input}
            items: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": [part]}]
        else:
            items = [item.model_dump(exclude_none=True) for item in self.input]
        return [{"id": f"item_{secrets.token_hex(12)}", **item} for item in items]


def messages_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as the chat template's messages; calls join the assistant's message before them."""
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for item in items:
        if item["type"] == "message":
            content = item["content"]
            text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
            messages.append({"role": item["role"], "content": text})
        elif item["type"] == "function_call":
            names[item["call_id"]] = item["name"]
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            messages[-1].setdefault("tool_calls", []).append(call)
        elif item["type"] == "function_call_output":
            if item["call_id"] not in names:
                raise ApiError(400, "a function_call_output answers a function_call by its call_id", param="input")
            name = names[item["call_id"]]
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "name": name, "content": item["output"]})
    return messages


async def make_run(body: ResponseRequest, request: Request) -> tuple[ResponseRun, dict[str, str]]:
    """Check a request and make the run that will answer it, not yet started."""
    service, call = service_of(request), call_of(request)
    model = service.check_model(body.model)
    notes = body.not_applied()
    items = body.input_items()
    before = [] if body.previous_response_id is None else _kept(request, body.previous_response_id).conversation()
    messages = messages_of([*before, *items])
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    if not messages:
        raise ApiError(400, "input is empty; send at least one message", param="input")
    choice = body.tool_choice.name if isinstance(body.tool_choice, NamedFunctionTool) else body.tool_choice
    functions = [tool.function() for tool in body.tools or ()]
    options = tool_options(functions, choice, body.parallel_tool_calls)
    if body.reasoning is not None and body.reasoning.effort is not None:
        options["enable_thinking"] = body.reasoning.effort != "none"
    config = body.generation_config(body.max_output_tokens, **constraint(_format(body.text), service.backend))
    call.prompts.append(messages)
    job = await service.backend.prepare(lambda: service.backend.chat(messages, config, options))
    job = replace(job, notes=(*notes, *job.notes))
    (job,), headers = await service.admit(call, [job])
    return ResponseRun(service, job, _head(body, model), items, before), headers


def _format(text: TextOptions | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    schema = None
    if text.format.type == "json_schema":
        schema = JsonSchema(name=text.format.name or "answer", schema=text.format.schema_)
    return ResponseFormat(type=text.format.type, json_schema=schema)


def _head(body: ResponseRequest, model: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    choice = body.tool_choice
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "model": model,
        "background": body.background,
        "instructions": body.instructions,
        "previous_response_id": body.previous_response_id,
        "max_output_tokens": body.max_output_tokens,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "max_tool_calls": None,
        "service_tier": "default",
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "tool_choice": choice.model_dump() if isinstance(choice, NamedFunctionTool) else choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "metadata": body.metadata or {},
        "store": body.store,
        "truncation": "disabled",
    }


@router.post("/v1/responses", summary="Make a response", responses=STREAMED)
@scope("generate")
async def create_response(body: ResponseRequest, request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    if body.background and not body.store:
        raise ApiError(400, "background needs store: true, or nobody could read the answer", param="store")
    run, headers = await make_run(body, request)
    if body.background:
        # It goes on when this request has long been answered, and has an end of its own in the audit log.
        own = replace(call, prompts=list(call.prompts), answers=[])
        run.start(own, lambda: service.access.ended(own))
    else:
        run.start(call)
    if body.store:
        _kept_responses(request).put(Kept(call.key_name, run))
    if body.stream:
        return EventStream(_follow(service, run, 0, call), service.settings.write_seconds, headers)
    if not body.background:
        try:
            await while_connected(request, run.finished())
        finally:
            run.cancel_if_running()
        if run.error is not None:
            raise run.error
    return JSONResponse(run.response(), headers=headers)


async def _follow(service: Service, run: ResponseRun, after: int, call: Call) -> AsyncGenerator[bytes, None]:
    try:
        async for event in run.events(after):
            yield named_event(event["type"], event)
    finally:
        if not run.head["background"]:
            run.cancel_if_running()


def _kept_responses(request: Request) -> KeptResponses:
    return request.app.state.kept_responses


def _kept(request: Request, response_id: str) -> Kept:
    kept = _kept_responses(request).get(response_id)
    if kept is None or kept.owner != call_of(request).key_name:
        raise ApiError(404, "there is no such response here, or its time is over", code="response_not_found")
    return kept


@router.get("/v1/responses/{response_id}", summary="A kept response; with stream, its events", responses=STREAMED)
@scope("generate")
async def get_response(
    response_id: str, request: Request, stream: bool = False, starting_after: int | None = None
) -> Response:
    kept = _kept(request, response_id)
    if stream:
        service = service_of(request)
        after = 0 if starting_after is None else starting_after + 1
        source = _events_only(kept.run, max(0, after))
        return EventStream(source, service.settings.write_seconds)
    return JSONResponse(kept.run.response())


async def _events_only(run: ResponseRun, after: int) -> AsyncGenerator[bytes, None]:
    async for event in run.events(after):
        yield named_event(event["type"], event)


@router.post("/v1/responses/{response_id}/cancel", summary="End a response that runs in the background")
@scope("generate")
async def cancel_response(response_id: str, request: Request) -> Response:
    run = _kept(request, response_id).run
    if not run.head["background"]:
        raise ApiError(400, "only a response that runs in the background can be cancelled", code="not_background")
    run.cancel_if_running()
    await asyncio.wait([run.task], timeout=30)
    return JSONResponse(run.response())


@router.delete("/v1/responses/{response_id}", summary="Forget a response")
@scope("generate")
async def delete_response(response_id: str, request: Request) -> Response:
    kept = _kept(request, response_id)
    kept.run.cancel_if_running()
    _kept_responses(request).drop(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", summary="What a response was asked")
@scope("generate")
async def input_items(
    response_id: str,
    request: Request,
    limit: int = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> dict[str, Any]:
    items = list(_kept(request, response_id).run.items)
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    page = items[start : start + max(1, min(limit, 100))]
    return {
        "object": "list", "data": page, "has_more": start + len(page) < len(items),
        "first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None,
    }  # fmt: skip
