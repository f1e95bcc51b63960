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


def tool_options(functions: Sequence[FunctionSpec], choice: str | None, parallel: bool | None) -> dict[str, Any]:
    """Tools and the choice among them as `LLM.chat` takes them.

    choice: "none", "auto", "required" or a tool's name. A call that is asked for is guaranteed, with arguments that
    satisfy the tool's schema unless it says strict: false. Left to the model, calls are guaranteed where a tool says
    strict: true or only one call is wanted; else they are read as far as they can be, which any model can do.
    """
    if not functions:
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
        return {}
    if choice == "none":
        return {}
    is_forced = choice not in (None, "auto")
    if is_forced and choice != "required" and choice not in {one.name for one in functions}:
        raise ApiError(400, "tool_choice names a tool that is not among tools", param="tool_choice")
    tools = []
    for one in functions:
        function = one.model_dump(exclude_none=True, exclude={"strict"})
        strict = one.strict is not False if is_forced else bool(one.strict)
        tools.append({"type": "function", "function": {**function, "strict": strict}})
    options: dict[str, Any] = {"tools": tools, "parallel_tool_calls": parallel}
    if is_forced or parallel is False or any(one.strict for one in functions):
        options["tool_choice"] = choice or "auto"
    return options


def chosen(choice: ToolChoice | None) -> str | None:
    """The choice as one word."""
    return choice.function.name if isinstance(choice, NamedTool) else choice


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
