"""What answers carry beyond the APIs they speak: passes, seeds, drafts; and usage, which all of them count alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scumble.events import Draft, Generation
from scumble.serve.backend import Backend, Job


def generation_extension(job: Job, generation: Generation) -> dict[str, Any]:
    """`scumble` of one answer: how it was made, in times of seconds."""
    return {
        "passes": list(generation.passes),
        "evaluations": generation.evaluations,
        "reads": generation.reads,
        "seed": job.config.seed,
        "seconds": round(generation.seconds, 6),
        "first_text_seconds": round(generation.first_text_seconds, 6),
        "not_applied": list(job.notes),
    }


def draft_extension(backend: Backend, draft: Draft) -> dict[str, Any]:
    """`scumble` of a chunk that shows a canvas after a pass; never text that a client would append."""
    tokens = [backend.token_text(token) for token in draft.token_ids]
    return {
        "draft": draft.text,
        "tokens": tokens,
        "accepted": list(draft.accepted),
        "canvas": draft.canvas,
        "pass": draft.pass_index,
        "candidate": draft.candidate,
        "entropy": [round(value, 4) for value in draft.entropy],
    }


def usage_of(backend: Backend, jobs: Sequence[Job], generations: Sequence[Generation]) -> dict[str, Any]:
    """OpenAI's usage of a request: a prompt counts once, however many answers it gets."""
    prompt = sum(len(prompt) for prompt in {job.prompt for job in jobs})
    completion = sum(len(generation.token_ids) for generation in generations)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(jobs, generations)},
        "completion_tokens_details": {"reasoning_tokens": sum(backend.reasoning_tokens(one) for one in generations)},
        "scumble": {"passes": sum(sum(one.passes) for one in generations)},
    }


def cached_tokens(jobs: Sequence[Job], generations: Sequence[Generation]) -> int:
    """Prompt tokens that the engine had encoded before the request came. Of several answers to one prompt the first
    encodes what the others find."""
    least: dict[tuple[int, ...], int] = {}
    for job, one in zip(jobs, generations, strict=False):  # none, where nothing was to be generated
        least[job.prompt] = min(one.cached_tokens, least.get(job.prompt, one.cached_tokens))
    return sum(least.values())


def tool_calls(generation: Generation) -> list[dict[str, Any]]:
    """Calls in OpenAI's form; arguments as JSON text."""
    return [
        {
            "id": one.id,
            "type": "function",
            "function": {"name": one.name, "arguments": _as_json(one.arguments)},
        }
        for one in generation.tool_calls
    ]


def _as_json(arguments: Mapping[str, Any] | str) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
