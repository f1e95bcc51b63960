"""A conversation to a prompt: chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scumble.errors import InvalidRequest, TemplateError, shown
from scumble.reading import MOST_TOKENIZER, is_there, parse_json, read_bytes, read_json_file, read_text
from scumble.text.markers import TURN_CLOSE, TURN_OPEN
from scumble.text.messages import Message, check_messages, join_text_parts
from scumble.text.provenance import Marks
from scumble.text.renderer import RENDER_SECONDS, SHARED
from scumble.text.tokenizer import Tokenizer, read_tokenizer_config, require_unicode, too_long

BUILT_IN_TEMPLATE = Path(__file__).with_name("default_template.jinja").read_text(encoding="utf-8")

# A template that looks at a part's type handles lists of parts itself.
_KNOWS_PARTS = re.compile(r"""\[\s*['"]type['"]\s*\]|\.type\b""")


class ChatTemplate:
    """A checkpoint's chat template, run in a sandbox that ends it after `seconds` (see renderer.py).

    Args:
        source: jinja2 source, as in `chat_template.jinja`.
        tool_source: another template, for conversations with tools.
        token_names: tokens that the template may ask for by name, e.g. {"bos_token": "<bos>", "eos_token": "<eos>"}.
        seconds: the time allowed for one render.
    """

    def __init__(
        self,
        source: str,
        *,
        tool_source: str | None = None,
        token_names: Mapping[str, str] | None = None,
        seconds: float = RENDER_SECONDS,
    ) -> None:
        self.source = source
        self.tool_source = tool_source
        self._token_names = dict(token_names or {})
        self._seconds = seconds

    @classmethod
    def from_folder(cls, path: str | Path, tokenizer: Tokenizer) -> ChatTemplate:
        """A folder's template: `chat_template.jinja`, else what the JSON files hold, else the built-in one.

        Raises:
            TemplateError: there is none, and the tokenizer lacks the turn markers that the built-in one needs;
                or the file is damaged. A mistake inside a template shows when it first renders.
        """
        folder = Path(path)
        sources = find_sources(folder)
        if "default" in sources:
            return cls(sources["default"], tool_source=sources.get("tool_use"), token_names=tokenizer.token_names)
        if sources:
            raise TemplateError(f"{folder} names chat templates {sorted(sources)}, but none is called 'default'")
        return cls.built_in(tokenizer)

    @classmethod
    def built_in(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The built-in template in DiffusionGemma's format; needs `<|turn>` and `<turn|>` in the vocabulary."""
        _require_turns([token for token in (TURN_OPEN, TURN_CLOSE) if tokenizer.token_id(token) is not None])
        return cls(BUILT_IN_TEMPLATE, token_names=tokenizer.token_names)

    @property
    def is_built_in(self) -> bool:
        """Whether the checkpoint came without a template of its own."""
        return self.source == BUILT_IN_TEMPLATE

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        **extra: Any,
    ) -> str:
        """The conversation as one string, the template's markers written out. For people; models get `encode`.

        Args:
            messages: [{"role": "user", "content": "…"}, …]; content a str or a list of {"type": "text", "text": …}.
            tools: JSON schemas of functions, as the template expects them.
            add_generation_prompt: end with the opening of the model's turn.
            enable_thinking: asked of the template by this name; None leaves it to the template.
            extra: further variables for the template.

        Raises:
            InvalidRequest: a message is malformed, holds something other than text, or is not valid Unicode.
            TemplateError: the template failed, refused, left its sandbox or took too long.
        """
        return self._run(self._caller_variables(messages, tools, enable_thinking, extra), add_generation_prompt)

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
        context_tokens: int | None = None,
        **extra: Any,
    ) -> list[int]:
        """The conversation as token ids, in which only the template's own markers are special ids.

        Where no string of the caller's holds a special token's text, these are exactly the ids of the rendered string.
        Where one does, its spelled-out tokens are encoded as ordinary text (see provenance.py).
        Arguments and errors as for `render`; context_tokens as `context` of `Tokenizer.encode`.
        """
        variables = self._caller_variables(messages, tools, enable_thinking, extra)
        marks = Marks(tokenizer.special_tokens, json.dumps(variables, ensure_ascii=False) + self._pick(variables))
        marked = marks.mark(variables)
        rendered = self._run(marked, add_generation_prompt)
        if marked == variables:
            return tokenizer.encode(rendered, special=True, context=context_tokens)
        if context_tokens is not None:
            tokenizer.refuse_if_far_too_long(marks.without(rendered), context_tokens)
        ids = [id for piece in marks.pieces(rendered) for id in tokenizer.encode(piece.text, special=piece.special)]
        if context_tokens is not None and len(ids) >= context_tokens:
            raise too_long(str(len(ids)), context_tokens)
        return ids

    def _caller_variables(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        enable_thinking: bool | None,
        extra: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Everything that comes from outside and so is not to be trusted, as plain JSON values."""
        variables = {**extra, "messages": check_messages(messages), "tools": _check_tools(tools)}
        if enable_thinking is not None:
            variables["enable_thinking"] = enable_thinking
        if not _KNOWS_PARTS.search(self._pick(variables)):
            variables["messages"] = join_text_parts(variables["messages"])
        try:
            text = json.dumps(variables, ensure_ascii=False, allow_nan=False)
            require_unicode(text, "the conversation")
            return parse_json(text)
        except InvalidRequest:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"messages, tools and template options must be JSON values: {error}") from error

    def _pick(self, variables: Mapping[str, Any]) -> str:
        return self.tool_source if self.tool_source and variables["tools"] else self.source

    def _run(self, variables: Mapping[str, Any], add_generation_prompt: bool) -> str:
        everything = {**self._token_names, **variables, "add_generation_prompt": add_generation_prompt}
        return SHARED.render(self._pick(variables), everything, seconds=self._seconds)


def check_can_chat(folder: Path) -> None:
    """Refuse a folder that cannot chat without reading more of it than the text of its tokenizer.

    Raises TemplateError, as `ChatTemplate.from_folder` does, where there is neither a template nor the turn markers.
    """
    file = folder / "tokenizer.json"
    if is_there(file) and not find_sources(folder):
        try:
            text = read_bytes(file, MOST_TOKENIZER)
        except OSError as error:
            raise TemplateError(f"{file} cannot be read: {error}") from error
        _require_turns([token for token in (TURN_OPEN, TURN_CLOSE) if token.encode() in text])


def _require_turns(found: Sequence[str]) -> None:
    missing = [token for token in (TURN_OPEN, TURN_CLOSE) if token not in found]
    if missing:
        raise TemplateError(
            f"no chat template in the folder, and the built-in one needs {' and '.join(missing)} as tokens; "
            "add a chat_template.jinja, or use generate instead of chat"
        )


def _check_tools(tools: Any) -> list[Mapping[str, Any]] | None:
    """A list of functions, each {"type": "function", "function": {"name", …}} or the inner object alone."""
    if not tools:
        return None
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise InvalidRequest(f"tools must be a list of functions' JSON schemas; got {type(tools).__name__}")
    for number, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InvalidRequest(f"tools[{number}] must be an object with function: {{'name': …}}; got {shown(tool)}")
    return list(tools)


def find_sources(folder: Path) -> dict[str, str]:
    """{name: jinja2 source} of a checkpoint folder; empty where it has none. Raises TemplateError for damaged files."""
    file = folder / "chat_template.jinja"
    try:
        if is_there(file):
            return {"default": read_text(file)}
        file = folder / "chat_template.json"  # as multimodal processors used to write it
        whole = read_json_file(file) if is_there(file) else {}
    except (OSError, ValueError) as error:
        raise TemplateError(f"{file} cannot be read: {error}") from error
    if not isinstance(whole, dict):
        raise TemplateError(f"{file} must hold a JSON object with chat_template, not {type(whole).__name__}")
    found = whole.get("chat_template")
    found = found or read_tokenizer_config(folder).get("chat_template")
    if not found:
        return {}
    if isinstance(found, str):
        return {"default": found}
    try:
        sources = {entry["name"]: entry["template"] for entry in found}
    except (TypeError, KeyError) as error:
        raise TemplateError(f"chat_template in {folder} must be a str or a list of {{name, template}}") from error
    if not all(isinstance(text, str) for text in (*sources, *sources.values())):
        raise TemplateError(f"chat_template in {folder}: every name and every template must be a str")
    return sources
