"""POST /v1/completions: text or token ids go on; with `suffix` the middle is filled; with `echo` prompts are scored."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from scumble.events import Committed, Finished, Generation, TokenLogprobs
from scumble.serve.backend import Backend, Job, with_choice_seed
from scumble.serve.call import Call, call_of
from scumble.serve.errors import ApiError
from scumble.serve.extension import draft_extension, generation_extension, usage_of
from scumble.serve.fields import OpenAISampling, Prediction, plain_text
from scumble.serve.gate import ScopedRoute, scope
from scumble.serve.service import Service, service_of
from scumble.serve.stream import DONE, STREAMED, ClientGone, EventStream, data_event, while_connected
from scumble.settings import GenerationConfig

router = APIRouter(route_class=ScopedRoute)
MAX_PROMPTS = 128
Ids = Annotated[list[int], Field(min_length=1)]


class CompletionRequest(OpenAISampling):
    refused: ClassVar[dict[str, Any]] = OpenAISampling.refused

    prompt: (
        str
        | Ids
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    suffix: str | None = None
    prediction: Prediction | None = None
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)

    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [list(self.prompt)]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


async def completion_jobs(body: CompletionRequest, backend: Backend) -> list[Job]:
    """One job a prompt and choice: prompt 0's choices first."""
    notes = tuple(f"{name} not applied" for name in body.not_applied())
    if body.suffix and body.echo:
        raise ApiError(400, "echo cannot be had with suffix; join the texts yourself", param="echo")
    if body.suffix and body.prediction is not None:
        raise ApiError(
            400, "prediction cannot be had with suffix; /v1/edit/completions starts from a text between two others",
            param="prediction",
        )  # fmt: skip
    config = body.config(body.max_tokens or (1 if body.max_tokens == 0 else None), body.logprobs)
    jobs: list[Job] = []
    for prompt in body.prompts():
        job = await backend.prepare(lambda prompt=prompt: _job(prompt, body, config, backend))
        job = replace(job, notes=(*notes, *job.notes))
        jobs += [with_choice_seed(job, len(jobs) + index) for index in range(body.n)]
    return jobs


def _job(prompt: str | list[int], body: CompletionRequest, config: GenerationConfig, backend: Backend) -> Job:
    if isinstance(prompt, list) and body.suffix:
        raise ApiError(400, "suffix needs a prompt that is text, not token ids", param="suffix")
    if body.prediction is not None:  # it begins where the prompt ends, so nothing of the prompt is left to the answer
        ids = backend.llm.encode_prompt(prompt) if isinstance(prompt, str) else prompt
        return backend.predicted(backend.ids(ids, config), plain_text(body.prediction.content))
    if isinstance(prompt, list):
        return backend.ids(prompt, config)
    if body.suffix:
        return backend.fill(prompt, body.suffix, config)
    return backend.text(prompt, config)


@router.post("/v1/completions", summary="Continue a text, or fill one in", responses=STREAMED)
@scope("generate")
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    service, call = service_of(request), call_of(request)
    model = service.check_model(body.model)
    call.prompts += body.prompts()
    if body.max_tokens == 0 and not (body.echo and not body.stream):
        raise ApiError(400, "max_tokens must be at least 1; 0 needs echo, without stream", param="max_tokens")
    if body.stream and body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed", param="stream")
    jobs = await completion_jobs(body, service.backend)
    jobs, headers = await service.admit(call, jobs)
    writer = CompletionWriter(service, call, model, body, jobs)
    if body.stream:
        return EventStream(writer.stream(body.wants_usage), service.settings.write_seconds, headers)
    return JSONResponse(await while_connected(request, writer.whole()), headers=headers)


class CompletionWriter:
    """The answer in OpenAI's older words."""

    def __init__(self, service: Service, call: Call, model: str, body: CompletionRequest, jobs: Sequence[Job]) -> None:
        self.service = service
        self.backend = service.backend
        self.call = call
        self.body = body
        self.jobs = jobs
        self.head = {
            "id": f"cmpl-{call.id[4:]}", "object": "text_completion", "created": int(time.time()), "model": model,
        }  # fmt: skip

    async def whole(self) -> dict[str, Any]:
        if self.body.max_tokens == 0:
            return await self._scores_alone()
        done: dict[int, Generation] = {}
        async with aclosing(self.service.run(self.call, self.jobs)) as events:
            async for index, event in events:
                if isinstance(event, Finished):
                    done[index] = event.generation
        generations = [done[index] for index in range(len(self.jobs))]
        choices = []
        for index, generation in enumerate(generations):
            prompt = self.body.prompts()[index // self.body.n]
            logprobs = None
            if self.body.logprobs is not None:
                heard = await self._prompt_scores(self.jobs[index]) if self.body.echo else []
                logprobs = legacy_logprobs(self.backend, [*heard, *(generation.logprobs or ())])
            text = (self._echo(prompt) if self.body.echo else "") + generation.text
            choices.append({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": generation.finish_reason,
                "scumble": generation_extension(self.jobs[index], generation),
            })  # fmt: skip
        usage = usage_of(self.backend, self.jobs, generations)
        return {**self.head, "choices": choices, "usage": usage}

    async def _scores_alone(self) -> dict[str, Any]:
        """max_tokens 0 with echo: the prompt comes back, scored, and nothing is generated."""
        choices = []
        for index, job in enumerate(self.jobs):
            text = self._echo(self.body.prompts()[index // self.body.n])
            logprobs = None
            if self.body.logprobs is not None:
                logprobs = legacy_logprobs(self.backend, await self._prompt_scores(job))
            choices.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": "length"})
        return {**self.head, "choices": choices, "usage": usage_of(self.backend, self.jobs, [])}

    async def _prompt_scores(self, job: Job) -> list[TokenLogprobs | int]:
        """Of the prompt's tokens; the first one has nothing before it and so no score."""
        scores = await self.backend.scored(job.prompt, self.body.logprobs or 0)
        return [job.prompt[0], *scores]

    def _echo(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.backend.tokenizer.decode(prompt)

    async def stream(self, with_usage: bool) -> AsyncGenerator[bytes, None]:
        done: dict[int, Generation] = {}
        usage = {"usage": None} if with_usage else {}
        try:
            if self.body.echo:
                for index in range(len(self.jobs)):
                    yield self._chunk(index, self._echo(self.body.prompts()[index // self.body.n]), **usage)
            async with aclosing(self.service.run(self.call, self.jobs, self.body.drafts)) as events:
                async for index, event in events:
                    if isinstance(event, Finished):
                        done[index] = event.generation
                        logprobs = event.generation.logprobs
                        yield self._chunk(
                            index, "", event.generation.finish_reason,
                            None if logprobs is None else legacy_logprobs(self.backend, logprobs),
                            generation_extension(self.jobs[index], event.generation), **usage,
                        )  # fmt: skip
                    elif isinstance(event, Committed):
                        if event.text:
                            yield self._chunk(index, event.text, **usage)
                    else:
                        yield self._chunk(index, "", extension=draft_extension(self.backend, event), **usage)
            if with_usage:
                total = usage_of(self.backend, self.jobs, [done[index] for index in range(len(self.jobs))])
                yield data_event({**self.head, "choices": [], "usage": total})
            yield DONE
        except ClientGone:
            raise
        except Exception as error:
            yield self.service.failed(self.call, error)

    def _chunk(
        self, index: int, text: str, finish: str | None = None, logprobs: Any = None, extension: Any = None, **more: Any
    ) -> bytes:
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        if extension is not None:
            choice["scumble"] = extension
        return data_event({**self.head, "choices": [choice], **more})


def legacy_logprobs(backend: Backend, scores: Sequence[TokenLogprobs | int]) -> dict[str, Any]:
    """Parallel lists, one entry a token; a bare id has no score. Alternatives of equal text keep the likelier one."""
    tokens, values, tops, offsets = [], [], [], []
    at = 0
    for one in scores:
        token = one if isinstance(one, int) else one.token_id
        text = backend.token_text(token)
        tokens.append(text)
        offsets.append(at)
        at += len(text)
        if isinstance(one, int):
            values.append(None)
            tops.append(None)
            continue
        values.append(one.logprob)
        top: dict[str, float] = {}
        for other, value in one.top:
            name = backend.token_text(other)
            top[name] = max(value, top.get(name, value))
        tops.append(top)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
