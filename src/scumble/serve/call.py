"""One HTTP request while it is answered: what the log, the metrics and the audit trail will say of it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from scumble.events import Generation
from scumble.serve.keys import Key


@dataclass
class Call:
    """id: sent as x-request-id. route: the route's pattern, never the path. prompts, answers: texts, kept only where
    the operator asked for them to be kept."""

    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    started: float = field(default_factory=time.perf_counter)
    route: str = ""
    method: str = ""
    key: Key | None = None
    key_name: str = ""
    scope: str = ""
    owner: str | None = None  # the key that this server itself asks for, by name: a batch's
    status: int = 0
    outcome: str = ""
    begun: bool = False  # the audit log holds the call's beginning, and waits for its end
    prompt_tokens: int = 0
    completion_tokens: int = 0
    passes: int = 0
    first_text: float | None = None  # seconds from the request to its first text
    prompts: list[Any] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def saw_text(self) -> None:
        if self.first_text is None:
            self.first_text = time.perf_counter() - self.started

    def finished(self, generation: Generation) -> None:
        """One of the request's answers is there."""
        self.saw_text()
        self.completion_tokens += len(generation.token_ids)
        self.passes += sum(generation.passes)
        self.answers.append(generation.text)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


def call_of(request: Request) -> Call:
    return request.scope["scumble.call"]
