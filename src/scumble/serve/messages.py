"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, whole or streamed, thinking and tools as blocks."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from scumble.events import Committed, Draft, Finished, Generation, ToolCall
from scumble.serve.backend import Backend, Job
from scumble.serve.call import Call, call_of
from scumble.serve.extension import draft_extension, generation_extension
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.message_fields import Conversation, MessageRequest
from scumble.serve.service import Service, service_of
from scumble.serve.stream import STREAMED, ClientGone, EventStream, named_event, while_connected

router = APIRouter(route_class=ScopedRoute)


async def message_job(body: MessageRequest, backend: Backend) -> Job:
    messages, options = body.for_template()
    config = body.config()
    job = await backend.prepare(lambda: backend.chat(messages, config, options))
    return replace(job, notes=(*body.not_applied(), *job.notes))


@router.post("/v1/messages", summary="Answer a conversation, in Anthropic's form", responses=STREAMED)
@scope("generate")
async def create_message(body: MessageRequest, request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    model = service.check_model(body.model)
    call.prompts.append(body.model_dump(include={"system", "messages"}, exclude_none=True))
    job = await message_job(body, service.backend)
    (job,), headers = await service.admit(call, [job])
    writer = MessageWriter(service, call, model, job)
    if body.stream:
        return EventStream(writer.stream(body.drafts), service.settings.write_seconds, headers)
    return JSONResponse(await while_connected(request, writer.whole()), headers=headers)


@router.post("/v1/messages/count_tokens", summary="Prompt tokens of a conversation")
@scope("generate")
async def count_tokens(body: Conversation, request: Request) -> dict[str, int]:
    service = service_of(request)
    service.check_model(body.model)
    messages, options = body.for_template()
    ids = await service.backend.prepare(lambda: service.backend.encode_chat(messages, options))
    return {"input_tokens": len(ids)}


class MessageWriter:
    """The answer in Anthropic's words."""

    def __init__(self, service: Service, call: Call, model: str, job: Job) -> None:
        self.service = service
        self.backend = service.backend
        self.call = call
        self.job = job
        self.head = {"id": f"msg_{call.id[4:]}", "type": "message", "role": "assistant", "model": model}

    async def whole(self) -> dict[str, Any]:
        generation: Generation | None = None
        async with aclosing(self.service.run(self.call, [self.job])) as events:
            async for _, event in events:
                if isinstance(event, Finished):
                    generation = event.generation
        assert generation is not None
        content: list[dict[str, Any]] = []
        if generation.thinking is not None:
            content.append({"type": "thinking", "thinking": generation.thinking, "signature": ""})
        if generation.text or not (content or generation.tool_calls):
            content.append({"type": "text", "text": generation.text, "citations": None})
        content += [{**_tool_use(one), "input": dict(one.arguments)} for one in generation.tool_calls]
        return {
            **self.head,
            "content": content,
            **self._stop(generation),
            "usage": self._usage(generation),
            "scumble": generation_extension(self.job, generation),
        }

    async def stream(self, drafts: bool) -> AsyncGenerator[bytes, None]:
        blocks = _Blocks()
        try:
            start = {"content": [], **self._stop(None), "usage": self._usage(None)}
            yield named_event("message_start", {"type": "message_start", "message": {**self.head, **start}})
            async with aclosing(self.service.run(self.call, [self.job], drafts)) as events:
                async for _, event in events:
                    if isinstance(event, Draft):
                        extension = draft_extension(self.backend, event)
                        yield named_event("ping", {"type": "ping", "scumble": extension})
                    elif isinstance(event, Committed):
                        for piece in self._committed(event, blocks):
                            yield piece
                    else:
                        generation = event.generation
                        if blocks.number == 0 and blocks.kind is None:
                            for piece in blocks.open("text", {"text": "", "citations": None}):
                                yield piece
                        for piece in blocks.close():
                            yield piece
                        yield named_event("message_delta", {
                            "type": "message_delta", "delta": self._stop(generation), "usage": self._usage(generation),
                            "scumble": generation_extension(self.job, generation),
                        })  # fmt: skip
                        yield named_event("message_stop", {"type": "message_stop"})
        except ClientGone:
            raise
        except Exception as error:
            answer = self.service.note_failure(self.call, error)
            yield named_event("error", answer.anthropic(self.call.id))

    def _committed(self, event: Committed, blocks: _Blocks) -> list[bytes]:
        pieces: list[bytes] = []
        if event.thinking:
            pieces += blocks.open("thinking", {"thinking": "", "signature": ""})
            pieces.append(blocks.delta({"type": "thinking_delta", "thinking": event.thinking}))
        if event.text:
            pieces += blocks.open("text", {"text": "", "citations": None})
            pieces.append(blocks.delta({"type": "text_delta", "text": event.text}))
        for one in event.tool_calls:
            pieces += blocks.close()
            pieces += blocks.open("tool_use", {**_tool_use(one), "input": {}})
            arguments = json.dumps(dict(one.arguments), ensure_ascii=False)
            pieces.append(blocks.delta({"type": "input_json_delta", "partial_json": arguments}))
            pieces += blocks.close()
        return pieces

    def _stop(self, generation: Generation | None) -> dict[str, Any]:
        reason, word = None, None
        if generation is not None:
            word = generation.stop_string
            reason = {"stop": "end_turn", "length": "max_tokens"}[generation.finish_reason]
            reason = "tool_use" if generation.tool_calls else "stop_sequence" if word is not None else reason
        return {"stop_reason": reason, "stop_sequence": word, "stop_details": None, "container": None}

    def _usage(self, generation: Generation | None) -> dict[str, Any]:
        cached = 0 if generation is None else generation.cached_tokens
        return {
            "input_tokens": len(self.job.prompt) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "cache_creation": None,
            "output_tokens": 0 if generation is None else len(generation.token_ids),
            "output_tokens_details": {"thinking_tokens": 0 if generation is None else generation.thinking_tokens},
            "server_tool_use": None,
            "service_tier": "standard",
            "inference_geo": None,
        }


class _Blocks:
    """The content blocks of a stream: one is open at a time; another kind of content closes it."""

    def __init__(self) -> None:
        self.number = 0
        self.kind: str | None = None

    def open(self, kind: str, content: dict[str, Any]) -> list[bytes]:
        if self.kind == kind:
            return []
        closed = self.close()
        self.kind = kind
        block = {"type": "content_block_start", "index": self.number, "content_block": {"type": kind, **content}}
        return [*closed, named_event("content_block_start", block)]

    def delta(self, delta: dict[str, Any]) -> bytes:
        return named_event("content_block_delta", {"type": "content_block_delta", "index": self.number, "delta": delta})

    def close(self) -> list[bytes]:
        if self.kind is None:
            return []
        pieces = []
        if self.kind == "thinking":
            pieces.append(self.delta({"type": "signature_delta", "signature": ""}))
        pieces.append(named_event("content_block_stop", {"type": "content_block_stop", "index": self.number}))
        self.number, self.kind = self.number + 1, None
        return pieces


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "caller": {"type": "direct"}}
