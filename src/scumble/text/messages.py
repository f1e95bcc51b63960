"""What a conversation must look like before a template sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scumble.errors import InvalidRequest, shown
from scumble.events import ToolCall
from scumble.reading import parse_json

Message = Mapping[str, Any]
_MODEL_ROLES = ("assistant", "model")


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A checked copy: a non-empty list of {"role": str, "content": str or text parts}, other keys carried along.

    Content may be None or missing in a model's turn, and any JSON value in a tool's. A tool call comes out as
    {"id", "function": {"name", "arguments"}, …}, arguments as an object, also where they were JSON in a string, or the
    call a `ToolCall`. Which roles exist is the template's business.

    Raises:
        InvalidRequest: naming the message's number and what is wrong with it.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of {{role, content}}, not {type(messages).__name__}")
    if not messages:
        raise InvalidRequest("messages are empty; send at least one, e.g. {'role': 'user', 'content': 'Hello'}")
    return [_check_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _check_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{where} needs a role, such as 'user' or 'assistant'; got {shown(role)}")
    for key in ("name", "tool_call_id", "reasoning", "reasoning_content"):
        if not isinstance(message.get(key), str | None):
            raise InvalidRequest(f"{where}.{key} must be a str; got {shown(message[key])}")
    content = _check_content(message.get("content"), role, where)
    checked = {**message, "content": content} if "content" in message else dict(message)
    if message.get("tool_calls"):
        checked["tool_calls"] = _check_calls(message["tool_calls"], f"{where}.tool_calls")
    return checked


def _check_content(content: Any, role: str, where: str) -> Any:
    if isinstance(content, str) or (content is None and role in (*_MODEL_ROLES, "tool")):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return [_check_part(part, f"{where}.content[{n}]") for n, part in enumerate(content)]
    if role == "tool" and isinstance(content, Mapping | int | float):
        return content
    raise InvalidRequest(f"{where} needs content: a str or a list of text parts; got {type(content).__name__}")


def _check_part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None:
        raise InvalidRequest(f"{where} must be {{'type': 'text', 'text': …}}; got {type(part).__name__}")
    if kind != "text":
        raise InvalidRequest(
            f"{where} is of type {shown(kind)}, but the text-only model was loaded, without the vision tower and "
            "the attention within images (use_bidirectional_attention 'vision'); send text parts only"
        )
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{where}.text must be a str; got {type(part.get('text')).__name__}")
    return dict(part)


def _check_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(calls, str | bytes) or not isinstance(calls, Sequence):
        raise InvalidRequest(f"{where} must be a list of tool calls; got {type(calls).__name__}")
    return [_check_call(call, f"{where}[{n}]") for n, call in enumerate(calls)]


def _check_call(call: Any, where: str) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        call = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
    if not isinstance(call, Mapping):
        raise InvalidRequest(f"{where} must be an object with a function; got {type(call).__name__}")
    function = call.get("function", call)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where} needs function: {{'name': …, 'arguments': {{…}}}}; got {shown(function)}")
    arguments = _arguments(function.get("arguments"), f"{where}.function.arguments")
    outside = call if "function" in call else {"type": "function", "id": call.get("id")}
    return {**outside, "function": {**function, "name": name, "arguments": arguments}}


def _arguments(arguments: Any, where: str) -> Any:
    """An object; or a string that is not JSON, for the template to judge."""
    if arguments is None or arguments == "":
        return {}
    if isinstance(arguments, Mapping):
        return dict(arguments)
    if not isinstance(arguments, str):
        raise InvalidRequest(f"{where} must be an object or its JSON; got {type(arguments).__name__}")
    try:
        found = parse_json(arguments)
    except ValueError as error:
        if "too deep" in str(error):
            raise InvalidRequest(f"{where}: {error}") from None
        return arguments
    if not isinstance(found, dict):
        raise InvalidRequest(f"{where} must be an object, not {type(found).__name__}")
    return found


def join_text_parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates that know plain strings only: parts become lines of one string."""
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
