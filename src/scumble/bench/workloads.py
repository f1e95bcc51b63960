"""What is run: fixed passes over random prompts, adaptive passes over real ones, one token at a time, and prefill.

fixed       every canvas takes the same number of passes and no end of sequence counts. The work does not depend on the
            weights, so random ones serve, and the figure can be held against published ones of the same kind.
adaptive    the model decides when a canvas is done and when the text ends. Only tokens up to the end count.
steps       the autoregressive decoder on the same weights: the honest baseline.
prefill     from the request to the first token that the prompt predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scumble.bench.events import Watched, fixed_config, step_config, watch
from scumble.bench.timing import Figure, figure
from scumble.llm import LLM
from scumble.settings import GenerationConfig

Now = Callable[[], float]


def run_fixed(llm: LLM, prompt: Sequence[int], passes: int, new_tokens: int, seed: int, now: Now) -> Watched:
    return watch(llm, prompt, fixed_config(passes, new_tokens, seed), now)


def run_steps(llm: LLM, prompt: Sequence[int], new_tokens: int, seed: int, now: Now) -> Watched:
    return watch(llm, prompt, step_config(new_tokens, seed), now)


def run_prefill(llm: LLM, prompt: Sequence[int], now: Now) -> float:
    """Seconds from the request to the first token: encode the prompt, the head for its last position, choose."""
    return watch(llm, prompt, step_config(1, 0), now).first_text


def run_adaptive(llm: LLM, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int, now: Now) -> list[Watched]:
    """Every prompt once, with the checkpoint's own settings but for the number of candidates, which is one."""
    settings = GenerationConfig(max_new_tokens=new_tokens, best_of=1, revisions=0, seed=seed)
    return [watch(llm, prompt, settings, now) for prompt in prompts]


def run_adaptive_steps(
    llm: LLM, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int, now: Now
) -> list[Watched]:
    """The same prompts through the autoregressive decoder, which may end early as well."""
    return [watch(llm, prompt, step_config(new_tokens, seed, ignore_eos=False), now) for prompt in prompts]


def diffusion_summary(runs: Sequence[Watched]) -> dict[str, Any]:
    """Figures of repeated generations. Seconds; tokens a second are valid tokens over the whole time of a request."""
    passes = [count for run in runs for count in run.passes]
    return {
        "seconds_per_pass": _optional([seconds for run in runs for seconds in run.between]),
        "first_draft_seconds": _optional([run.first_draft for run in runs if run.first_draft is not None]),
        "first_text_seconds": figure([run.first_text for run in runs]).as_json(),
        "request_seconds": figure([run.seconds for run in runs]).as_json(),
        "passes_per_canvas": {"mean": sum(passes) / len(passes), "least": min(passes), "most": max(passes)},
        "canvases": len(passes),
        "valid_tokens": sum(run.valid for run in runs),
        "tokens_per_second": throughput(runs).as_json(),
        "tokens_per_pass": sum(run.valid for run in runs) / sum(passes),
    }


def step_summary(runs: Sequence[Watched]) -> dict[str, Any]:
    """`tokens_per_second` is end to end, with prefill; `steady_tokens_per_second`: between two tokens."""
    steps = [seconds for run in runs for seconds in run.steps]
    steady = figure(steps).per(1.0).as_json() if steps else None
    return {
        "first_text_seconds": figure([run.first_text for run in runs]).as_json(),
        "request_seconds": figure([run.seconds for run in runs]).as_json(),
        "valid_tokens": sum(run.valid for run in runs),
        "tokens_per_second": throughput(runs).as_json(),
        "steady_tokens_per_second": steady,
    }


def throughput(runs: Sequence[Watched]) -> Figure:
    """Valid tokens a second, request by request."""
    return figure([run.valid / run.seconds for run in runs])


def _optional(values: Sequence[float]) -> dict[str, Any] | None:
    return figure(values).as_json() if values else None
