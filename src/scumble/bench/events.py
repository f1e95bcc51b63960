"""One generation with the time of everything that a caller can see: drafts, committed tokens, the end.

Times are taken where the caller receives an event, so they contain all that the engine and the facade do for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scumble.events import Committed, Draft, Finished, Generation
from scumble.llm import LLM
from scumble.settings import GenerationConfig


@dataclass(frozen=True)
class Watched:
    """Seconds count from the request. between: from one pass to the next of the same canvas, so without prefill and
    commits; steps: from one commit to the next. `valid` counts committed tokens up to the first end of sequence."""

    ids: tuple[int, ...]
    valid: int
    passes: tuple[int, ...]
    seconds: float
    first_draft: float | None
    first_text: float
    between: tuple[float, ...]
    steps: tuple[float, ...]


def valid_tokens(ids: Sequence[int], eos_ids: Collection[int], limit: int | None = None) -> int:
    """How many of the ids are output: those up to and with the first end-of-sequence id, and at most `limit`.

    What a canvas holds behind its end of sequence is thrown away, so it is nobody's speed. An empty `eos_ids` says
    that the end was to be ignored, as in runs of fixed length; then all count.
    """
    kept = ids if limit is None else ids[:limit]
    return next((place + 1 for place, token in enumerate(kept) if token in eos_ids), len(kept))


def watch(
    llm: LLM,
    prompt: Sequence[int],
    config: GenerationConfig,
    now: Callable[[], float],
    on_draft: Callable[[Draft], None] = lambda _: None,
) -> Watched:
    """Run one request through the public stream and note when its events arrive. `on_draft` sees every pass."""
    drafts: list[tuple[int, float]] = []  # canvas, time
    commits: list[float] = []
    done: Generation | None = None
    seconds = 0.0
    started = now()
    for event in llm.stream_ids([list(prompt)], config):
        at = now() - started
        if isinstance(event, Draft):
            drafts.append((event.canvas, at))
            on_draft(event)
        elif isinstance(event, Committed):
            if event.token_ids:
                commits.append(at)
        elif isinstance(event, Finished):
            done, seconds = event.generation, at
    assert done is not None, "a stream ends with Finished"
    eos = () if config.ignore_eos else llm.model.config.eos_token_ids
    return Watched(
        ids=done.token_ids,
        valid=valid_tokens(done.token_ids, eos),
        passes=done.passes,
        seconds=seconds,
        first_draft=drafts[0][1] if drafts else None,
        first_text=commits[0] if commits else seconds,
        between=tuple(b - a for (one, a), (two, b) in pairwise(drafts) if one == two),
        steps=tuple(b - a for a, b in pairwise(commits)),
    )


def fixed_config(passes: int, new_tokens: int, seed: int) -> GenerationConfig:
    """A run whose work does not depend on what the model says: every canvas takes `passes` passes, none ends early."""
    return GenerationConfig(
        max_new_tokens=new_tokens, max_denoising_steps=passes, confidence_threshold=0.0, best_of=1, revisions=0,
        ignore_eos=True, seed=seed,
    )  # fmt: skip


def step_config(new_tokens: int, seed: int, ignore_eos: bool = True) -> GenerationConfig:
    """The autoregressive decoder on the same weights, greedy."""
    return GenerationConfig(
        max_new_tokens=new_tokens, decoder="autoregressive", temperature=0.0, ignore_eos=ignore_eos, seed=seed
    )
