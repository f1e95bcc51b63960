"""Who asks, may he, how much, and who will know: keys, limits and the audit log behind one door."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from scumble.serve.audit import AuditLog
from scumble.serve.call import Call
from scumble.serve.chain import AuditError
from scumble.serve.errors import ApiError
from scumble.serve.keys import OPEN, Key, Keys
from scumble.serve.limits import Limiter, Sparingly

T = TypeVar("T")
DENIALS_PER_MINUTE = 120  # recorded one by one; the rest are counted by the metrics alone


@dataclass
class Access:
    """open: whoever asks may do everything, as long as there are no keys. audit None: nothing is recorded."""

    keys: Keys
    limiter: Limiter
    audit: AuditLog | None
    is_open: bool
    model_digest: Callable[[], str] = lambda: ""

    def __post_init__(self) -> None:
        self._denials = Sparingly(DENIALS_PER_MINUTE)

    async def let_in(self, call: Call, headers: Mapping[str, str]) -> None:
        """Raises 401 without a key, 403 without its scope, 429 over its limit, 503 where nothing can be recorded."""
        try:
            if self.keys.is_fresh:
                key = self._key(headers, call.owner)
            else:
                key = await self._blocking(self._key, headers, call.owner)
            call.key, call.key_name = key, key.name
            if call.scope not in key.scopes:
                raise ApiError(403, f"this key lacks the scope {call.scope}", code="scope_missing")
            if key.requests_per_minute is not None:
                await self._blocking(self.limiter.request, key)
        except ApiError as error:
            if self.audit is not None and self._denials.may("denied"):
                await self._record("denied", call, status=error.status, outcome=error.code)
            raise
        if self.audit is not None and (call.scope == "admin" or call.method != "GET"):
            await self._record("begin", call)
            call.begun = True

    def _key(self, headers: Mapping[str, str], owner: str | None) -> Key:
        if self.is_open and not self.keys.known():
            return OPEN
        if owner is not None:
            key = self.keys.named(owner)
            if key is None:
                raise ApiError(401, "the key that asked for this batch is no longer valid", code="invalid_api_key")
            return key
        words = headers.get("authorization", "").split(" ")
        secret = words[1] if len(words) == 2 and words[0].lower() == "bearer" else headers.get("x-api-key", "")
        key = self.keys.find(secret) if secret else None
        if key is None:
            raise ApiError(
                401, "a valid key is needed: Authorization: Bearer <key>, or x-api-key: <key>", code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        return key

    async def count_prompt(self, call: Call) -> None:
        """Count prompt tokens against the key's limit, before they cost anything."""
        if call.key is not None and call.key.tokens_per_minute is not None:
            await self._blocking(self.limiter.tokens, call.key, call.prompt_tokens)

    async def ended(self, call: Call) -> None:
        """Count what was written, and record the end of the call."""
        if call.key is not None and call.key.tokens_per_minute is not None:
            await self._blocking(self.limiter.wrote, call.key, call.completion_tokens)
        if self.audit is None or not call.begun:
            return
        digest = None
        if self.audit.keep_texts and call.prompts:
            digest = await self._blocking(self.audit.text, call.id, call.prompts, call.answers)
        await self._record(
            "end", call, status=call.status, outcome=call.outcome, prompt_tokens=call.prompt_tokens,
            completion_tokens=call.completion_tokens, ms=round(1000 * call.seconds, 1),
            **({} if digest is None else {"texts": digest}),
        )  # fmt: skip

    async def _record(self, kind: str, call: Call, **more: Any) -> None:
        """Nothing is answered that cannot be recorded."""
        audit = self.audit
        assert audit is not None
        who = {"request": call.id, "key": call.key_name, "method": call.method, "route": call.route}
        if kind == "begin":
            who["model"] = self.model_digest()
        try:
            await self._blocking(lambda: audit.append(kind, **who, **more))
        except AuditError:
            raise ApiError(503, "the audit log cannot be written; nothing is answered", code="audit_failed") from None

    async def _blocking(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)

    def close(self) -> None:
        if self.audit is not None:
            self.audit.close()
