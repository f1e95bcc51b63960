"""The server's only view of LLM: requests in, events out. Everything else in this package knows no model.

One engine works for all requests, on a thread of its own. A reader who leaves ends the work within one pass. The slots
here bound how many requests the engine is given; it decides itself which of them share a pass.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from scumble.decode import Request
from scumble.errors import InvalidRequest, PromptTooLong
from scumble.events import Finished, Generation, StreamEvent, TokenLogprobs
from scumble.llm import LLM
from scumble.reads import score_ids
from scumble.requests import Prompt
from scumble.serve.errors import ApiError
from scumble.serve.fields import MAX_SEED
from scumble.serve.slots import Slots
from scumble.settings import SETTINGS, GenerationConfig
from scumble.text import Tokenizer
from scumble.text.infill import can_infill, can_repair
from scumble.tool_choice import ToolChoice, of_template

T = TypeVar("T")
TOOL_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls")
NOT_FOR_THE_TEMPLATE = ("chat_template_kwargs", "tool_choice", "parallel_tool_calls")


@dataclass(frozen=True)
class Job:
    """One answer to be made. prompt: token ids; typed: what its first token repeats of the prompt (see LLM.generate);
    tools: the calls that are guaranteed; may_think: thinking may come before what is guaranteed.
    notes: what of the request did not apply, by name. request: what the engine gets, once it is checked."""

    prompt: tuple[int, ...]
    config: GenerationConfig
    draft: tuple[int, ...] | None = None
    typed: str = ""
    tools: ToolChoice | None = None
    may_think: bool = False
    notes: tuple[str, ...] = ()
    request: Request | None = None


class Backend:
    """An LLM behind slots. names: what clients call the model."""

    def __init__(self, llm: LLM, names: Sequence[str], slots: Slots) -> None:
        self.llm = llm
        self.names = tuple(names)
        self.slots = slots
        self.created = int(time.time())
        self.digest = "unknown"
        self.failures = 0  # answers that ended in an error that nobody foresaw
        self._open: set[asyncio.Future[ApiError]] = set()  # of each answer in the making: what ends it from outside
        self._helpers = ThreadPoolExecutor(4, "scumble-prepare")

    # --- facts ----------------------------------------------------------------------------------------------------

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.llm.model.config.max_position_embeddings

    @property
    def folder(self) -> str | None:
        return None if self.llm.folder is None else str(self.llm.folder)

    @property
    def tokenizer(self) -> Tokenizer:
        if self.llm.tokenizer is None:
            raise ApiError(400, "this model has no tokenizer; only prompts as token ids work", code="no_tokenizer")
        return self.llm.tokenizer

    @property
    def can_fill(self) -> bool:
        return can_infill(self.llm.tokenizer)

    @property
    def can_edit(self) -> bool:
        return can_repair(self.llm.tokenizer)

    def can_constrain(self, name: str) -> bool:
        """Whether GenerationConfig has this setting, e.g. json_schema."""
        return name in SETTINGS

    def engine_stats(self) -> dict[str, int]:
        """What the engine says of itself."""
        return asdict(self.llm.stats())

    def measure_digest(self) -> str:
        """SHA-256 over the checkpoint's files, in the order of their names: what the audit log calls the model."""
        digest = hashlib.sha256()
        folder = self.llm.folder
        for path in sorted(Path(folder).glob("*")) if folder is not None else ():
            if path.is_file() and path.suffix in (".json", ".safetensors", ".jinja", ".gguf"):
                digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
                with path.open("rb") as file:
                    while block := file.read(2**20):
                        digest.update(block)
        self.digest = digest.hexdigest()
        return self.digest

    # --- requests -------------------------------------------------------------------------------------------------

    async def prepare(self, make: Callable[[], T]) -> T:
        """Run something that tokenizes or renders, away from the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, make)

    def text(self, prompt: str, config: GenerationConfig) -> Job:
        return self._fitted(_job(self.llm.text_prompt(prompt, config)))

    def ids(self, prompt: Sequence[int], config: GenerationConfig) -> Job:
        vocab = self.llm.model.config.vocab_size
        for token in prompt:
            if not 0 <= token < vocab:
                raise InvalidRequest(f"prompt ids must lie in 0 … {vocab - 1} (the vocabulary), found {token}")
        return self._fitted(Job(tuple(prompt), config))

    def chat(self, messages: Sequence[Mapping[str, Any]], config: GenerationConfig, template: Mapping[str, Any]) -> Job:
        """template: chat_template_kwargs, enable_thinking, and what tools.tool_options gives."""
        tools, _ = of_template({name: template[name] for name in TOOL_OPTIONS if name in template})
        own = template.get("chat_template_kwargs") or {}
        may_think = bool(template.get("enable_thinking", own.get("enable_thinking")))
        ids = self.encode_chat(messages, template)
        return self._fitted(Job(tuple(ids), config, tools=tools, may_think=may_think))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], template: Mapping[str, Any]) -> list[int]:
        taken = {*self.tokenizer.token_names, "messages", "tools", "add_generation_prompt", "raise_exception"}
        for name in template.get("chat_template_kwargs") or {}:
            if name in taken or not name.isidentifier() or name.startswith("_"):
                raise InvalidRequest(f"chat_template_kwargs may not set {name!r}, which belongs to the server")
        given = {**(template.get("chat_template_kwargs") or {})}
        given |= {name: value for name, value in template.items() if name not in NOT_FOR_THE_TEMPLATE}
        if "tools" in given:  # how strictly a tool is called is nothing that the model reads
            given["tools"] = [_without_strict(tool) for tool in given["tools"]]
        return self.llm.encode_chat(messages, **given)

    def fill(self, prefix: str, suffix: str, config: GenerationConfig, damaged: str | None = None) -> Job:
        if not (self.can_fill if damaged is None else self.can_edit):
            what = "fill in the middle" if damaged is None else "edit a text in place"
            raise ApiError(400, f"this model cannot {what}: its tokenizer lacks the markers", code="unsupported")
        return self._fitted(_job(self.llm.fill_prompt(prefix, suffix, config, damaged)))

    def predicted(self, job: Job, text: str) -> Job:
        """The job, its canvas starting from a predicted text. The other decoder has no canvas to start."""
        if self._decoder(job.config) == "autoregressive":
            return replace(job, notes=(*job.notes, "prediction not applied"))
        room, draft = job.config.max_new_tokens, self.llm.draft(text)
        if room is not None and len(self.tokenizer.encode(text)) > room:  # the rest can be in no answer
            return replace(job, draft=draft[:room], notes=(*job.notes, f"prediction cut to {room} tokens"))
        return replace(job, draft=draft)

    def _fitted(self, job: Job) -> Job:
        """The job with its answer cut to what the context has room for, and settings of the other decoder left out."""
        room, config, notes = self.context - len(job.prompt), job.config, []
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(job.prompt)} tokens; this model's context holds {self.context}, and at least one "
                "is needed for the answer; shorten the prompt"
            )
        if config.max_new_tokens is not None and config.max_new_tokens > room:
            config = replace_settings(config, max_new_tokens=room)
            notes.append(f"max_tokens cut to {room}")
        idle = replace_settings(
            config, decoder=self._decoder(config)
        ).without_effect()  # of the other decoder: ordinary clients send top_p without a thought
        notes += [f"{name} not applied" for name in idle]
        if idle:
            config = replace_settings(config, **dict.fromkeys(idle))
        return replace(job, config=config, notes=(*job.notes, *notes))

    def _decoder(self, config: GenerationConfig) -> str:
        return config.decoder or self.llm.defaults.get("decoder", "diffusion")

    # --- answers --------------------------------------------------------------------------------------------------

    async def answer(self, job: Job) -> Generation:
        """The whole answer."""
        async for event in self.events(job):
            if isinstance(event, Finished):
                return event.generation
        raise RuntimeError("a stream ends with Finished")

    async def events(self, job: Job, drafts: bool = False) -> AsyncGenerator[StreamEvent, None]:
        """The answer as it comes; drafts only where they are wanted. Closing it ends the work."""
        await self.slots.acquire()
        started = time.perf_counter()
        ended: asyncio.Future[ApiError] = asyncio.get_running_loop().create_future()
        self._open.add(ended)
        stream, step = None, None
        try:
            stream = self._start(job, drafts)
            while True:
                step = asyncio.ensure_future(anext(stream))
                await asyncio.wait({step, ended}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise ended.result()
                try:
                    event = step.result()
                except StopAsyncIteration:
                    return
                yield event
        finally:
            self._open.discard(ended)
            if step is not None and not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            if stream is not None:
                await stream.aclose()
            self.slots.release(time.perf_counter() - started)

    def fail_all(self, error: ApiError) -> None:
        """End every answer in the making with an error that says why."""
        for ended in list(self._open):
            if not ended.done():
                ended.set_result(error)

    def _start(self, job: Job, drafts: bool) -> AsyncGenerator[StreamEvent, None]:
        request = job.request or self._request(job)
        return self.llm.astream_request(request, drafts=drafts)

    def _request(self, job: Job) -> Request:
        return self.llm.request(
            job.prompt, job.config, draft=job.draft, typed=job.typed, tools=job.tools, may_think=job.may_think
        )

    def checked(self, job: Job) -> Job:
        """Refuse at once what the engine would refuse, so that a stream does not have to begin in order to fail."""
        return replace(job, request=self._request(job))

    @property
    def is_busy(self) -> bool:
        """Whether the engine has something to do."""
        return bool(self._open)

    def restart(self) -> None:
        """A new engine over the same weights, for one whose thread is gone or stuck."""
        old = self.llm
        self.llm = LLM(old.model, old.tokenizer, folder=old.folder, defaults=old.defaults)

    async def warm_up(self) -> None:
        """One short answer: kernels are compiled, buffers allocated."""
        config = GenerationConfig(max_new_tokens=2, max_denoising_steps=2)
        first = 2 if self.llm.model.config.vocab_size > 2 else 0
        await self.answer(Job((first,), config))

    # --- texts and tokens -----------------------------------------------------------------------------------------

    def token_text(self, token: int) -> str:
        return "" if self.llm.tokenizer is None else self.llm.tokenizer.decode([token], skip_special=False)

    def reasoning_tokens(self, generation: Generation) -> int:
        """How many of an answer's tokens are thinking."""
        return generation.thinking_tokens

    async def scored(self, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
        """Log-probabilities, under the causal model, of ids[1:] given what stands before each, with `top` others; in a
        slot, as the model's other work is."""
        await self.slots.acquire()
        try:
            return await self.prepare(lambda: score_ids(self.llm, ids, top))
        finally:
            self.slots.release()

    def close(self) -> None:
        self._helpers.shutdown(wait=False, cancel_futures=True)


def replace_settings(config: GenerationConfig, **changes: Any) -> GenerationConfig:
    """The same settings but for those named; None unsets one."""
    return GenerationConfig(**{name: getattr(config, name) for name in SETTINGS} | changes)


def with_choice_seed(job: Job, index: int) -> Job:
    """Answer number `index` of a request: the request's seed, then the next ones."""
    if index == 0:
        return job
    seed = ((job.config.seed or 0) + index) % (MAX_SEED + 1)
    return replace(job, config=replace_settings(job.config, seed=seed))


def _without_strict(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {**tool, "function": function}


def _job(prompt: Prompt) -> Job:
    return Job(*prompt)
