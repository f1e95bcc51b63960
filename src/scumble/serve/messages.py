"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API, whole or streamed, thinking and tools as blocks."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from scumble.events import Committed, Draft, Finished, Generation, ToolCall
from scumble.serve.backend import Backend, Job
from scumble.serve.call import Call, call_of
from scumble.serve.errors import ApiError
from scumble.serve.extension import draft_extension, generation_extension
from scumble.serve.fields import Body, Sampler, checked_stops, unsupported
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.service import Service, service_of
from scumble.serve.stream import STREAMED, ClientGone, EventStream, named_event, while_connected
from scumble.serve.tools import TOOL_NAME, FunctionSpec, tool_options
from scumble.settings import GenerationConfig

router = APIRouter(route_class=ScopedRoute)


# Accepted and reported: they change no text.
REPORTED = (
    "metadata", "service_tier", "cache_control", "diagnostics", "inference_geo", "speed", "user_profile_id",
    "workspace_id",
)  # fmt: skip


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: dict[str, Any] | None = None
    citations: list[Any] | None = None


class ThinkingBlock(Body):
    """Thinking of an earlier turn; models do not read it again."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str = Field(pattern=TOOL_NAME)
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None


Block = TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock


class Turn(Body):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class ToolSpec(Body):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: dict[str, Any] | None = None
    strict: bool | None = None

    def function(self) -> FunctionSpec:
        return FunctionSpec(
            name=self.name, description=self.description or "", parameters=self.input_schema, strict=self.strict
        )


class ToolChoiceSpec(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingSpec(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=1)
    display: str | None = None


class Conversation(Body):
    """What a message and a count of its tokens have in common."""

    model: str
    messages: list[Turn] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoiceSpec | None = None
    thinking: ThinkingSpec | None = None
    cache_control: dict[str, Any] | None = None

    def for_template(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The messages and options of the chat template."""
        messages: list[dict[str, Any]] = []
        if self.system:
            messages.append({"role": "system", "content": _text(self.system)})
        for turn in self.messages:
            messages += _turn_for_template(turn, messages)
        options: dict[str, Any] = {}
        options |= tool_options([tool.function() for tool in self.tools or ()], *self._choice())
        if self.thinking is not None:
            options["enable_thinking"] = self.thinking.type != "disabled"
        return messages, options

    def _choice(self) -> tuple[str | None, bool | None]:
        """The choice in OpenAI's words, and whether calls may be several."""
        choice = self.tool_choice
        if choice is None:
            return None, None
        if (choice.name is None) == (choice.type == "tool"):
            raise ApiError(400, 'tool_choice has a name where its type is "tool", and only there', param="tool_choice")
        word = {"auto": "auto", "any": "required", "none": "none"}.get(choice.type, choice.name)
        # A tool that is named may be called several times here, unless that is forbidden.
        return word, not choice.disable_parallel_tool_use if choice.type != "none" else None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    format: OutputFormat | None = None
    effort: str | None = None  # reported: there is no such dial
    task_budget: dict[str, Any] | None = None


class MessageRequest(Conversation, Sampler):
    max_tokens: int = Field(ge=1)
    stream: bool = False
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, le=2**64 - 1)
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    diagnostics: dict[str, Any] | None = None
    inference_geo: str | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    container: Any = None
    output_config: OutputConfig | None = None

    def config(self) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=self.max_tokens,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            temperature=self.temperature,
            top_p=self.top_p if self.top_p not in (None, 0, 1, 1.0) else None,
            stop=checked_stops(self.stop_sequences),
            **self.sampler_settings(),
            **self._format(),
        )

    def _format(self) -> dict[str, Any]:
        wanted = None if self.output_config is None else self.output_config.format
        return {} if wanted is None else {"json_schema": wanted.schema_}

    def not_applied(self) -> list[str]:
        """Names to report. Raises ApiError for fields that cannot apply and would change the answer."""
        if self.container is not None:
            raise unsupported("container", "leave it out")
        names = [name for name in REPORTED if getattr(self, name)]
        for name in ("effort", "task_budget"):
            if getattr(self.output_config, name, None) is not None:
                names.append(f"output_config.{name}")
        if self.thinking is not None and self.thinking.budget_tokens is not None:
            names.append("thinking.budget_tokens")
        return [f"{name} not applied" for name in names]


def _text(content: str | Sequence[TextBlock] | None) -> str:
    return content or "" if content is None or isinstance(content, str) else "\n".join(one.text for one in content)


def _turn_for_template(turn: Turn, before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One turn; results of tools become messages of their own, with the name of the tool that was called."""
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    names = {call["id"]: call["function"]["name"] for message in before for call in message.get("tool_calls", ())}
    results, texts, calls, thinking = [], [], [], []
    for block in turn.content:
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thinking.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.tool_use_id not in names:
            raise ApiError(400, "a tool_result answers a tool_use of an earlier message, by its id", param="messages")
        else:
            name = names[block.tool_use_id]
            content = _text(block.content)
            results.append({"role": "tool", "tool_call_id": block.tool_use_id, "name": name, "content": content})
    if calls and turn.role != "assistant":
        raise ApiError(400, "tool_use belongs to the assistant", param="messages")
    own: dict[str, Any] = {"role": turn.role, "content": "\n".join(texts)}
    if calls:
        own["tool_calls"] = calls
    if thinking:
        own["reasoning_content"] = "\n".join(thinking)
    return [*results, *([own] if texts or calls or not results else [])]


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
            content.append({"type": "text", "text": generation.text})
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
            start = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": self._usage(None)}
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
                            for piece in blocks.open("text", {"text": ""}):
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
            pieces += blocks.open("text", {"text": ""})
            pieces.append(blocks.delta({"type": "text_delta", "text": event.text}))
        for one in event.tool_calls:
            pieces += blocks.close()
            pieces += blocks.open("tool_use", {**_tool_use(one), "input": {}})
            arguments = json.dumps(dict(one.arguments), ensure_ascii=False)
            pieces.append(blocks.delta({"type": "input_json_delta", "partial_json": arguments}))
            pieces += blocks.close()
        return pieces

    def _stop(self, generation: Generation) -> dict[str, Any]:
        reason = {"stop": "end_turn", "length": "max_tokens"}[generation.finish_reason]
        return {"stop_reason": "tool_use" if generation.tool_calls else reason, "stop_sequence": None}

    def _usage(self, generation: Generation | None) -> dict[str, Any]:
        cached = 0 if generation is None else generation.cached_tokens
        return {
            "input_tokens": len(self.job.prompt) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0 if generation is None else len(generation.token_ids),
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
    return {"type": "tool_use", "id": call.id, "name": call.name}
