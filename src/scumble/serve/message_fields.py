"""The bodies of Anthropic's /v1/messages: blocks, turns, tools; and what of them the chat template sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from scumble.serve.errors import ApiError
from scumble.serve.fields import Body, Sampler, checked_stops, unsupported
from scumble.serve.tools import TOOL_NAME, FunctionSpec, tool_options
from scumble.settings import GenerationConfig

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
        return self.generation_config(self.max_tokens, stop=checked_stops(self.stop_sequences), **self._format())

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
