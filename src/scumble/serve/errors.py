"""Errors as the APIs spell them: one exception here, two shapes on the wire (OpenAI's and Anthropic's)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from scumble.errors import InvalidRequest, PromptTooLong, ScumbleError, TemplateError, TokenizerError

OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}
ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class ApiError(HTTPException):
    """An answer other than 2xx. message: for people; code: for programs; param: the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers: dict[str, str] = dict(headers or {})

    def openai(self) -> dict[str, Any]:
        """The body as OpenAI's clients read it."""
        kind = OPENAI_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self, request_id: str) -> dict[str, Any]:
        """The body as Anthropic's clients read it."""
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}


def speaks_anthropic(path: str) -> bool:
    """Whether the route at this path belongs to Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def translated(error: Exception, folder: str | None) -> ApiError:
    """Any exception as an ApiError. folder: the model's folder, whose path must not reach a client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, PromptTooLong):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, ScumbleError):
        text = str(error) if folder is None else str(error).replace(folder, "the model's folder")
        if isinstance(error, InvalidRequest):
            return ApiError(400, text, code="invalid_value")
        if isinstance(error, TemplateError | TokenizerError):
            return ApiError(400, text, code="unsupported_by_model")
    # The message of an unforeseen exception may hold anything, also the prompt: it stays inside.
    return ApiError(500, "the server failed at this request; its log says more under the request id", code="internal")
