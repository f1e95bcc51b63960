"""Tools, the choice of a tool, formats of answers: what the APIs ask for, as templates and GenerationConfig say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from scumble.serve.backend import Backend
from scumble.serve.errors import ApiError
from scumble.serve.fields import Body, unsupported

TOOL_NAME = r"^[A-Za-z0-9_.-]{1,64}$"  # names end up in the prompt: no white space, no markers, no quotes


class FunctionSpec(Body):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Body):
    name: str = Field(pattern=TOOL_NAME)


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class JsonSchema(Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


def template_tools(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> list[dict[str, Any]]:
    """The tools that the chat template is given; none where the choice is "none"."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice names a tool, but tools are empty", param="tool_choice")
        return []
    if choice == "none":
        return []
    if choice not in (None, "auto"):
        raise unsupported("tool_choice", 'a call cannot be forced yet; send "auto" or "none"')
    if parallel is False:
        raise unsupported("parallel_tool_calls", "the number of calls cannot be limited; leave it out or send true")
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def constraint(wanted: ResponseFormat | None, backend: Backend) -> dict[str, Any]:
    """Settings that make an answer have the wanted form."""
    if wanted is None or wanted.type == "text":
        return {}
    if not backend.can_constrain("json_schema"):
        raise unsupported(
            "response_format", 'this build cannot guarantee a format; leave it out or send {"type": "text"}'
        )
    if wanted.type == "json_object":
        return {"json_schema": {"type": "object"}}
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ApiError(400, "response_format.json_schema.schema is missing", param="response_format")
    return {"json_schema": wanted.json_schema.schema_}
