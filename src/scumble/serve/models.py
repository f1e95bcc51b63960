"""What is served, and its tokenizer: /v1/models, /tokenize, /detokenize, /tokenizer_info, /version, /openapi.json."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from scumble import __version__
from scumble.serve.chat import ChatMessage
from scumble.serve.errors import ApiError
from scumble.serve.fields import Body
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.service import Service, service_of
from scumble.serve.tools import Tool

router = APIRouter(route_class=ScopedRoute)


def _model(service: Service, name: str) -> dict[str, Any]:
    backend = service.backend
    return {
        "id": name,
        "object": "model",
        "created": backend.created,
        "owned_by": "scumble",
        "root": backend.names[0],
        "max_model_len": backend.context,
        "scumble": {
            "canvas_length": backend.llm.model.config.canvas_length,
            "digest": f"sha256:{backend.digest}",
            "infill": backend.can_fill,
            "edit": backend.can_edit,
            "decoders": ["diffusion", "autoregressive"],
        },
    }


@router.get("/v1/models", summary="List what is served")
@scope("generate")
async def list_models(request: Request) -> dict[str, Any]:
    service = service_of(request)
    return {"object": "list", "data": [_model(service, name) for name in service.backend.names]}


@router.get("/v1/models/{name:path}", summary="One model")
@scope("generate")
async def get_model(name: str, request: Request) -> dict[str, Any]:
    service = service_of(request)
    return _model(service, service.check_model(name))


class TokenizeRequest(Body):
    """Either a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    return_token_strs: bool = False


@router.post("/tokenize", summary="Token ids of a text or a conversation")
@scope("generate")
async def tokenize(body: TokenizeRequest, request: Request) -> dict[str, Any]:
    service = service_of(request)
    service.check_model(body.model)
    backend = service.backend
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "send either prompt or messages", param="prompt")
    if body.messages is not None:
        messages = [message.as_template_sees_it() for message in body.messages]
        options: dict[str, Any] = {"add_generation_prompt": body.add_generation_prompt}
        if body.tools:
            options["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
        ids = await backend.prepare(lambda: backend.encode_chat(messages, options))
    else:
        prompt, bos = body.prompt or "", backend.tokenizer.bos_id
        ids = await backend.prepare(lambda: backend.tokenizer.encode(prompt))
        if body.add_special_tokens and bos is not None:
            ids = [bos, *ids]
    out: dict[str, Any] = {"count": len(ids), "max_model_len": backend.context, "tokens": ids}
    if body.return_token_strs:
        out["token_strs"] = [backend.token_text(token) for token in ids]
    return out


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[int]


@router.post("/detokenize", summary="The text of token ids")
@scope("generate")
async def detokenize(body: DetokenizeRequest, request: Request) -> dict[str, Any]:
    service = service_of(request)
    service.check_model(body.model)
    vocab = service.backend.llm.model.config.vocab_size
    if any(not 0 <= token < vocab for token in body.tokens):
        raise ApiError(400, f"token ids must lie in 0 … {vocab - 1}", param="tokens")
    return {"prompt": service.backend.tokenizer.decode(body.tokens, skip_special=False)}


@router.get("/tokenizer_info", summary="The tokenizer's own marks and the chat template, as vLLM tells them")
@scope("generate")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """What lm-eval's `tokenizer_backend=remote` asks for before it scores."""
    backend = service_of(request).backend
    shape, tokenizer = backend.llm.model.config, backend.tokenizer
    marks = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(shape.eos_token_ids), None),
             "pad_token": shape.pad_token_id}  # fmt: skip
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": backend.context,
        "vocab_size": shape.vocab_size,
        **{name: None if token is None else backend.token_text(token) for name, token in marks.items()},
    }


@router.get("/version", summary="The server's version")
@scope("generate")
async def version() -> dict[str, str]:
    return {"version": __version__}


@router.get("/openapi.json", include_in_schema=False)
@scope("generate")
async def openapi(request: Request) -> dict[str, Any]:
    return request.app.openapi()
