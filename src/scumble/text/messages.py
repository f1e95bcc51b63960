"""What a conversation must look like before a template sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scumble.errors import InvalidRequest

Message = Mapping[str, Any]


def check_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A checked copy: a non-empty list of {"role": str, "content": str or text parts}, other keys carried along.

    Content may be None or missing where the message has `tool_calls`. Which roles exist is the template's business.

    Raises:
        InvalidRequest: naming the message's number and what is wrong with it.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequest(f"messages must be a list of {{role, content}}, not {type(messages).__name__}")
    if not messages:
        raise InvalidRequest("messages are empty; send at least one, e.g. {'role': 'user', 'content': 'Hello'}")
    return [_check_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _check_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{where} needs a role, such as 'user' or 'assistant'; got {role!r}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return dict(message)
    if isinstance(content, str):
        return dict(message)
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return {**message, "content": [_check_part(part, f"{where}.content[{n}]") for n, part in enumerate(content)]}
    raise InvalidRequest(f"{where} needs content: a str or a list of text parts; got {type(content).__name__}")


def _check_part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind is None:
        raise InvalidRequest(f"{where} must be {{'type': 'text', 'text': …}}; got {type(part).__name__}")
    if kind != "text":
        raise InvalidRequest(f"{where} is of type {kind!r}, but the text-only model was loaded; send text parts only")
    if not isinstance(part.get("text"), str):
        raise InvalidRequest(f"{where}.text must be a str; got {type(part.get('text')).__name__}")
    return dict(part)


def join_text_parts(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For templates that know plain strings only: parts become lines of one string."""
    return [
        {**message, "content": "\n".join(part["text"] for part in message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]
