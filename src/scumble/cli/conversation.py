"""What a chat remembers, and how it answers."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from scumble.cli.canvas_view import CanvasView
from scumble.cli.follow import follow, print_summary
from scumble.cli.screen import LiveScreen, PlainScreen, Screen
from scumble.cli.terminal import quiet_keyboard, visible
from scumble.decode import Request
from scumble.errors import InvalidRequest, ScumbleError
from scumble.events import Generation
from scumble.llm import LLM
from scumble.settings import GenerationConfig


@dataclass
class Conversation:
    """The messages so far, and everything needed for the next answer. save_to: written after every answer."""

    llm: LLM
    config: GenerationConfig
    console: Console
    live: bool
    delay: float = 0.0
    save_to: Path | None = None
    system: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> bool:
        """Answer a message on the screen; False when Ctrl-C stopped the answer, of which what was committed stays.

        A message that gets no answer at all is forgotten, so that turns keep alternating.
        """
        messages = [*self.all_messages(), {"role": "user", "content": text}]
        request = self.llm.chat_request(messages, self.config)
        events = self.llm.stream_request(request)
        with quiet_keyboard(self.live):
            outcome = follow(events, self._screen(request), self.delay)
        sys.stdout.flush()
        whole = outcome.generation is not None
        answer = outcome.generation.text if outcome.generation is not None else outcome.text
        if whole or answer:
            self.messages += [messages[-1], {"role": "assistant", "content": answer}]
            if self.save_to is not None:
                self._write(self.save_to)
        if self.live:
            print_summary(self.console, outcome, request.decoder)
        if outcome.generation is not None:
            self._explain(outcome.generation)
        return whole

    def _explain(self, generation: Generation) -> None:
        """Say what else there was besides text, where that leaves a person with less than an answer."""
        if not generation.thinking_closed:
            self.note(f"the answer ended inside its thinking, after {generation.thinking_tokens} tokens of it")
        for call in generation.tool_calls:
            self.note(
                f"asks for {call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)}), which nobody runs"
            )

    def all_messages(self) -> list[dict[str, Any]]:
        start = [{"role": "system", "content": self.system}] if self.system else []
        return [*start, *self.messages]

    def reset(self) -> None:
        self.messages = []
        self.note("the conversation is empty")

    def set_system(self, text: str) -> None:
        """New instructions start a new conversation: what was said before was said under others."""
        if text != self.system:
            self.system, self.messages = text, []

    def set_seed(self, text: str) -> None:
        try:
            seed = int(text)
        except ValueError:
            raise InvalidRequest(f"/seed takes a whole number, found {text!r}") from None
        self.config = replace(self.config, seed=seed)
        self.note(f"seed {seed}")

    def save(self, path: Path | None) -> None:
        path = path or self.save_to
        if path is None:
            raise InvalidRequest("/save needs a file name")
        self._write(path)
        self.note(f"{len(self.messages)} messages saved to {path}")

    def note(self, text: str) -> None:
        """A line for the person, not part of the conversation; said only where somebody watches."""
        if self.console.is_terminal:
            self.console.print(Text(visible(text), "dim"), soft_wrap=True)

    def complain(self, text: str) -> None:
        """One line about what could not be done; the conversation goes on."""
        self.console.print(Text(visible(f"scumble: error: {text}"), "dim"), soft_wrap=True)

    def _write(self, path: Path) -> None:
        value = {
            "model": str(self.llm.folder),
            "config": {name: value for name, value in asdict(self.config).items() if value is not None},
            "messages": self.all_messages(),
        }
        try:
            write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise ScumbleError(f"{path}: cannot be written: {error.strerror or error}") from None

    def _screen(self, request: Request) -> Screen:
        if not self.live:
            return PlainScreen()
        view = CanvasView(self.llm.tokenizer, request.eos_ids, request.max_new_tokens)
        passes = request.schedule.passes
        return LiveScreen(self.console, view, "", passes, request.max_new_tokens, len(request.noises))


def write_whole(path: Path, text: str) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half. Private to its owner."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
