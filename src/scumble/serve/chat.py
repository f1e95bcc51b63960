"""POST /v1/chat/completions: OpenAI's chat, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from scumble.events import Committed, Draft, Finished, Generation, StreamEvent, TokenLogprobs
from scumble.serve.backend import Backend, Job, with_choice_seed
from scumble.serve.call import Call, call_of
from scumble.serve.errors import ApiError
from scumble.serve.extension import draft_extension, generation_extension, tool_calls, usage_of
from scumble.serve.fields import Body, OpenAISampling, Prediction, TextPart, plain_text
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.service import Service, service_of
from scumble.serve.stream import DONE, STREAMED, ClientGone, EventStream, data_event, while_connected
from scumble.serve.tools import ResponseFormat, Tool, ToolChoice, chosen, constraint, tool_options

router = APIRouter(route_class=ScopedRoute)


class FunctionCall(Body):
    name: str
    arguments: str


class ToolCallIn(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Body):
    """One turn. Answers of this and other servers may be sent back as they came: what they carry besides text is
    accepted where it says nothing."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: list[ToolCallIn] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    def as_template_sees_it(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.role, "content": plain_text(self.content)}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        return message


def _call_for_template(call: ToolCallIn) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}  # text/messages.py reads the JSON
    return {"id": call.id, "type": "function", "function": function}


class ChatRequest(OpenAISampling):
    refused: ClassVar[dict[str, Any]] = {
        **OpenAISampling.refused, "modalities": ["text"], "audio": None, "web_search_options": None, "functions": None,
        "function_call": None,
    }  # fmt: skip

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    prediction: Prediction | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, str | bool | int | float | None] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None


async def chat_jobs(body: ChatRequest, backend: Backend) -> list[Job]:
    """One job a choice; seeds follow each other."""
    notes = body.not_applied()
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", code="invalid_value", param="top_logprobs")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if limit == 0:
        raise ApiError(400, "max_completion_tokens must be at least 1, found 0", param="max_completion_tokens")
    template: dict[str, Any] = {"chat_template_kwargs": body.chat_template_kwargs}
    functions = [tool.function for tool in body.tools or ()]
    template |= tool_options(functions, chosen(body.tool_choice), body.parallel_tool_calls)
    if body.reasoning_effort is not None:
        template["enable_thinking"] = body.reasoning_effort != "none"
    config = body.config(
        limit, (body.top_logprobs or 0) if body.logprobs else None, **constraint(body.response_format, backend)
    )
    messages = [message.as_template_sees_it() for message in body.messages]
    job = await backend.prepare(lambda: backend.chat(messages, config, template))
    if body.prediction is not None:
        text = plain_text(body.prediction.content)
        job = await backend.prepare(lambda: backend.predicted(job, text))
    job = replace(job, notes=(*(f"{name} not applied" for name in notes), *job.notes))
    return [with_choice_seed(job, index) for index in range(body.n)]


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=STREAMED)
@scope("generate")
async def create_chat(body: ChatRequest, request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    model = service.check_model(body.model)
    call.prompts.append([message.model_dump(exclude_none=True) for message in body.messages])
    jobs = await chat_jobs(body, service.backend)
    jobs, headers = await service.admit(call, jobs)
    writer = ChatWriter(service, call, model, jobs)
    if body.stream:
        return stream_chat(writer, body, headers)
    return JSONResponse(await while_connected(request, writer.whole()), headers=headers)


class ChatWriter:
    """The answer in OpenAI's words."""

    def __init__(self, service: Service, call: Call, model: str, jobs: Sequence[Job]) -> None:
        self.service = service
        self.backend = service.backend
        self.call = call
        self.jobs = jobs
        self.head = {"id": f"chatcmpl-{call.id[4:]}", "created": int(time.time()), "model": model}

    async def whole(self) -> dict[str, Any]:
        done: dict[int, Generation] = {}
        async with aclosing(self.service.run(self.call, self.jobs)) as events:
            async for index, event in events:
                if isinstance(event, Finished):
                    done[index] = event.generation
        generations = [done[index] for index in range(len(self.jobs))]
        return {
            **self.head,
            "object": "chat.completion",
            "choices": [self._choice(index, generation) for index, generation in enumerate(generations)],
            "usage": usage_of(self.backend, self.jobs, generations),
        }

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        calls = tool_calls(generation)
        content = generation.text or (None if calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if generation.thinking is not None:
            message["reasoning_content"] = generation.thinking
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(self.backend, generation.logprobs),
            "finish_reason": finish_reason(generation),
            "scumble": generation_extension(self.jobs[index], generation),
        }

    async def stream(self, with_usage: bool, drafts: bool) -> AsyncGenerator[bytes, None]:
        done: dict[int, Generation] = {}
        thought: set[int] = set()
        usage = {"usage": None} if with_usage else {}
        try:
            for index in range(len(self.jobs)):
                yield self._chunk(index, {"role": "assistant", "content": ""}, **usage)
            async with aclosing(self.service.run(self.call, self.jobs, drafts)) as events:
                async for index, event in events:
                    if isinstance(event, Finished):
                        done[index] = event.generation
                    for delta in self._deltas(index, event, thought):
                        yield self._chunk(index, **{**delta, **usage})
            if with_usage:
                total = usage_of(self.backend, self.jobs, [done[index] for index in range(len(self.jobs))])
                yield data_event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": total})
            yield DONE
        except ClientGone:
            raise
        except Exception as error:
            yield self.service.failed(self.call, error)

    def _deltas(self, index: int, event: StreamEvent, thought: set[int]) -> list[dict[str, Any]]:
        """The chunks that one event makes. Thinking is complete before the answer's text begins."""
        if isinstance(event, Draft):
            return [{"delta": {}, "extension": draft_extension(self.backend, event)}]
        if isinstance(event, Committed):
            deltas: list[dict[str, Any]] = []
            thinking = event.thinking
            if thinking:
                thought.add(index)
                deltas.append({"delta": {"reasoning_content": thinking}})
            if event.text:
                deltas.append({"delta": {"content": event.text}})
            return deltas
        generation, deltas = event.generation, []
        if generation.thinking and index not in thought:
            deltas.append({"delta": {"reasoning_content": generation.thinking}})
        for number, one in enumerate(tool_calls(generation)):
            deltas.append({"delta": {"tool_calls": [{"index": number, **one}]}})
        last: dict[str, Any] = {
            "delta": {},
            "finish": finish_reason(generation),
            "extension": generation_extension(self.jobs[index], generation),
        }
        if generation.logprobs is not None:
            last["logprobs"] = chat_logprobs(self.backend, generation.logprobs)
        return [*deltas, last]

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        finish: str | None = None,
        logprobs: Any = None,
        extension: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        if extension is not None:
            choice["scumble"] = extension
        return data_event({**self.head, "object": "chat.completion.chunk", "choices": [choice], **more})


def stream_chat(writer: ChatWriter, body: OpenAISampling, headers: Mapping[str, str]) -> EventStream:
    return EventStream(writer.stream(body.wants_usage, body.drafts), writer.service.settings.write_seconds, headers)


def finish_reason(generation: Generation) -> str:
    return "tool_calls" if tool_calls(generation) else generation.finish_reason


def chat_logprobs(backend: Backend, logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None

    def entry(token: int, value: float) -> dict[str, Any]:
        text = backend.token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(one.token_id, one.logprob), "top_logprobs": [entry(*other) for other in one.top]}
            for one in logprobs
        ],
        "refusal": None,
    }
