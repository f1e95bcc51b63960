"""Which tool calls an answer may or must hold: `tools`, `tool_choice` and `parallel_tool_calls` of a chat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scumble.errors import InvalidRequest, shown
from scumble.structure import StructureError, Tool

WORDS = ("auto", "none", "required")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class ToolChoice:
    """tools: those that may be called. is_forced: a call must come; else text may. several: more calls than one may."""

    tools: tuple[Tool, ...]
    is_forced: bool
    several: bool


def of_template(options: Mapping[str, Any]) -> tuple[ToolChoice | None, dict[str, Any]]:
    """What a chat's options guarantee of its calls, and the options that are left for the chat template.

    tool_choice: None: nothing is guaranteed. "auto": text, calls or both. "required": one call or several. A tool's
    name: one call of it. "none": no call, so the template is given no tools.
    parallel_tool_calls: whether several calls may stand in one answer; None: yes, but for a tool that is named.

    Raises InvalidRequest.
    """
    rest = dict(options)
    choice, parallel = rest.pop("tool_choice", None), rest.pop("parallel_tool_calls", None)
    tools = rest.get("tools") or []
    if parallel is not None and not isinstance(parallel, bool):
        raise InvalidRequest(f"parallel_tool_calls must be True or False, found {shown(parallel)}")
    if choice is None and parallel is not False:
        return None, rest
    if choice is not None and not isinstance(choice, str):
        raise InvalidRequest(f"tool_choice must be one of {', '.join(WORDS)} or a tool's name, found {shown(choice)}")
    if choice == "none":
        return None, {name: value for name, value in rest.items() if name != "tools"}
    known = {tool.name: tool for tool in map(_tool, tools if isinstance(tools, Sequence) else [tools])}
    if len(known) < len(tools):
        raise InvalidRequest(
            f"two tools have the same name; the names are {[_function(tool)['name'] for tool in tools]}"
        )
    if not known:
        if choice in (None, "auto"):
            return None, rest
        raise InvalidRequest(f"tool_choice is {shown(choice)}, but there are no tools; give at least one")
    if choice in (None, "auto", "required"):
        return ToolChoice(tuple(known.values()), choice == "required", parallel is not False), rest
    if choice not in known:
        raise InvalidRequest(
            f"tool_choice must be one of {', '.join(WORDS)} or a tool's name ({', '.join(known)}), "
            f"found {shown(choice)}"
        )
    return ToolChoice((known[choice],), True, parallel is True), rest


def _function(tool: Any) -> Mapping[str, Any]:
    """{"type": "function", "function": {…}}, or the inner object alone."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"a tool must be an object with function: {{'name': …}}; found {shown(tool)}")
    return function


def _tool(tool: Any) -> Tool:
    function = _function(tool)
    name, strict = function["name"], function.get("strict")
    if not _NAME.fullmatch(name) or name in WORDS:
        raise InvalidRequest(
            f"a tool's name must be 1 to 64 letters, digits, _, . or -, and none of {', '.join(WORDS)}; "
            f"found {shown(name)}"
        )
    try:
        return Tool.of(name, function.get("parameters"), strict is not False)
    except StructureError as error:
        raise StructureError(f"tool {name}: {error}") from None
